"""A throw-away server for tests: real, on a unix socket and a loopback port, and made to be killed.

The binary is RUNTIME_TEST_SERVER, else the one that the embedded server would use.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError

from runtime.adapters.embedded import EmbeddedUnavailable, server_binary

_START_S = 10


class Server:
    """One server process. Its two addresses stay the same over `kill()`, `stop()` and `restart()`.

    Without `data` it forgets everything when it ends; with it every write is on disk before it is answered. `options`
    are further ones of the server's own.
    """

    def __init__(self, data: Path | None = None, binary: str | None = None, options: Sequence[str] = ()) -> None:
        self._options = options
        self.binary = binary or os.environ.get("RUNTIME_TEST_SERVER") or server_binary() or ""
        if not self.binary:
            raise EmbeddedUnavailable
        self._data = data
        self._home = Path(tempfile.mkdtemp(prefix="rt-"))  # not tmp_path: a socket's path ends at 107 bytes
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._home}/s"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it unless it runs, and wait until it answers."""
        first = not self._port
        while not self.running:
            self._port = self._port or free_port()
            self._launch()
            if self._comes_up():
                break
            self.kill()
            log = self._log()
            if not first or "in use" not in log:
                self.close()
                raise RuntimeError(f"{self.binary} did not start:\n{log}")
            self._port = 0  # somebody was faster: take another
        return self

    def stop(self) -> None:
        """End it in good order; without effect if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: connections break, and nothing is saved that was not already."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and never answers, like a host that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Running, awake and empty, whatever the last test did to it."""
        self.start()
        self.resume()
        with Redis.from_url(self.url) as redis:
            redis.flushall()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self) -> None:
        self._reap()
        (self._home / "log").unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, start_new_session=True)
        self._warden = _warden(self._process.pid, self._home)

    def _command(self) -> list[str]:
        memory_only = ("--dir", str(self._home), "--appendonly", "no")
        durable = ("--dir", str(self._data), "--appendonly", "yes", "--appendfsync", "always")
        return [
            *(self.binary, "--bind", "127.0.0.1", "--port", str(self._port), "--unixsocket", f"{self._home}/s"),
            *("--save", "", "--enable-debug-command", "local", "--logfile", f"{self._home}/log"),
            *(durable if self._data else memory_only),
            *self._options,
        ]

    def _comes_up(self) -> bool:
        until = time.monotonic() + _START_S
        with Redis.from_url(self.url, socket_timeout=1) as redis:
            while self.running and time.monotonic() < until:
                try:
                    return bool(redis.ping())
                except (ConnectionError, TimeoutError):  # it also says the first while it loads
                    time.sleep(0.003)
        return False

    def _log(self) -> str:
        log = self._home / "log"
        return log.read_text() if log.exists() else ""

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self.running:
            self.resume()  # a stopped process would not see SIGTERM
            self._process.send_signal(how)
        self._reap()

    def _reap(self) -> None:
        if self._warden is not None:
            self._warden.kill()  # first: once the server is reaped, its number may be somebody else's
            self._warden.communicate()
        if self._process is not None:
            self._process.wait()
        self._process = self._warden = None


def _warden(server: int, home: Path) -> subprocess.Popen[bytes]:
    """Ends the server when this process is gone, however it went: its end of the pipe closes."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r line; kill -KILL "$0"; rm -rf "$1"', str(server), str(home)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def free_port() -> int:
    """Below the range from which the kernel numbers outgoing connections: it is still free at a restart."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
