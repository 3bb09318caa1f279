"""What some scenarios need of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.campaign.scenario import Need


def _strace() -> str:
    if shutil.which("strace") is None:
        return "it is not installed"
    # As in a container without the capability: it is there, and may not look.
    tried = subprocess.run(
        ["strace", "-qq", "-e", "inject=getpid:retval=0", "-o", os.devnull, "true"], capture_output=True, text=True
    )
    return "" if tried.returncode == 0 else f"it does not work here: {tried.stderr.strip()[:100]}"


STRACE = Need("strace", _strace)
