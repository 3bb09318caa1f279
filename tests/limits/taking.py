"""The engine's limiter without a job: what `ctx.limit` waits with."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

from runtime.engine.drought import Drought
from runtime.engine.limiter import Limiter
from runtime.ports import Away, Limits


def limiter(limits: Limits) -> Limiter:
    nobody: Any = None  # whose wait it is, for the journal alone
    ports: Any = SimpleNamespace(limits=limits, permits=None, journal=_Unheard())
    return Limiter(nobody, "taker", ports, Drought({}, lambda: None), lambda more_s: None)


class _Unheard:
    """Of a journal what the limiter tells."""

    def within(self, claim: object, part: str | None = None) -> AbstractContextManager[None]:
        return nullcontext()

    def weather(self, away: Away) -> None: ...
