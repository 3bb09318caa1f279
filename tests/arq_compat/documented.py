# ruff: noqa: RUF012  # settings classes are written like this, and never made objects of
"""Applications as arq's documentation teaches to write them; each test names the settings that it serves.

They know neither the tests nor us: what they do is seen in the results of their jobs, and in a file of notes.
"""

import asyncio
import logging
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
from arq import Retry, cron, func
from arq.connections import RedisSettings
from arq.worker import RetryJob

Ctx = dict[Any, Any]
log = logging.getLogger(__name__)
REDIS = RedisSettings.from_dsn(os.environ.get("APPLICATION_REDIS", "redis://localhost"))


def note(*words: object) -> None:
    with open(os.environ["RUNTIME_TEST_NOTES"], "a") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


# Usage: a session that jobs share


class Session:
    def __init__(self) -> None:
        self.open = True

    async def get(self, url: str) -> str:
        assert self.open
        return f"content of {url}"

    async def aclose(self) -> None:
        self.open = False
        note("session closed")


async def download_content(ctx: Ctx, url: str) -> int:
    content = await ctx["session"].get(url)
    log.info("%s: %.80s...", url, content)
    return len(content)


async def startup(ctx: Ctx) -> None:
    ctx["session"] = Session()
    note("startup")


async def shutdown(ctx: Ctx) -> None:
    await ctx["session"].aclose()


class Usage:
    functions = [download_content]
    on_startup = startup
    on_shutdown = shutdown
    redis_settings = REDIS


class Inherits(Usage):
    """arq looks at the class alone, and finds no function."""

    max_jobs = 3


AS_DICT = {"functions": [download_content], "on_startup": startup, "on_shutdown": shutdown, "redis_settings": REDIS}


# Job ids, results, failures


async def the_task(ctx: Ctx, n: int = 0) -> int:
    note("run", ctx["job_id"], ctx["job_try"])
    return 42 + n


class Wrong(Exception):
    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} {code}")
        self.what, self.code = what, code

    def __reduce__(self) -> Any:
        return Wrong, (self.what, self.code)


