"""Sees the handlers: imports their modules, all of them, whatever is wrong with one."""

import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import runtime
from runtime import registry
from runtime.core.diagnosis.handlers import Declared, Mistake, Project
from runtime.registry import Inventory


def see(modules: Sequence[str], folder: Path, chosen: Mapping[str, Any]) -> tuple[Project, Inventory]:
    began = time.monotonic()
    found = registry.inventory(modules, folder)
    took_s = time.monotonic() - began
    mistakes = dict.fromkeys(Mistake(one.message, one.cause, one.hint) for one in found.wrong)
    project = Project(
        named=tuple(found.named),
        chosen=bool(modules) or found.named != ["handlers"] or _is_there(folder, "handlers"),
        modules=found.modules,
        took_s=took_s,
        handlers=[Declared(name, one.spec.queue, one.spec.timeout_s) for name, one in sorted(found.handlers.items())],
        wrong=tuple(mistakes),
        grace_s=chosen["grace_s"],
        timeout_s=chosen["timeout_s"],
        other_runtime=_other_runtime(folder),
    )
    return project, found


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.py").exists()


def _other_runtime(folder: Path) -> str | None:
    """What a script in `folder` would import as `runtime`, where that is not this package."""
    ours = Path(runtime.__file__ or "").resolve().parent
    spec = PathFinder.find_spec("runtime", [str(folder), *sys.path])
    if spec is not None and spec.origin is not None and ours not in Path(spec.origin).resolve().parents:
        return spec.origin
    try:
        return f"the distribution `runtime` {metadata.version('runtime')}"
    except metadata.PackageNotFoundError:
        return None
