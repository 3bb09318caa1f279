"""How this project connects to Redis: bounded, without hidden retries, and with errors that name no secret."""

import asyncio
import math
import os
import re
import select
import socket
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, urlsplit

import hiredis
import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection as BlockingAbstractConnection
from redis.connection import Connection as BlockingConnection
from redis.connection import SSLConnection as BlockingSSLConnection
from redis.connection import UnixDomainSocketConnection as BlockingUnixDomainSocketConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.retry import Retry

from runtime.adapters.egress import Row
from runtime.core.values import frozen
from runtime.ports import Away

# All of these are set on purpose: between redis-py 5 and 8 the defaults changed for each (no time-out, then 5 s; no
# retry, then three; RESP2, then 3; a pool of 2^31, then 100).
CONNECT_S = 3.0
"""Longest wait for a connection: a lost first packet is sent again after 1 s, a second after 3."""
REPLY_S = 4.0
"""Longest wait for one reply; a server that is silent for longer is taken for lost. Below the 5 s within which work is
to go on: who asked just before Redis came back, over a connection that did not, loses no more than that."""
CONNECTIONS = 8
"""A claim and a settlement at once, probes, and what handlers keep of their steps; further ones wait for their turn. A
hosted Redis counts connections, and one of them carries some thousand calls a second."""
ROOM = 2**15
"""A command of so many bytes, with those before it that have not gone out, never has to wait to be written: below the
64 KiB at which the event loops let a writer wait."""
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""An idle connection whose other end is gone is found dead in 11 s. The kernel asks, so it costs no command."""


def _options(url: str, reply_s: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_S if reply_s is None else min(CONNECT_S, reply_s),
        "socket_timeout": reply_s,
        "protocol": 2,  # what the scripts' readers are written for
        "health_check_interval": 0,  # no PING before a command: it would double what an idle worker sends
        "lib_name": None,  # two commands at the start of each connection, to say whose it is
        "lib_version": None,
    }
    parts = urlsplit(url)
    if parts.scheme != "unix":
        options["socket_keepalive"] = True
        options["socket_keepalive_options"] = {
            getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)
        }
    if parts.scheme == "rediss":
        # redis-py 5 verifies the chain, but not the name: whoever has a certificate for anything could be our server.
        options["ssl_check_hostname"] = ("ssl_cert_reqs", "none") not in parse_qsl(parts.query)
    return options


_NO_TLS_IN_TIME = "No TLS in time"
"""The text of an error: a server without TLS takes our greeting for the beginning of a line, and waits for the rest."""


class _Prompt(AbstractConnection):
    """Asks of the loop only what a command needs: redis-py 5 makes a task and a timer to write it, another timer and a
    turn of the loop to see that the connection is in order, and packs it in Python.

    Before Python 3.12 such a task also swallows a cancellation that comes as it ends (`asyncio.wait_for`).

    It enters what it sends: in its pool's `row` what opens and closes it, in `borrower` what is sent meanwhile.
    """

    def __init__(self, *, row: Row, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]  # in redis-py
        self._row = self.borrower = row
        self._inlet = select.poll()
        self._pid = 0
        """Of the process that has connected."""
        self.astray = False
        """To be closed before anybody uses it again."""

    async def _connect(self) -> None:
        self.borrower = self._row
        self._row.stirred()
        self._pid = os.getpid()
        self.astray = False
        await super()._connect()  # type: ignore[safe-super,no-untyped-call]  # each class below has one
        self._inlet = select.poll()
        self._inlet.register(cast(Any, self)._writer.get_extra_info("socket").fileno(), select.POLLIN)

    async def disconnect(self, *args: Any, **options: Any) -> None:
        if self.is_connected:
            self._row.stirred()
        writer: asyncio.StreamWriter | None = cast(Any, self)._writer
        try:
            await super().disconnect(*args, **options)
        except redis.TimeoutError:  # TLS waits for the other end. Who gives it back to its pool is not to fail for that
            if writer is not None:
                writer.transport.abort()

    async def can_read_destructive(self) -> bool:
        """Whether there is something that nobody has asked for. Raises `redis.ConnectionError` where it has ended."""
        if self._inlet.poll(0):
            for _ in range(2):  # turns: in the first the loop is told of it, and reads. It may be of TLS alone
                await asyncio.sleep(0)
        if not self._is_open:  # or closed meanwhile, by us
            raise redis.ConnectionError("Connection closed by server.")
        return self._has_read

    @property
    def is_ready(self) -> bool:
        """It is open, and nothing is there that nobody has asked for."""
        return self._is_open and not self._inlet.poll(0) and not self._has_read

    @property
    def _is_open(self) -> bool:
        this: Any = self
        return this.is_connected and not (this._reader.at_eof() or this._writer.transport.is_closing())

    @property
    def _has_read(self) -> bool:
        this: Any = self
        return bool(this._reader._buffer or this._parser._reader.has_data())

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await cast(Any, super()).read_response(*args, **options)
        except redis.ResponseError as error:
            cause = _known(error)
            self.astray |= cause is not None and cause.effect == "leave"
            raise

    def pack_command(self, *args: Any) -> list[bytes]:
        # In Python a batch of a hundred outcomes takes a millisecond. A command's name may be two words.
        return [cast(Any, hiredis).pack_command((*args[0].split(), *args[1:]))]

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if os.getpid() != self._pid:  # no error of redis-py's: it would disconnect, and our parent with us
            raise RuntimeError("a connection to Redis is of no use in a process that was forked from its own")
        self.borrower.sent()
        writer: Any = cast(Any, self)._writer
        if writer is not None and isinstance(command, list):
            data = b"".join(command)
            if writer.transport.get_write_buffer_size() + len(data) <= ROOM:
                writer.transport.write(data)  # if the connection has ended, who reads is told
                return
        reply_s, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(reply_s):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise redis.TimeoutError("Timeout writing to socket") from None  # it has disconnected
        finally:
            self.socket_timeout = reply_s


class _Tcp(_Prompt, Connection):
    pass


class _Tls(_Prompt, SSLConnection):
    async def _connect(self) -> None:
        try:
            await super()._connect()
        except TimeoutError:
            raise redis.ConnectionError(_NO_TLS_IN_TIME) from None


class _Unix(_Prompt, UnixDomainSocketConnection):
    pass


_PROMPT: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


_LATE_S = 0.5
"""A timer that is so late tells of an event loop that was blocked: nobody could give anything back meanwhile."""


class _Pool(redis.asyncio.ConnectionPool):
    """At most so many connections; when all are in use, a further caller waits for his turn: as long as the line moves,
    and for up to `timeout` s where it does not. However many wait over a slow way, that is no trouble of the server's.

    redis-py's pool that waits takes a lock and sets a timer also where a connection is free.
    """

    def __init__(self, *, max_connections: int, timeout: float | None, **options: Any) -> None:
        super().__init__(max_connections=max_connections, **options)  # pyright: ignore[reportUnknownMemberType]
        self.timeout = timeout
        self._free = asyncio.Semaphore(max_connections)
        self._moved_at = -math.inf
        """When a connection that works was given back last, monotonic."""

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """Raises `redis.ConnectionError` when none that works has come free in time, for anybody."""
        if self._free.locked():
            await self._stand_in_line(math.inf if self.timeout is None else self.timeout)
        else:
            await self._free.acquire()  # at once
        try:
            connection: Any = cast(Any, self).get_available_connection()
        except BaseException:
            self._free.release()
            raise
        if not connection.is_ready:
            try:
                await self.ensure_connection(connection)
            except BaseException:
                await self.release(connection)
                raise
        return connection

    async def _stand_in_line(self, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        look_at = waits_since = time.monotonic()
        next_look: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal look_at, waits_since, next_look
            now = time.monotonic()
            if now - look_at > _LATE_S:
                waits_since = now
            left_s = max(waits_since, self._moved_at) + patience_s - now
            if left_s <= 0:
                patience.reschedule(loop.time())
            elif left_s < math.inf:
                look_at, next_look = now + left_s, loop.call_later(left_s, look)

        try:
            async with asyncio.timeout(None) as patience:
                look()
                await self._free.acquire()
        except TimeoutError:
            raise redis.ConnectionError("No connection available.") from None
        finally:
            if next_look is not None:
                next_look.cancel()

    async def release(self, connection: AbstractConnection) -> None:
        try:
            if cast(_Prompt, connection).astray:
                await connection.disconnect()
            elif connection.is_connected:
                self._moved_at = time.monotonic()
        finally:  # without redis-py's event, for which nobody is there
            this = cast(Any, self)
            this._in_use_connections.remove(connection)
            this._available_connections.append(connection)
            self._free.release()


class _Share:
    """A pool, as one of its borrowers sees it: what is sent over its connections is entered in that one's row."""

    def __init__(self, pool: Any, row: Row) -> None:
        self._pool = pool
        self._row = row

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        connection = await self._pool.get_connection(*args, **options)
        connection.borrower = self._row
        return connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class _Blocking(BlockingAbstractConnection):
    """Enters what it sends."""

    def __init__(self, *, row: Row, **options: Any) -> None:
        super().__init__(**options)
        self._row = row

    def _connect(self) -> Any:
        self._row.stirred()
        return super()._connect()  # type: ignore[safe-super,no-untyped-call]  # each class below has one

    def disconnect(self, *args: Any, **options: Any) -> None:
        if cast(Any, self)._sock is not None:
            self._row.stirred()
        cast(Any, super()).disconnect(*args, **options)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._row.sent()
        cast(Any, super()).send_packed_command(command, check_health)


