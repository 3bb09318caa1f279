"""A handler may fork. The child has a copy of the event loop and of everything in it, and is no worker.

Python's own (`multiprocessing`, `subprocess`) never come back to the loop: they end, or run another program. A bare
`os.fork()` may, and would then run the other jobs' handlers a second time, and read the parent's replies.
"""

import asyncio
import logging
import os
import signal
import threading
import weakref
from collections.abc import Sequence
from typing import Never


def keep_out(loop: asyncio.AbstractEventLoop) -> None:
    """From now on a child that was forked in this thread ends when it comes back to `loop`, before anything else of it
    runs there. (On uvloop: after what was to run in the same turn.)
    """
    home, here = weakref.ref(loop), threading.get_ident()

    def in_child() -> None:
        copy = home()
        if copy is None or not copy.is_running() or threading.get_ident() != here:
            return
        copy.call_soon(leave)
        # What is ready in this turn would run first: nothing public goes before it.
        if (ready := getattr(copy, "_ready", None)) is not None:
            ready.rotate(1)

    os.register_at_fork(after_in_child=in_child)


def leave_signals(numbers: Sequence[signal.Signals]) -> None:
    """From now on these do to a child that was forked what they do to any process.

    Else one that is to end by SIGTERM (so `multiprocessing.Pool` ends its own) would not; and its copy of the wake-up
    descriptor would tell us that we are to: from Python 3.12 on asyncio takes that from it, and only that.
    """

    def in_child() -> None:
        signal.set_wakeup_fd(-1)
        for number in numbers:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    os.register_at_fork(after_in_child=in_child)


def leave() -> Never:
    """End this process, which is such a child, and nothing but it."""
    logging.getLogger("runtime").error(
        "A process that a handler forked came back from it, and was ended: it should end by os._exit(), "
        "or be started by multiprocessing"
    )
    os._exit(1)
