"""What providers count, and what is left of it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import field

from runtime.core.values import frozen
from runtime.providers import waits

MOST = 10**12
"""No limit, no request and no bill is larger."""
_WHOLE = re.compile(r"[0-9]{1,13}")


@frozen
class Quotas:
    """The headers on the provider's own count, by dimension, as far as they can be believed."""

    remaining: dict[str, int] = field(default_factory=dict)
    resets_in_s: dict[str, float] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)


def count(value: object) -> int | None:
    """`value`, a header's text or a number of JSON, if it is a whole number from 0 to `MOST`."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value.strip())
        return count(int(found[0])) if found else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST:
        return value
    return None


def quotas(
    headers: Mapping[str, str],
    pattern: str,
    dimensions: Mapping[str, str],
    until: Callable[[str], float | None] = waits.duration_s,
) -> Quotas:
    """What `headers` (names in small letters) say.

    `pattern` gives a header's name from `{what}` (limit, remaining, reset) and `{of}`, which `dimensions` names for
    each dimension; `until` reads a reset.
    A dimension whose limit is no limit is left out: Azure's Responses API says -1 or 0 for all three.
    """
    read = Quotas()
    for dimension, of in dimensions.items():
        texts = {what: headers.get(pattern.format(what=what, of=of)) for what in ("limit", "remaining", "reset")}
        limit, left = count(texts["limit"]), count(texts["remaining"])
        if limit:
            read.limits[dimension] = limit
        elif texts["limit"] is not None or left == 0:
            continue
        if left is not None and (limit is None or left <= limit):
            read.remaining[dimension] = left
        full_in_s = waits.reset(until(texts["reset"] or ""))
        if full_in_s is not None:
            read.resets_in_s[dimension] = full_in_s
    return read
