"""The engine's limiter without a job: what `ctx.limit` waits with."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from runtime.engine.drought import Drought
from runtime.engine.limiter import Limiter
from runtime.ports import Away, Limits


def limiter(limits: Limits) -> Limiter:
    nobody: Any = None  # whose wait it is, for the journal alone
    return Limiter(nobody, "taker", limits, cast("Any", _Unheard()), Drought({}, lambda: None))


class _Unheard:
    """Of a journal what the limiter tells."""

    def within(self, claim: object, part: str | None = None) -> AbstractContextManager[None]:
        return nullcontext()

    def weather(self, away: Away) -> None: ...
