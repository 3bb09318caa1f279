"""How often, and after how long."""

from runtime.core.span import Span, seconds


class Retry:
    """How often, and after how long, a failed job is tried again.

    `attempts` counts the first run too. The wait before attempt n+1 is a random part of `base · 2^(n-1)`, at most
    `max` (full jitter, so that what failed together does not come back together). With `on`, only these exceptions
    are retried.
    """

    def __init__(
        self,
        attempts: int = 3,
        *,
        on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
        base: Span = "2s",
        max: Span = "5m",
    ) -> None:
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise ValueError(f"Retry(attempts={attempts!r}): attempts is a whole number from 1")
        kinds = on if isinstance(on, tuple) else (on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise TypeError(f"Retry(on={on!r:.100}): on is an exception class, or a tuple of them")
        self.attempts = attempts
        self.on = on
        self.base_s = seconds(base)
        self.max_s = seconds(max)

    def delay_s(self, failures: int, chance: float) -> float:
        """The wait after the `failures`-th failure; `chance` is a random number in [0, 1)."""
        return chance * min(self.max_s, self.base_s * 2.0 ** min(failures - 1, 60))

    def __repr__(self) -> str:
        return f"Retry({self.attempts}, base={self.base_s:g}, max={self.max_s:g})"
