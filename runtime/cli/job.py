"""Show where a job is (waiting, deferred, active, completed, failed, dead, cancelled or unknown), and its result."""

import argparse

from runtime.cli.session import show, timeout_s, with_client
from runtime.client import Client
from runtime.core.errors import JobFailed, ResultUnknown
from runtime.core.spec import DEFAULT_QUEUE


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the job's id")
    parser.add_argument("-Q", "--queue", default=DEFAULT_QUEUE, help=f"its queue [default: {DEFAULT_QUEUE}]")
    parser.add_argument("--wait", action="store_true", help="wait until it has ended")
    parser.add_argument("--timeout", default="5m", help="longest wait [default: 5m]")


def run(args: argparse.Namespace) -> int:
    longest_s = timeout_s(args.timeout)

    async def work(client: Client) -> int:
        job = client.job(args.id, args.queue)
        found: dict[str, object] = {"jobId": job.id, "status": await job.status()}
        if args.wait or found["status"] in ("completed", "failed", "cancelled", "dead"):
            try:
                found["result"] = await job.result(longest_s)
            except JobFailed as failure:
                found["error"] = {"type": failure.error, "message": failure.text}
            except ResultUnknown:
                pass  # its result was not kept, or has expired
            found["status"] = await job.status()
        show(found)
        return 0 if found["status"] in ("waiting", "deferred", "active", "completed") else 1

    return with_client(work)