class Unreadable(Exception):
    """Is written, and can be read by nobody."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} {code}")


async def fails(ctx: Ctx, how: str) -> None:
    if how == "builtin":
        raise ValueError("a text")
    if how == "own":
        raise Wrong("own", 7)
    if how == "own, unreadable":
        raise Unreadable("own", 7)
    raise asyncio.CancelledError


@dataclass
class Item:
    name: str
    parts: list["Item"]


async def item(ctx: Ctx, name: str) -> Item:
    return Item(name, [Item("part", [])])


async def name_of(ctx: Ctx, item: Item) -> str:
    return item.name + "".join(part.name for part in item.parts)


async def too_long(ctx: Ctx) -> None:
    await asyncio.sleep(30)


async def shape(ctx: Ctx, *args: Any, **kwargs: Any) -> list[Any]:
    """What a ctx holds."""
    assert ctx["redis"].default_queue_name == "arq:queue"
    ctx["own"] = 1
    late_ms = abs(ctx["score"] - ctx["enqueue_time"].timestamp() * 1000)
    return [sorted(ctx), ctx["job_try"], late_ms < 1, args, kwargs]


async def enqueues(ctx: Ctx, n: int) -> None:
    await ctx["redis"].enqueue_job("the_task", n, _job_id=f"by {ctx['job_id']}")


class Jobs:
    functions = [
        the_task,
        fails,
        item,
        name_of,
        shape,
        enqueues,
        func(too_long, timeout=0.3),
        func(the_task, name="unkept", keep_result=0),
        func(the_task, name="for ever", keep_result_forever=True),
        func("tests.arq_compat.documented.the_task", keep_result=timedelta(minutes=5)),
    ]
    redis_settings = REDIS
    runtime_types = [Item]


# What arq's own tests look at


async def returns_an_error(ctx: Ctx) -> Exception:
    return TypeError("a value")


async def unserializable(ctx: Ctx, n: int) -> Any:
    return lambda: None


async def crowd(ctx: Ctx) -> int:
    ctx["crowd"].append(1)
    await asyncio.sleep(0.2)
    now = len(ctx["crowd"])
    ctx["crowd"].pop()
    return now


class Behaviours:
    functions = [
        the_task,
        crowd,
        func(returns_an_error, name="error", keep_result=10),
        unserializable,
    ]
    ctx: Ctx = {"crowd": []}
    queue_name = "another:queue"
    max_jobs = 4
    poll_delay = 0.05
    redis_settings = REDIS


class KeepsNothing:
    functions = [the_task, fails]
    keep_result = 0
    redis_settings = REDIS


# Retrying


async def again(ctx: Ctx, until: int, defer: float = 0.0) -> int:
    note("run", ctx["job_id"], ctx["job_try"])
    if ctx["job_try"] < until:
        raise Retry(defer=defer * ctx["job_try"])
    return int(ctx["job_try"])


async def at_once(ctx: Ctx) -> int:
    if ctx["job_try"] < 3:
        raise RetryJob("once more")
    return int(ctx["job_try"])


class Retries:
    functions = [again, at_once, func(again, name="twice", max_tries=2)]
    max_tries = 4
    redis_settings = REDIS


class RetriesNot(Retries):
    functions = Retries.functions
    redis_settings = REDIS
    retry_jobs = False


# Hooks


async def hooked(ctx: Ctx, how: str = "") -> str:
    note("run", ctx["job_id"], ctx.get("by_start"))
    ctx["by_run"] = ctx["job_id"]
    if how == "retry" and ctx["job_try"] == 1:
        raise Retry(defer=0.2)  # what comes after the first run is over before the second begins
    if how == "fail":
        raise ValueError(how)
    return how


async def on_job_start(ctx: Ctx) -> None:
    ctx["by_start"] = ctx["job_try"]
    note("start", ctx["job_id"])


async def on_job_end(ctx: Ctx) -> None:
    result = await ctx["redis"].exists(f"arq:result:{ctx['job_id']}")
    note("end", ctx["job_id"], ctx["by_run"], result)


async def after_job_end(ctx: Ctx) -> None:
    result = await ctx["redis"].exists(f"arq:result:{ctx['job_id']}")
    note("after", ctx["job_id"], ctx["by_run"], result)


class Hooks:
    functions = [hooked]
    on_job_start = on_job_start
    on_job_end = on_job_end
    after_job_end = after_job_end
    ctx = {"given": 1}
    max_jobs = 1
    redis_settings = REDIS


# Serializers


class Packed:
    functions = [the_task, fails]
    redis_settings = REDIS
    job_serializer = msgspec.msgpack.encode
    job_deserializer = msgspec.msgpack.decode


# Jobs that are not asynchronous


def sync_task(n: int) -> int:
    time.sleep(0.01)
    return os.getpid() * 0 + n * n


async def run_sync_task(ctx: Ctx, n: int) -> int:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(ctx["pool"], partial(sync_task, n))


async def open_processes(ctx: Ctx) -> None:
    ctx["pool"] = ProcessPoolExecutor(1)


async def close_processes(ctx: Ctx) -> None:
    ctx["pool"].shutdown()


class Processes:
    functions = [run_sync_task]
    on_startup = open_processes
    on_shutdown = close_processes
    redis_settings = REDIS


# Long jobs


async def do_stuff(ctx: Ctx, seconds: float = 30.0) -> str:
    note("run", ctx["job_id"], ctx["job_try"])
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("cancelled", ctx["job_id"])
        raise
    return "done"


class Completes:
    functions = [do_stuff]
    job_completion_wait = 20
    redis_settings = REDIS


class Long:
    functions = [do_stuff]
    redis_settings = REDIS
    allow_abort_jobs = True
    poll_delay = 0.05
    health_check_interval = 30
    health_check_key = "our-health"


# Cron jobs


async def every_second(ctx: Ctx) -> None:
    note("cron", ctx["job_id"], ctx["job_try"])


async def at_startup(ctx: Ctx) -> None:
    note("startup", ctx["job_id"].partition(":1")[0])


async def by_each(ctx: Ctx) -> None:
    note("each", round(ctx["score"] / 1000))


class Crons:
    cron_jobs = [
        cron(every_second, second=set(range(60)), microsecond=0),
        cron(at_startup, month=1, day=1, run_at_startup=True),
        cron(by_each, name="by each", second=set(range(0, 60, 2)), microsecond=0, unique=False),
    ]
    redis_settings = REDIS
    poll_delay = 0.05
