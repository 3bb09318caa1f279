"""Watch the queues for workers that sleep, and wake them: for jobs of producers that ring no doorbell, such as stock
arq, and for those that come due later. Runs until SIGTERM, in a service that is always on.

It rings at RUNTIME_WAKE_URL where a job is due and no worker of its queue is awake: at once where Redis has keyspace
notifications (notify-keyspace-events with K$), else within 5 s, and for a deferred job when it is due. The queues are
those of -Q, else those of the handlers found here, else all that workers have said they serve.

An asyncio service can have it inside: `async with runtime.sentinel():`.
"""

import argparse
import sys

from runtime import settings


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-Q", "--queue", action="append", default=[], metavar="NAME", help="watch this queue; repeatable"
    )
    parser.add_argument("--url", help="ring here; goes before RUNTIME_WAKE_URL")


def run(args: argparse.Namespace) -> int:
    config = settings.read()
    if config.redis_disabled:
        print("REDIS_DISABLED is set: there is nothing to watch.", file=sys.stderr)
        return 0
    from runtime import alarm, client
    from runtime.cli.session import queues
    from runtime.cli.wake import addresses

    urls = addresses(args.url, config)
    url, server = client.redis_url(config)
    try:
        return alarm.watch(config, url, queues(args.queue), urls)
    finally:
        if server is not None:
            server.close()
