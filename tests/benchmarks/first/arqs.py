"""The job, for arq's worker at its defaults: `python -m arq tests.benchmarks.first.arqs.WorkerSettings`.

As a script it is the least that a process with an arq worker in it can be: no command line, no logs.
"""

import os
from typing import Any

from arq.connections import RedisSettings
from arq.worker import run_worker

from tests.benchmarks.first.mark import leave


async def mark(ctx: dict[Any, Any], path: str) -> None:
    leave(path)


class WorkerSettings:
    functions = (mark,)
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])


if __name__ == "__main__":
    run_worker(WorkerSettings)  # type: ignore[arg-type]  # a class like any of arq's examples
