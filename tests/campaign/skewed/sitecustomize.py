"""With this folder on PYTHONPATH a wall clock is wrong, by as many seconds as the file RUNTIME_TEST_CLOCK says.

It is read at every look at the clock, so that it can be set while the process runs. `time.time` and `time.time_ns` are
wrong; `datetime.now` asks the system itself, and is not. What decides anything, here and in arq, asks `time`.
"""

import os
import time
from pathlib import Path

_file = Path(os.environ["RUNTIME_TEST_CLOCK"])
_right_ns = time.time_ns


def _wrong_ns() -> int:
    return _right_ns() + round(float(_file.read_text()) * 1e9)


time.time_ns = _wrong_ns
time.time = lambda: _wrong_ns() / 1e9
