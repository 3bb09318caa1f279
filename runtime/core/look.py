"""How often an idle worker looks for jobs that nobody announces."""

import math

FOREIGN_LOOK_S = (0.5, 15.0)
OF_A_LEASE = 1.1
"""No look comes later than this part of a lease after the one before."""


def look_every_s(since_foreign_s: float, since_start_s: float, lease_s: float, *, hears: bool, most_s: float) -> float:
    """Seconds between two looks, so long after the last job of a producer that sends no wake-up (stock arq).

    Half a second for the first minute, then it doubles as the time does. A worker that has seen no such job begins with
    half a second too, and is soon through: a job waits no longer than a quarter of the worker's age. Where the store
    tells of what is written (`hears`), looks are for leases that lapse. Those are found whatever happens before that
    part of a lease, or 15 s, is over: a claim that was made just after one look is seen to lapse by the next. `most_s`:
    somebody has asked for a look so often, where the store tells nothing.
    """
    least, most = FOREIGN_LOOK_S
    most = min(most, OF_A_LEASE * lease_s)
    wanted = math.inf if hears else min(max(min(since_foreign_s / 120, since_start_s / 4), least), most_s)
    return min(wanted, most)