class _BlockingTcp(_Blocking, BlockingConnection):
    pass


class _BlockingTls(_Blocking, BlockingSSLConnection):
    def _connect(self) -> Any:
        try:
            return super()._connect()
        except TimeoutError:
            raise redis.ConnectionError(_NO_TLS_IN_TIME) from None


class _BlockingUnix(_Blocking, BlockingUnixDomainSocketConnection):
    pass


_BLOCKING: dict[type[BlockingAbstractConnection], type[BlockingAbstractConnection]] = {
    BlockingConnection: _BlockingTcp,
    BlockingSSLConnection: _BlockingTls,
    BlockingUnixDomainSocketConnection: _BlockingUnix,
}


def connect(
    url: str, *, connections: int = CONNECTIONS, reply_s: float | None = REPLY_S, row: Row | None = None
) -> Any:
    """A client of at most `connections` connections; a further caller waits for a free one.

    What it sends is entered in `row`. With `reply_s` None who asks sets his own deadline.
    """
    row = row or Row()
    pool = _Pool.from_url(  # pyright: ignore[reportUnknownMemberType]  # in redis-py
        url,
        max_connections=connections,
        timeout=reply_s,
        # A command that is sent twice may count twice: we send again ourselves, under the number of the first time.
        retry=AsyncRetry(NoBackoff(), 0),
        row=row,
        **_options(url, reply_s),
    )
    pool.connection_class = _PROMPT[pool.connection_class]
    return redis.asyncio.Redis.from_pool(cast(Any, _Share(pool, row)))  # closes the pool with the client


