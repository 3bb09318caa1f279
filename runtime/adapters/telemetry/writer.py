"""Writes lines to a file descriptor from a thread of its own: who has something to say never waits for who reads it.

Neither `logging.handlers.QueueHandler` nor structlog has that whole: a bound in bytes, drops that are told in their
place, a bounded end, processes that a handler forks, and a destructor that speaks in the middle of a line.
The descriptor stays as it is: O_NONBLOCK would hold for every process that has the same pipe or terminal.
"""

import atexit
import io
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST = 4 * 1024 * 1024
"""Bytes of lines that may wait while as many are being written. What comes then is dropped, and counted."""
LONGEST = 1024 * 1024
"""Most bytes of a line that is printed in parts; then it is written in parts, too."""
CLOSE_S = 1.0
"""How long the end of the process waits for lines to be written."""


class LineWriter:
    """Takes lines in any thread, writes them in that order, and never blocks or raises.

    A line is written whole or not at all. `lost` makes the line that stands where so many others are missing: nobody
    has read for too long, or they could not be written (the reader has gone, the disk is full). Until it ends the
    process loses none but those, and by SIGKILL those of its last milliseconds.
    """

    def __init__(self, fd: int, lost: Callable[[int], bytes]) -> None:
        self._fd = fd
        self._lost = lost
        self._lock = threading.RLock()  # whoever holds it may be interrupted by a destructor that has something to say
        self._lines: list[bytes] = []
        self._size = 0
        self._begun = b""
        self._missing = 0
        self._torn = False
        self._at_once = False
        self._more: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="runtime-log", daemon=True)
        self._thread.start()
        os.register_at_fork(after_in_child=self._forked)
        atexit.register(self.close)

    def write(self, line: bytes) -> None:
        """Have `line` written soon, with what ends it; after `close` it is written at once."""
        with self._lock:
            if self._at_once:
                self._put([line], 0)
            elif self._lines and self._size + len(line) > MOST:
                self._missing += line.count(b"\n")
            else:
                self._lines.append(line)
                self._size += len(line)
                if len(self._lines) == 1:
                    self._more.put(True)

    def write_part(self, data: bytes) -> None:
        """Likewise for what need be no line yet: it waits for its end."""
        with self._lock:
            lines, end, self._begun = (self._begun + data).rpartition(b"\n")
            if end:
                self.write(lines + end)
            if self._begun and (self._at_once or len(self._begun) > LONGEST):
                self._write_begun()

    def _write_begun(self) -> None:
        begun, self._begun = self._begun, b""
        self.write(begun)

    def close(self, within_s: float = CLOSE_S) -> None:
        """Return when everything is written, or after `within_s`. May be called again."""
        with self._lock:
            if self._begun:
                self._write_begun()
        self._more.put(False)
        self._thread.join(within_s)

    def _run(self) -> None:
        while self._more.get():
            self._put(*self._take())
        with self._lock:
            while self._lines:
                self._put(*self._take())
            self._at_once = True

    def _take(self) -> tuple[list[bytes], int]:
        with self._lock:
            taken = self._lines, self._missing
            self._lines, self._size, self._missing = [], 0, 0
        return taken

    def _put(self, lines: list[bytes], missing: int) -> None:
        """Write `lines`, and that after them so many are missing."""
        data = b"".join((b"\n" if self._torn else b"", *lines, self._lost(missing) if missing else b""))
        written = 0
        try:
            while written < len(data):
                written += self._put_some(data[written:] if written else data)
        except OSError:
            unwritten = data.count(b"\n", written)
            with self._lock:
                self._missing += unwritten + missing - (1 if missing else 0)
        if written:
            self._torn = data[written - 1] != 0x0A

    def _put_some(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # somebody else who has it has made it so
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0

    def _forked(self) -> None:
        """This is a child now: what waits is its parent's to write, and the thread is not here."""
        self._lock = threading.RLock()
        self._lines, self._size, self._begun, self._missing = [], 0, b"", 0
        self._at_once = True


def text_of(writer: LineWriter, fd: int, encoding: str) -> TextIO:
    """A stream in the place of `sys.stdout`: what is printed keeps its order among the lines, and does not block."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(writer, fd)), encoding=encoding, errors="backslashreplace", line_buffering=True
    )


class _Raw(io.RawIOBase):
    def __init__(self, writer: LineWriter, fd: int) -> None:
        self._writer = writer
        self._fd = fd

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        taken = bytes(data)
        if self.isatty():  # where somebody may be waiting for the prompt
            self._writer.write(taken)
        else:
            self._writer.write_part(taken)
        return len(taken)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)
