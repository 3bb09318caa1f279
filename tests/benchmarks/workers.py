"""The workers of the benchmark: print when the first job starts, and at the end the CPU seconds since then.

usage: python -m tests.benchmarks.workers runtime URL | arq MAX_JOBS POLL_DELAY URL
"""

import logging
import os
import resource
import sys
import time

from runtime import handler

_began = False


def _mark() -> None:
    global _began
    if not _began:
        _began = True
        print(time.monotonic(), flush=True)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@handler
async def noop(ctx: object, n: int) -> None:
    _mark()


@handler
async def marked(ctx: object) -> None:
    """Says when it began."""
    print(time.monotonic(), flush=True)


async def arq_marked(ctx: object) -> None:
    print(time.monotonic(), flush=True)


async def arq_noop(ctx: object, n: int) -> None:
    _mark()


def run_runtime(url: str) -> None:
    os.environ.update(REDIS_URL=url, WORKER_CONCURRENCY="100", LOG_LEVEL="warn", RUNTIME_HTTP="off")
    from runtime.cli import main

    main(["serve", "tests.benchmarks.workers"])


def run_arq(max_jobs: str, poll_delay: str, url: str) -> None:
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    logging.basicConfig(level=logging.WARNING)
    worker = Worker(
        functions=[func(arq_noop, name="noop"), func(arq_marked, name="marked")],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=int(max_jobs),
        poll_delay=float(poll_delay),
        keep_result=3600,
    )
    try:
        worker.run()
    except BaseException as error:  # arq ends on SIGTERM with the cancellation of its main task
        if not isinstance(error, Exception) and type(error).__name__ != "CancelledError":
            raise


if __name__ == "__main__":
    sys.modules["tests.benchmarks.workers"] = sys.modules["__main__"]  # one `noop`, whoever imports it
    if sys.argv[1] == "arq":
        run_arq(*sys.argv[2:])
    else:
        run_runtime(*sys.argv[2:])
    print(_cpu_s(), flush=True)
