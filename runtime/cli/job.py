"""Show where a job is (waiting, deferred, active, completed, failed, dead, cancelled or unknown), how far it is, and
its result; or cancel it. With --arq, a job of an arq application."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from runtime.adapters.redis import board, inspector
from runtime.adapters.redis.pickles import Undecodable
from runtime.cli import without_secrets
from runtime.cli.display import say_json
from runtime.cli.session import Owner, declare_arq, owner, timeout_s, with_client
from runtime.client import Cancel, Client, Job
from runtime.core.errors import JobFailed, RedisRefused, RedisUnreachable, ResultUnknown
from runtime.core.spec import DEFAULT_QUEUE
from runtime.core.text import one_line


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the job's id")
    parser.add_argument(
        "-Q", "--queue", metavar="NAME",
        help="its queue [default: whichever it is in, of those of handlers or --arq, of workers, and arq:queue]",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--wait", action="store_true", help="wait until it has ended")
    what.add_argument("--cancel", action="store_true", help="stop it, whether it waits or runs")
    parser.add_argument("--timeout", default="5m", help="longest wait [default: 5m]")
    declare_arq(parser)


def run(args: argparse.Namespace) -> int:
    longest_s, whose = timeout_s(args.timeout), owner(args)

    async def cancel(client: Client) -> int:
        place = await _place(client, args.id, args.queue, whose)
        said = await client.cancel(args.id, place)
        ended = await client.status(args.id, place) if said == "gone" else None
        what = f"it has ended, there is nothing to cancel: {ended}" if ended in _ENDS else _SAID[said]
        print(f"{one_line(args.id)}: {what}")
        return 1 if said == "gone" else 0

    async def work(client: Client) -> int:
        job = client.job(args.id, await _place(client, args.id, args.queue, whose))
        found: dict[str, object] = {"jobId": job.id, "status": await job.status()}
        if found["status"] == "active" and not args.wait and (progress := await _progress(job)):
            found["progress"] = progress
        if args.wait or found["status"] in _ENDS:
            try:
                found["result"] = await job.result(longest_s)
            except JobFailed as failure:
                found["error"] = {"type": failure.error, "message": without_secrets(failure.text)}
            except ResultUnknown:
                pass  # its result was not kept, or has expired
            except Undecodable as refusal:  # an arq worker's, of a type of its application's
                found["error"] = {"type": "unreadable", "message": str(refusal)}
            found["status"] = await job.status()
        say_json(found)
        return 0 if found["status"] in ("waiting", "deferred", "active", "completed") else 1

    return with_client(cancel if args.cancel else work, whose)


_SAID: dict[Cancel, str] = {
    "cancelled": "cancelled; it had not been running",
    "asked": "it is running; its worker has been asked to stop it",
    "gone": "there is no such job in the queues that are known: it has ended, or never was",
}


_ENDS = ("completed", "failed", "cancelled", "dead")


async def _progress(job: Job[Any]) -> dict[str, Any] | None:
    """How far it is, for who may read that."""
    with suppress(RedisRefused, RedisUnreachable):
        progress = await job.progress()
        return None if progress is None else board.shown(progress)
    return None


async def _place(client: Client, job_id: str, named: str | None, whose: Owner) -> str:
    """The queue that the job is in; any, if it is in none that is known."""
    if named:
        return named
    names = await _known(client, whose)
    try:
        return (await client.find(job_id, names))[0]
    except (RedisRefused, RedisUnreachable):  # of some queues, as a user who has rights to others alone may not
        readable: list[str] = []
        for name in names:
            with suppress(RedisRefused, RedisUnreachable):
                place, status = await client.find(job_id, [name])
                if status in ("waiting", "deferred", "active"):
                    return place
                readable.append(name)
        return readable[0] if readable else DEFAULT_QUEUE


async def _known(client: Client, whose: Owner) -> Sequence[str]:
    """Queues of workers that are gone count too: nobody else may know where their jobs are."""
    names = {DEFAULT_QUEUE, *whose.queues()}
    with suppress(RedisRefused, RedisUnreachable):  # a producer may not be allowed to read what workers say
        _, beats = await client.ask(inspector.workers)
        names.update(queue for beat in beats for queue in beat.queues)
    return sorted(names)
