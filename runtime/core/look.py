"""How often an idle worker looks for jobs that nobody announces."""

FOREIGN_LOOK_S = (0.5, 15.0)


def look_every_s(since_foreign_s: float, lease_s: float) -> float:
    """Seconds between two looks, `since_foreign_s` after the last job of a producer that sends no wake-up (stock arq).

    Half a second for the first minute, then it doubles as the time does. Never longer than nine tenths of a lease: a
    worker that looks once within every lease sees each one before it lapses, and so is there when it does.
    """
    least, most = FOREIGN_LOOK_S
    return min(max(since_foreign_s / 120, least), most, 0.9 * lease_s)
