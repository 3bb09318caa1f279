"""What the system knows of this process, read from Linux's /proc; None where there is none."""

import os
import time
from pathlib import Path


def rss_bytes() -> int | None:
    """Memory held (proc(5), statm: its second field, in pages)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def age_ms() -> int | None:
    """Since the process was started, to 10 ms (proc(5), stat: the 22nd field, in clock ticks since boot)."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the 3rd field is the first here
        started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        return max(0, round(1000 * (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)))
    except (OSError, ValueError, IndexError, AttributeError):
        return None
