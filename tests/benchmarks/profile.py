"""Where the worker's CPU goes while it runs no-op jobs as fast as it can: its main thread, sampled as the CPU is used.

usage: python -m tests.benchmarks.profile [--jobs N] [--top N] [--with CONTENDER]

A sample belongs to the innermost Python function; what that calls in C is its own. (cProfile would make calls dear, and
takes all generated `__init__`s for one.) The kernel gives a sample every 4 ms at best: some 100,000 jobs are needed.
"""

import argparse
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tests.benchmarks.contenders import RUNTIME, RUNTIME_INFO, RUNTIME_TRACED
from tests.benchmarks.stage import stage
from tests.processes import ROOT

EVERY_S = 0.001
CONTENDERS = {one.name: one for one in (RUNTIME, RUNTIME_INFO, RUNTIME_TRACED)}
_PARTS = ("site-packages/", f"/python{sys.version_info[0]}.{sys.version_info[1]}/", f"{ROOT}/")


class Sampler:
    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.within: Counter[str] = Counter()

    def run(self) -> None:
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.own[_named(frame)] += 1
        within = set()
        at: FrameType | None = frame
        while at is not None:
            within.add(_named(at))
            at = at.f_back
        self.within.update(within)

    def text(self) -> str:
        total = max(self.own.total(), 1)
        parts = []
        for title, found in (("by own time", self.own), ("with what they call", self.within)):
            parts.append(f"{title}, of {total} samples:")
            parts += [f"{100 * count / total:5.1f} %  {name}" for name, count in found.most_common(200)]
        return "\n".join(parts)


def _named(frame: FrameType) -> str:
    file, name = frame.f_code.co_filename, frame.f_code.co_qualname
    if file == "<string>":  # generated for a dataclass
        return f"{type(frame.f_locals.get('self')).__name__}.__init__, generated"
    for part in _PARTS:
        file = file.rpartition(part)[2]
    return f"{file}:{frame.f_lineno if '<module>' in name else frame.f_code.co_firstlineno} {name}"


def sampled(out: str) -> None:
    """In the worker's process: from the first job to the last."""
    from runtime.cli import main as command
    from tests.benchmarks import jobs

    sampler, tell = Sampler(), jobs._tell
    turns = iter((sampler.run, sampler.stop))

    def told() -> None:
        tell()
        next(turns)()

    jobs._tell = told
    command(["serve", "tests.benchmarks.ours"])
    Path(out).write_text(sampler.text())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profile", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("--with", dest="contender", choices=list(CONTENDERS), default=RUNTIME.name, help="its settings")
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile() as out:
        worker = (sys.executable, "-m", "tests.benchmarks.profile", "--inside")
        with stage(replace(CONTENDERS[args.contender], worker=worker, options=(out.name,))) as on:
            on.produce("bulk", args.jobs, "noop", 1)
            with on.worker(args.jobs) as (_, marks):
                first = marks.next()
                print(f"{args.jobs / (marks.next() - first):,.0f} jobs/s while sampled")
                on.wait_until_drained()
        kinds = Path(out.name).read_text().split("with what they call", 1)
    for title, kind in zip(("", "with what they call"), kinds, strict=True):
        print(title + "\n".join(kind.splitlines()[: args.top + 1]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sampled(sys.argv[3])
    else:
        main()
