"""A stand-in for any API: `GET` and `POST /things/…` answer, and its log has the trace context and the idempotency key
that came with the request.

    python -m tests.standins.web --limit 10 --window 1

With a limit it refuses what is more than so many requests in any stretch of that time, with 429 and `Retry-After`.
"""

import argparse
import math
from collections.abc import Callable

from tests.standins.limits import SlidingWindow
from tests.standins.program import Answer, Call, Fault, StandIn, arguments, run


class Web(StandIn[Fault]):
    fault_type = Fault

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options.log)
        self._options = options
        self.forget()

    def routes(self) -> list[tuple[str, str, Callable[[Call], Answer]]]:
        return [(method, "/things/{name}", self._answer) for method in ("GET", "POST")]

    def _answer(self, call: Call) -> Answer:
        call.facts["traceparent"] = call.headers.get("traceparent")
        call.facts["key"] = call.headers.get("Idempotency-Key")
        call.facts["query"] = dict(call.query)
        fault = self.meet_fault(call)
        if fault and fault.status:
            return _refused(fault.status, fault.retry_after)
        wait = self._window.hit(call.now) if self._window else 0.0
        if wait:
            self.log.count("rate_limited", call.route)
            return _refused(429, wait)
        return Answer(200, {}, latency=self._options.latency)

    def error(self, status: int, route: str) -> Answer:
        return Answer(status, {"error": route})

    def headers(self, call: Call, answer: Answer) -> dict[str, str]:
        return {}

    def forget(self) -> None:
        limit, window_s = self._options.limit, self._options.window
        self._window = SlidingWindow(limit, window_s) if limit else None


def _refused(status: int, wait_s: float | None) -> Answer:
    return Answer(status, {}, {} if wait_s is None else {"Retry-After": str(math.ceil(wait_s))})


def main() -> None:
    parser = arguments("A stand-in for any API.", key="")
    parser.add_argument("--limit", type=int, metavar="N", help="requests in the window (default: any number)")
    parser.add_argument("--window", type=float, metavar="S", default=1.0, help="the sliding window (default: 1)")
    parser.add_argument("--latency", type=float, metavar="S", default=0.0, help="of every good answer (default: 0)")
    options = parser.parse_args()
    if (options.limit is not None and options.limit < 1) or options.window <= 0:
        parser.error("--limit must be at least 1 and --window above 0")
    run(Web(options), options)


if __name__ == "__main__":
    main()
