"""A crew of taker processes against a stand-in for some seconds, and what was seen of it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.limits.judge import Allowance, Use, Witness, arrived, count, delays_us, excess, quantile, utilisation
from tests.processes import environment, wait_until
from tests.standins.process import ROOT, Running, running

S = 1_000_000


@dataclass(frozen=True, slots=True)
class Course:
    """How long, how many, and how fast."""

    length_s: float
    processes: int
    takers: int
    rate_s: int
    burst: int

    @property
    def allowed(self) -> Allowance:
        return Allowance(self.rate_s, S, self.burst)

    @property
    def at_the_provider(self) -> int:
        """Requests in any second, as the stand-in enforces it."""
        return self.burst + self.rate_s + round(self.rate_s * TOLERANCE_S)


WHOLE = Course(length_s=20, processes=8, takers=6, rate_s=100, burst=10)
SHORT = Course(length_s=8, processes=4, takers=6, rate_s=50, burst=10)
CLOSE_S = 0.05
"""How near to its grant a request arrives on a machine that does nothing else: what is printed."""
TOLERANCE_S = 0.5
"""And on one that does other things too: what is asserted, and what the stand-in allows. Grants are exact anyhow."""


class Taker:
    """One process of takers; started again after a kill it is another one."""

    def __init__(self, *args: str) -> None:
        self._command = [sys.executable, "-m", "tests.limits.taker", *args]
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(self._command, cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe, text=True)

    def ready(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "a taker did not start"
        return self

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def replace(self) -> None:
        """SIGKILL, and another in its place as soon as it is there."""
        self.kill()
        self._process = self._start()
        self.ready().go()

    def stop(self) -> None:
        """Let it end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(10)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(frozen=True, slots=True)
class Seen:
    """By the two witnesses."""

    course: Course
    began_us: int
    grants: list[Use]
    arrivals: list[Use]

    @property
    def middle(self) -> tuple[int, int]:
        """Without an eighth of the time at both ends."""
        length_us = round(self.course.length_s * S)
        return self.began_us + length_us // 8, self.began_us + length_us * 7 // 8

    @property
    def used(self) -> float:
        return utilisation(self.grants, self.course.allowed, *self.middle)

    @property
    def over(self) -> float:
        """Excess of the grants, in the worst stretch."""
        return excess(self.grants, self.course.allowed)

    @property
    def refused(self) -> int:
        return count(self.arrivals, 429)

    def delay_us(self, share: float) -> int:
        return quantile(delays_us(self.grants, self.arrivals), share)

    def arrivals_over(self, tolerance_s: float = TOLERANCE_S) -> float:
        return excess(self.arrivals, self.course.allowed, round(tolerance_s * S))

    def __str__(self) -> str:
        late = ", ".join(f"{name} {self.delay_us(share) / 1000:.1f}" for name, share in QUANTILES)
        return (
            f"{len(self.grants)} grants, {len(self.arrivals)} arrivals, {self.refused} refused; used {self.used:.1%}; "
            f"over in the worst stretch: grants {self.over:+.6f}, arrivals {self.arrivals_over(CLOSE_S):+.2f} "
            f"(allowing {CLOSE_S * 1000:.0f} ms); ms late: {late}"
        )


QUANTILES = (("first", 0.0), ("median", 0.5), ("p99", 0.99), ("last", 1.0))


class Crew:
    """Some takers at work, and the stand-in that they call."""

    def __init__(self, course: Course, takers: list[Taker], web: Running, witness: Witness) -> None:
        self.course = course
        self.takers = takers
        self.web = web
        self._witness = witness
        self.began_us = 0

    def go(self) -> None:
        for taker in self.takers:
            taker.ready()
        self.began_us = time.time_ns() // 1000
        for taker in self.takers:
            taker.go()

    def elapsed_s(self) -> float:
        return time.time() - self.began_us / S

    def work_until(self, at_s: float) -> None:
        """Let it go on to that moment of its time."""
        time.sleep(max(0.0, at_s - self.elapsed_s()))

    def finish(self) -> Seen:
        """The time is up."""
        self.work_until(self.course.length_s)
        for taker in self.takers:
            taker.stop()
        codes = [taker.wait() for taker in self.takers]
        assert codes == [0] * len(codes), f"takers ended with {codes}"
        return Seen(self.course, self.began_us, self._witness.grants(), arrived(self.web.log()["requests"]))


@contextmanager
def crew(redis_url: str, folder: Path, course: Course) -> Iterator[Crew]:
    """At work already; the stand-in enforces what the bucket promises."""
    with running("web", "--limit", str(course.at_the_provider), "--window", "1") as web:
        args = (redis_url, web.url, str(folder), f"{course.rate_s}/s", str(course.burst), str(course.takers))
        takers = [Taker(*args) for _ in range(course.processes)]
        try:
            at_work = Crew(course, takers, web, Witness(folder))
            at_work.go()
            wait_until(lambda: web.log()["counters"]["requests"] > 0, what="somebody was granted something")
            yield at_work
        finally:
            for taker in takers:
                taker.kill()