def lent(client: Any, row: Row) -> Any:
    """The connections of `client`, which remains their owner, for somebody else: what that one sends is in `row`."""
    return redis.asyncio.Redis(connection_pool=cast(Any, _Share(client.connection_pool, row)))


async def exchange(client: Any, *commands: Sequence[Any]) -> list[Any]:
    """Send these together, over one connection; their replies, in which a refusal is a value.

    Raises `TROUBLE` when the connection is lost. Cancelled, it closes it: the server may have done what was asked.
    """
    pool = client.connection_pool
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(
            [part for command in commands for part in connection.pack_command(*command)]
        )
        return [await _reply(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except redis.ResponseError as refusal:
        return refusal


async def next_message(channel: Any, longest_s: float) -> dict[str, Any] | None:
    """What a subscription hears next; None: nothing within `longest_s`. Raises `TROUBLE` when its connection is lost.

    A connection that the system has given up (ETIMEDOUT) is a `TimeoutError` to redis-py, which takes it for the end of
    the wait: it would hear nothing at once, again and again, and leave the event loop to nobody.
    """
    began = time.monotonic()
    message: dict[str, Any] | None = await channel.get_message(timeout=longest_s)
    if message is None and time.monotonic() - began < longest_s / 2:
        raise redis.ConnectionError("Connection lost")
    return message


def connect_blocking(url: str, *, reply_s: float, row: Row | None = None) -> Any:
    """A client with one connection, for a thread of its own; no call of it takes longer than about `reply_s`.

    What it sends is entered in `row`.
    """
    client: Any = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]  # in redis-py
        url,
        max_connections=1,
        retry=Retry(NoBackoff(), 0),
        row=row or Row(),
        **_options(url, reply_s),
    )
    client.connection_pool.connection_class = _BLOCKING[client.connection_pool.connection_class]
    return client


