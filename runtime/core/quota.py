"""How many jobs one user may enqueue: declared beside a handler, checked in the store along with the enqueue itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import Enum
from typing import Literal

from runtime.core.errors import HandlerInvalid, PayloadInvalid, QuotaExceeded
from runtime.core.span import spell
from runtime.core.values import frozen

MOST = 1000
"""The largest limit: an enqueue looks at all jobs that count. What is to be larger is a rate, and a bucket's affair."""
PENDING_AGAIN_S = 5.0
"""When to try again where a job has to end first: nobody knows when one will."""
LONGEST_USER = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Which = Literal["hourly", "pending"]


@frozen
class Allowance:
    """What one user may do. None: there is no such limit; 0 forbids. Raises `HandlerInvalid` beyond 0 to 1000.

    What is not limited is not remembered: who comes down from a tier without such a limit is counted from then on.
    """

    hourly: int | None = None
    """Jobs enqueued in any 60 minutes."""
    pending: int | None = None
    """Jobs that have not ended: waiting, deferred, retrying, snoozed or running."""

    def __post_init__(self) -> None:
        for name, limit in (("hourly", self.hourly), ("pending", self.pending)):
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= MOST):
                raise HandlerInvalid(
                    f"Allowance({name}={limit!r:.40}): it is a whole number from 0 to {MOST}",
                    hint="0 forbids, and without it there is no such limit",
                )


@frozen
class Counted:
    """A job that counts for its user. The user's name goes to the store, and into no error and no `repr`."""

    quota: str
    user: str = field(repr=False)
    tier: str | None
    allowance: Allowance

    def exceeded(self, which: Which, *, used: int, wanted: int, wait_s: float) -> QuotaExceeded:
        """The error for `wanted` more jobs where `used` count already. `wait_s`: until there is room for them."""
        hourly = which == "hourly"
        limit = (self.allowance.hourly if hourly else self.allowance.pending) or 0
        retry_after_s = wait_s if hourly else PENDING_AGAIN_S
        allowed = f"{limit} {'job' if limit == 1 else 'jobs'} {'an hour' if hourly else 'at a time'}"
        tier = "" if self.tier is None else f" for the tier {self.tier!r}"
        count = f"{used} enqueued in the last one" if hourly else f"{used} waiting or running"
        more = "" if wanted == 1 else f", and {wanted} more are asked for"
        return QuotaExceeded(
            f"{self.quota}: over the limit of {allowed}{tier}: {count}{more}",
            hint=f"try again in {spell(retry_after_s)}" if wanted <= limit else f"never more than {limit} at once",
            quota=self.quota,
            which=which,
            limit=limit,
            retry_after_s=retry_after_s,
        )


class Quota:
    """A limit on enqueueing, for each user by himself.

        Quota("exports", by="user_id", allow=Allowance(hourly=10, pending=5))
        Quota("exports", by="user_id", tier="tier", tiers={"free": Allowance(hourly=10), "paying": Allowance()})

    `by` names the handler's parameter whose value says whose job it is (a text, a whole number or a UUID), `tier` the
    one whose value names the tier; its default counts where the argument is not given. Jobs are counted under `name`:
    handlers that are declared with the same `Quota` share it. Raises `HandlerInvalid` where it is declared.

    It holds for `Handler.enqueue`, `enqueue_all`, `POST /jobs` and `runtime enqueue`. Producers that write to Redis by
    other means, stock arq for one, and `Client.enqueue`, which knows no declarations, pass it by uncounted.
    """

    def __init__(
        self,
        name: str,
        *,
        by: str,
        allow: Allowance | None = None,
        tier: str | None = None,
        tiers: Mapping[str, Allowance] | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise HandlerInvalid(
                f"Quota({name!r:.80}): a name has 1 to 64 letters, digits, dots, hyphens and underscores"
            )
        if not isinstance(by, str) or not isinstance(tier, str | None):
            raise _wrong(name, "by and tier name parameters of the handler", 'e.g. by="user_id"')
        if (allow is None) == (tiers is None):
            raise _wrong(name, "it takes one of allow and tiers", "allow is for everybody, tiers for each by his tier")
        if (tier is None) != (tiers is None):
            raise _wrong(name, "tier and tiers go together", 'e.g. tier="tier", tiers={"free": Allowance(hourly=10)}')
        rules: Sequence[object] = (
            [allow] if tiers is None else list(tiers.values()) if isinstance(tiers, Mapping) else []
        )
        if not rules or not all(isinstance(rule, Allowance) for rule in rules):
            raise _wrong(name, "every allowance is an Allowance, and there is at least one", "Allowance(hourly=10)")
        if tiers is not None and not all(isinstance(key, str) for key in tiers):
            raise _wrong(name, "a tier's name is a text", 'e.g. tiers={"free": Allowance(hourly=10)}')
        self.name = name
        self.by = by
        self.tier = tier
        self._allow = allow
        self._tiers = dict(tiers or {})

    def check(self, handler: str, parameters: Mapping[str, object]) -> None:
        """Raise `HandlerInvalid` unless a handler with these parameters, and these defaults, can be counted."""
        for option, parameter in (("by", self.by), ("tier", self.tier)):
            if parameter is not None and parameter not in parameters:
                raise HandlerInvalid(
                    f"{handler}: the quota {self.name!r} says {option}={parameter!r}, and it has no such parameter",
                    hint=f"its parameters are {', '.join(parameters) or 'none'}",
                )
        default = plain(parameters[self.tier]) if self.tier is not None else None
        if isinstance(default, str) and default not in self._tiers:
            raise HandlerInvalid(
                f"{handler}: the default of {self.tier!r} is no tier of the quota {self.name!r}", hint=self._known()
            )

    def count(self, handler: str, user: object, tier: object) -> Counted | None:
        """How a job with these arguments counts; None where nothing is limited.

        Raises `PayloadInvalid` for a user that makes no key and a tier that there is not.
        """
        tier = plain(tier)
        if self.tier is not None and (not isinstance(tier, str) or tier not in self._tiers):
            raise PayloadInvalid(
                f"{handler}: argument {self.tier!r} names no tier of the quota {self.name!r}", hint=self._known()
            )
        named = tier if isinstance(tier, str) and self.tier is not None else None
        allowance = self._allow if named is None else self._tiers[named]
        key = _key(user)
        if key is None:
            raise PayloadInvalid(
                f"{handler}: argument {self.by!r} does not say whose job it is, for the quota {self.name!r}",
                hint="it is a text that is not empty, a whole number or a UUID",
            )
        if allowance is None or allowance == Allowance():
            return None
        return Counted(self.name, key, named, allowance)

    def _known(self) -> str:
        return f"the tiers are {', '.join(self._tiers)}"

    def __repr__(self) -> str:
        return f"Quota({self.name!r}, by={self.by!r})"


def plain(value: object) -> object:
    """The value of a member of an Enum, which is how it travels; else `value`."""
    return value.value if isinstance(value, Enum) else value


def _wrong(name: str, rule: str, hint: str) -> HandlerInvalid:
    return HandlerInvalid(f"Quota({name!r}): {rule}", hint=hint)


def _key(user: object) -> str | None:
    """A user's part of a key, or None for what is no user. It says no more than it must, and is never very long."""
    import hashlib
    from uuid import UUID

    user = plain(user)
    if isinstance(user, bool) or not isinstance(user, str | int | UUID) or user == "":
        return None
    text = str(user)
    if len(text) <= LONGEST_USER and text.isprintable():
        return text
    # Longer than any that stands for itself.
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
