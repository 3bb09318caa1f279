"""The workers of the benchmark that are written in Python, on uvloop if `BENCH_LOOP` says so.

usage: python -m tests.benchmarks.workers URL runtime | arq MAX_JOBS POLL_DELAY | floor pipeline|one-call|list
"""

import asyncio
import logging
import sys

from tests.benchmarks.guests import use_loop


def runtime() -> None:
    """With the settings of the environment."""
    from runtime.cli import main

    main(["serve", "tests.benchmarks.ours"])


def arq(url: str, max_jobs: str, poll_delay: str) -> None:
    from arq.connections import RedisSettings
    from arq.worker import Worker

    from tests.benchmarks import jobs

    logging.basicConfig(level=logging.WARNING)
    worker = Worker(
        functions=[jobs.noop, jobs.nap, jobs.marked],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=int(max_jobs),
        poll_delay=float(poll_delay),
        keep_result=3600,
    )
    worker.run()


def floor(url: str, kind: str) -> None:
    from tests.benchmarks.floor import serve

    asyncio.run(serve(kind, url))


def main(url: str, kind: str, *options: str) -> None:
    use_loop()
    match kind:
        case "runtime":
            runtime()
        case "arq":
            arq(url, *options)
        case _:
            floor(url, *options)


if __name__ == "__main__":
    main(*sys.argv[1:])