TROUBLE = (RedisError, OSError)
"""What a call of redis-py raises for a server that is lost, or refuses. The texts may hold a job's arguments."""


@contextmanager
def away_when_lost(what: str) -> Generator[None]:
    """Turns every Redis error into `Away`, and so hides redis-py's own texts."""
    try:
        yield
    except TROUBLE as error:
        raise away_of(error, what) from None


def away_of(error: BaseException, what: str) -> Away:
    """What `error` means to who asked for `what`."""
    return Away(cause_of(error), what, refused=isinstance(error, redis.ResponseError))


def is_too_large(error: BaseException) -> bool:
    """This request is refused for its size, and nothing of it was done."""
    return _known(error) is _TOO_LARGE


def concerns_the_server(error: BaseException) -> bool:
    """Nobody is served, or nobody may write: not just a key of a wrong type, or a request that is too large."""
    cause = _known(error)
    return not isinstance(error, redis.ResponseError) if cause is None else cause.effect != "refuse"


def cause_of(error: BaseException) -> str:
    """The kind of trouble in a few words: the server's error code or the system's, never an argument."""
    cause = _known(error)
    if cause is not None:
        return cause.said
    text = str(error)
    if isinstance(error, redis.ResponseError):
        code = re.split(_IN_A_PIPELINE, text)[-1].split(" ", 1)[0].rstrip(":,.")
        return f"the server answered {code}" if code.isupper() and code.isalpha() else "the server refused a command"
    number = re.search(r"(?:^Error |Errno |: \()(\d+)\b", text)
    if number:
        return os.strerror(int(number[1])).lower()
    return type(error).__name__


Effect = Literal["wait", "leave", "refuse"]
"""What follows: nobody is served until it is over; the same, and the connection is closed, as it may lead to a primary
that is the primary no more, would be good for ever, and of no use; this one request is refused, others are not."""


@frozen
class _Cause:
    """One row of the table: class or text of an error, and what people are told."""

    kind: type[BaseException] | None
    text: str | None
    """A pattern."""
    said: str
    effect: Effect = "wait"


# Upstash (its pages of troubleshooting): a body, a result or an id.
_TOO_LARGE = _Cause(
    None, "max (?:request|single record|key|member) size exceeded", "it is larger than the plan allows", "refuse"
)

