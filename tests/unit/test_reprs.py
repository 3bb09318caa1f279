"""A stray `repr` in a log or a traceback shows no argument, no body and no result."""

from __future__ import annotations

import pytest

from runtime.adapters.redis.scripts import Leased, NewJob, Settling
from runtime.adapters.redis.wire import Result
from runtime.core.job import Call, Claim, Done, Settlement
from runtime.core.policy import Ended
from runtime.core.quota import Allowance, Counted
from runtime.core.request import Request
from runtime.ports import Step
from runtime.settings import read

SEEN = "canary"
BODY = SEEN.encode()
CALL = Call("h", (SEEN,), {"k": SEEN}, 0)
CLAIM = Claim("id", "q", "t", "0", 1, 1, CALL, BODY, 0)


@pytest.mark.parametrize(
    "value",
    [
        CALL,
        CLAIM,
        Done(SEEN),
        Settlement(CLAIM, Done(SEEN), 0, 0),
        Ended(SEEN),
        Step("done", SEEN),
        Request("h", "q", 0, (SEEN,), {"k": SEEN}, {}, lambda value: value),
        Result(True, SEEN, None, "", "h", 1, 0, 0),
        NewJob("id", BODY, 0),
        NewJob("id", BODY, 0, counted=Counted("q", SEEN, None, Allowance(hourly=1))),
        Leased(b"id", "t", "0", 1, BODY, None, None, "string"),
        Settling("id", "t", "0", 1, "end", own=BODY, result=BODY, letter=BODY, body=BODY),
        read({"REDIS_URL": "redis://:canary@host", "API_KEY": SEEN}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_shows_nothing_of_what_travels(value: object) -> None:
    assert SEEN not in repr(value)
