"""How this project connects to Redis: bounded, without hidden retries, and with errors that name no secret."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from runtime.ports import Away

CONNECT_S = 3.0
REPLY_S = 5.0
"""Longest wait for one reply. A server that is silent for longer is taken for lost; redis-py 5 would wait for ever."""
CONNECTIONS = 8


def _options(url: str, reply_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {"socket_connect_timeout": min(CONNECT_S, reply_s), "socket_timeout": reply_s}
    if urlsplit(url).scheme == "rediss":
        options["ssl_check_hostname"] = True  # redis-py 5 verifies the chain, but not the name
    return options


def connect(url: str, *, connections: int = CONNECTIONS, reply_s: float = REPLY_S) -> Any:
    """A client of at most `connections` connections; a further caller waits for a free one."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=reply_s,
        # A command that is sent twice may count twice: we send again ourselves, under the number of the first time.
        retry=AsyncRetry(NoBackoff(), 0),
        **_options(url, reply_s),
    )
    return redis.asyncio.Redis.from_pool(pool)  # closes the pool with the client


def connect_blocking(url: str, *, reply_s: float) -> Any:
    """A client with one connection, for a thread of its own; no call of it takes longer than about `reply_s`."""
    return redis.Redis.from_url(
        url,
        max_connections=1,
        retry=Retry(NoBackoff(), 0),
        **_options(url, reply_s),
    )


@contextmanager
def away_when_lost(what: str) -> Iterator[None]:
    """Turns every Redis error into `Away`. redis-py's own texts may hold a whole command, and so a job's arguments."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise Away(f"{what}: {cause_of(error)}") from None


def cause_of(error: BaseException) -> str:
    """The kind of trouble in a few words: the server's error code or the system's, never an argument."""
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "no answer in time"
    text = str(error)
    code = text.split(" ", 1)[0].rstrip(":,.")
    if isinstance(error, redis.AuthenticationError):
        return "wrong password or user"
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return "the server is still loading its data (LOADING)"
    if isinstance(error, redis.ReadOnlyError):
        return "the server is a replica (READONLY)"
    if "OOM" in text[:200]:
        return "the server is out of memory (OOM)"
    if isinstance(error, redis.ResponseError):
        return f"the server answered {code}" if code.isupper() and code.isalpha() else "the server refused a command"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    number = re.match(r"Error (\d+) connecting", text)
    if number:
        return os.strerror(int(number[1])).lower()
    for hint in ("refused", "reset", "closed", "Name or service not known", "No such file", "timed out"):
        if hint.lower() in text.lower():
            return {"closed": "connection closed", "reset": "connection reset", "refused": "connection refused"}.get(
                hint, hint
            )
    return type(error).__name__


def shown(url: str) -> str:
    """`url` without user, password and options: fit for logs and messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
