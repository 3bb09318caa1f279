"""Which job runs first: a number, or one that an argument decides when the job is enqueued."""

from collections.abc import Mapping

from runtime.core.errors import HandlerInvalid, OptionInvalid
from runtime.core.quota import plain

PRIORITIES = range(1001)


def check_priority(priority: object) -> None:
    """Raise `OptionInvalid` for what is none."""
    if isinstance(priority, bool) or not isinstance(priority, int) or priority not in PRIORITIES:
        raise OptionInvalid(f"priority={priority!r}: a priority is a whole number from 0 to 1000, higher first")


class Ranked:
    """What `by` gives: the priority of each value of one argument."""

    def __init__(self, parameter: str, table: Mapping[str, int], default: int) -> None:
        if not isinstance(parameter, str):
            raise HandlerInvalid(f"by({parameter!r:.40}, …): it names a parameter", hint='e.g. by("tier", TIERS)')
        if not isinstance(table, Mapping) or not table:
            raise HandlerInvalid(
                f"by({parameter!r}, {table!r:.40}): a table says the priority of each value", hint='{"vip": 100}'
            )
        for priority in (*table.values(), default):
            check_priority(priority)
        self.parameter = parameter
        self._table = {plain(value): priority for value, priority in table.items()}
        self.default = default

    def check(self, handler: str, parameters: Mapping[str, object]) -> None:
        """Raise `HandlerInvalid` unless a handler with these parameters has the one that decides."""
        if self.parameter not in parameters:
            raise HandlerInvalid(
                f"{handler}: its priority goes by {self.parameter!r}, and it has no such parameter",
                hint=f"its parameters are {', '.join(parameters) or 'none'}",
            )

    def of(self, value: object) -> int:
        """The priority of a job whose argument has this value; the default for one that is not in the table."""
        value = plain(value)
        return self._table.get(value, self.default) if isinstance(value, str) else self.default

    def __repr__(self) -> str:
        return f"by({self.parameter!r}, {self._table!r}, default={self.default})"


def by(parameter: str, table: Mapping[str, int], default: int = 0) -> Ranked:
    """A priority by the value of an argument: `priority=by("tier", {"vip": 100, "normal": 50})`.

    `parameter` is one of the handler's; its own default counts where the argument is not given. A value that is not in
    `table` has the priority `default`. An enqueue that says `priority=` itself goes before it. Priorities are whole
    numbers from 0 to 1000, higher first. Raises `HandlerInvalid` or `OptionInvalid` where it stands, and where the
    handler has no such parameter.

    It holds where the handler is known: `Handler.enqueue`, `enqueue_all`, `POST /jobs` and `runtime enqueue`.
    `Client.enqueue` knows no declarations.
    """
    return Ranked(parameter, table, default)
