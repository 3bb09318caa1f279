"""Exit 0 if a worker is alive, 1 with the reason if not: for HEALTHCHECK and scripts.

It asks the worker's own port: http://127.0.0.1:PORT/livez, or --url. With --redis, or where RUNTIME_HTTP is off or
PORT is 0, it looks in Redis for a heartbeat of the last 2 minutes: of WORKER_ID, else of a worker on this host, or with
--any of whichever worker. A worker that has gone quiet sends no heartbeats; its port still answers.

Exit codes: 0 alive, 1 not alive, 69 Redis cannot be reached, 78 a setting is wrong.
--json prints one document: {"schema": "runtime.check/1", "alive": …, "asked": …, "reason": …}.
"""

import argparse
import http.client
import socket
from urllib.parse import urlsplit

from runtime import settings
from runtime.cli.display import roughly, say, say_json
from runtime.core.errors import UsageInvalid
from runtime.core.text import plain
from runtime.core.values import frozen

SCHEMA = "runtime.check/1"
TIMEOUT_S = 3.0
"""How long a port may take to answer: whoever asks has a deadline too."""


@frozen
class Verdict:
    alive: bool
    asked: str
    reason: str


def declare(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="ask the worker at this address, e.g. http://worker.railway.internal:3002")
    where.add_argument("--redis", action="store_true", help="look for its heartbeat instead of asking its port")
    parser.add_argument("--any", action="store_true", help="any live worker will do; implies --redis")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    if args.any and args.url:
        raise UsageInvalid("--any looks in Redis, --url asks one worker: choose one")
    verdict = _check(args)
    if args.json:
        document = {"alive": verdict.alive, "asked": verdict.asked, "reason": verdict.reason}
        say_json({"schema": SCHEMA, **document})
    else:
        say(plain(f"{'alive' if verdict.alive else 'not alive'}: {verdict.asked}: {verdict.reason}"))
    return 0 if verdict.alive else 1


def _check(args: argparse.Namespace) -> Verdict:
    if args.url:
        return _ask(args.url)
    config = settings.read()
    if args.redis or args.any or not config.http or config.port == 0:
        return _look(config, any_worker=args.any)
    return _ask(f"http://127.0.0.1:{config.port}")


def _ask(url: str) -> Verdict:
    """Ask a worker's /livez. Redirects are not followed: a worker sends none."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageInvalid("--url: an address that starts with http:// or https://", hint="http://127.0.0.1:3002")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=TIMEOUT_S)
    asked = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/livez"
    try:
        connection.request("GET", "/livez", headers={"Connection": "close"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return Verdict(False, asked, getattr(error, "strerror", None) or "no answer in time")
    finally:
        connection.close()
    return Verdict(status == 200, asked, f"it answers {status}")


def _look(config: settings.Settings, *, any_worker: bool) -> Verdict:
    from runtime.adapters.redis import inspector
    from runtime.adapters.redis.heartbeats import LIVE_S
    from runtime.cli.session import with_client

    named = config.worker_id != settings.own_name()
    asked = "any worker" if any_worker else config.worker_id if named else f"a worker on {socket.gethostname()}"
    now_ms, beats = with_client(lambda client: client.ask(inspector.workers))
    for beat in beats:
        if any_worker or (beat.worker_id == config.worker_id if named else beat.host == socket.gethostname()):
            asleep = beat.state == "quiet"  # the platform may have ended it: it comes back when somebody rings
            age = f"{roughly(beat.age_s(now_ms))} ago"
            said = f"asleep: it went quiet {age}" if asleep else f"its last heartbeat was {age}"
            whose = "" if any_worker or named else f"{beat.worker_id}: "
            return Verdict(asleep or beat.live(now_ms), asked, whose + said)
    return Verdict(False, asked, f"no heartbeat in the last {LIVE_S:g} s")