# The first row that fits. redis-py takes the code off the text of an error for which it has a class, and not every
# version has the same classes. A script's error may have its code further in (before Redis 7), one of a pipeline too.
_CAUSES: tuple[_Cause, ...] = (
    # The way there.
    _Cause(redis.TimeoutError, None, "no answer in time"),
    _Cause(TimeoutError, None, "no answer in time"),
    _Cause(ConnectionRefusedError, "Connection refused|Connect call failed|Errno 111", "connection refused"),
    _Cause(ConnectionResetError, "Connection reset|Broken pipe", "connection reset"),
    _Cause(None, "Connection (?:closed|lost)|EOF occurred", "connection closed"),
    _Cause(None, "No connection available", "all connections are in use"),
    _Cause(None, _NO_TLS_IN_TIME, "no answer to TLS in time"),
    _Cause(None, "(?:Hostname|IP address) mismatch", "the server's certificate is for another host"),
    _Cause(None, "certificate has expired", "the server's certificate has expired"),
    _Cause(None, "CERTIFICATE_VERIFY_FAILED", "the server's certificate is not trusted"),
    _Cause(None, "CERTIFICATE_REQUIRED", "the server wants a certificate of ours"),
    _Cause(None, r"\[X509|\[PEM|PEM lib|KEY_VALUES_MISMATCH", "a certificate or key of ours cannot be read"),
    _Cause(None, r"\[SSL|_ssl\.c", "no TLS with the server"),
    _Cause(redis.InvalidResponse, None, "what answers is no Redis, or speaks TLS"),
    _Cause(socket.gaierror, r"^Error -\d+ connecting", "the host's name is not known"),
    # The server, to everybody.
    _Cause(None, "max number of clients", "the server has too many clients"),
    _Cause(None, "max concurrent connections exceeded", "the plan's limit of connections is reached"),
    _Cause(None, "max (?:daily request|requests) limit exceeded", "the plan's quota of requests is used up"),
    _Cause(None, "DB capacity quota exceeded", "the plan's quota of memory is used up"),
    _TOO_LARGE,
    _Cause(BusyLoadingError, "LOADING ", "the server is still loading its data (LOADING)"),
    _Cause(None, "MASTERDOWN ", "the server is a replica that has lost its primary (MASTERDOWN)", "leave"),
    _Cause(None, "BUSY ", "the server is busy with a long script (BUSY)"),
    _Cause(ClusterDownError, "CLUSTERDOWN ", "the cluster is down (CLUSTERDOWN)"),
    _Cause(None, "(?:MOVED|ASK) ", "the key is on another node of a cluster (MOVED)"),
    # The server, to this user.
    _Cause(None, "NOAUTH |Authentication required", "the server wants a password (NOAUTH)"),
    _Cause(AuthenticationError, "WRONGPASS |invalid password", "wrong password or user"),
    _Cause(
        NoPermissionError,
        "NOPERM |ACL failure in script|The user executing the script can't",  # Redis 7.2 and Valkey; Redis 7.0
        "the user lacks a permission (NOPERM)",
    ),
    # The server, to who writes.
    _Cause(ReadOnlyError, "READONLY |UNBLOCKED ", "the server is a replica (READONLY)", "leave"),
    _Cause(OutOfMemoryError, "OOM ", "the server is out of memory (OOM)"),
    _Cause(None, "MISCONF ", "the server cannot save its data, and takes none (MISCONF)"),
    _Cause(None, "NOREPLICAS ", "the server has too few replicas to take data (NOREPLICAS)", "leave"),
)
_IN_A_PIPELINE = r"caused error: (?:\(['\"])?"  # redis-py 5 shows the error's tuple of arguments
_BEFORE = rf"(?:^|^ERR |: -| -|{_IN_A_PIPELINE})"
"""What may come before the code or the text of an answer."""


def _known(error: BaseException) -> _Cause | None:
    text = str(error)
    anywhere = not isinstance(error, redis.ResponseError)
    for cause in _CAUSES:
        if cause.kind is not None and isinstance(error, cause.kind):
            return cause
        if cause.text is not None and re.search(cause.text if anywhere else f"{_BEFORE}(?:{cause.text})", text):
            return cause
    return None


def shown(url: str) -> str:
    """`url` without user, password and options: fit for logs and messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
