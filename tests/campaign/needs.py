"""What some scenarios need of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from uuid import uuid4

from tests.campaign.scenario import Need


def _strace() -> str:
    if shutil.which("strace") is None:
        return "it is not installed"
    # As in a container without the capability: it is there, and may not look.
    tried = subprocess.run(
        ["strace", "-qq", "-e", "inject=getpid:retval=0", "-o", os.devnull, "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"it does not work here: {tried.stderr.strip()[:100]}"


STRACE = Need("strace", _strace)


def _cgroup() -> str:
    try:
        with memory_limit(1 << 30):
            return ""
    except OSError as failure:
        return f"no control group can be made here: {failure.strerror}"


CGROUP = Need("a memory limit", _cgroup)


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[list[str]]:
    """What stands before a command so that the kernel kills it when it has more memory. Either version of cgroups."""
    first = Path("/sys/fs/cgroup/memory")
    home, file = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    group = home / f"rt-{uuid4().hex[:12]}"
    group.mkdir()
    try:
        (group / file).write_text(str(limit_bytes))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    for _ in range(100):  # its last process may not be quite gone
        try:
            group.rmdir()
            return
        except OSError:
            sleep(0.02)


def _pid_namespace() -> str:
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    tried = subprocess.run([*AS_PID_1, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"it cannot be made here: {tried.stderr.strip()[:100]}"


AS_PID_1 = ("unshare", "--pid", "--fork", "--kill-child")
"""Stands before a command. The process that is started waits for it, and exits as it does."""
PID_NAMESPACE = Need("a namespace of processes", _pid_namespace)
