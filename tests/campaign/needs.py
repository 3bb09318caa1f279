"""What some scenarios need of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import randrange
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


def _mount_namespace() -> str:
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    script = f"mount --bind {os.devnull} /etc/hosts"
    tried = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"it cannot be made here: {tried.stderr.strip()[:100]}"


MOUNT_NAMESPACE = Need("a namespace of mounts", _mount_namespace)


def with_names(folder: Path) -> list[str]:
    """Stands before a command that is to know the names of the file `hosts` in `folder`, and can ask nobody else."""
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    mounts = " && ".join(f"mount --bind {folder / name} /etc/{name}" for name in ("hosts", "resolv.conf"))
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


def _network_namespace() -> str:
    if shutil.which("ip") is None:
        return "ip is not installed"
    try:
        with island():
            return ""
    except OSError as failure:
        return f"it cannot be made here: {failure}"


@dataclass(frozen=True)
class Island:
    """A network of its own, with one way out of it."""

    name: str
    address: str
    """Of the machine, as seen from there."""

    @property
    def command(self) -> list[str]:
        """Stands before a command that is to run there, as the same process."""
        return ["ip", "netns", "exec", self.name]

    def cut_off(self) -> None:
        """No packet comes or goes, and nobody is told."""
        _ip("link", "set", self.name, "down")

    def join(self) -> None:
        _ip("link", "set", self.name, "up")


@contextmanager
def island() -> Iterator[Island]:
    """Raises `OSError` where none can be made."""
    name = f"rt{uuid4().hex[:8]}"
    net = f"10.{randrange(64, 250)}.{randrange(250)}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p", "netns", name)
        _ip("addr", "add", f"{net}.1/24", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "addr", "add", f"{net}.2/24", "dev", f"{name}p")
        _ip("-n", name, "link", "set", f"{name}p", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield Island(name, f"{net}.1")
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    tried = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise OSError(f"ip {' '.join(words[:3])}: {tried.stderr.strip()[:100]}")


NETWORK_NAMESPACE = Need("a namespace of networks", _network_namespace)
