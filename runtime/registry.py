"""Finds the handlers: imports the modules that are named, and collects what they declare."""

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from runtime.core.errors import HandlerInvalid, HandlerUnknown, LimitInvalid, OptionInvalid, Problem
from runtime.core.lifespan import Lifespan
from runtime.core.limits import Bucket
from runtime.core.middleware import Middleware
from runtime.core.policy import describe
from runtime.core.values import frozen
from runtime.declare import Handler

if TYPE_CHECKING:
    from runtime.core.schedule import Schedule

Handlers = Mapping[str, Handler[..., Any]]


def collect(modules: Sequence[str] = (), folder: Path | None = None) -> Handlers:
    """The handlers of `modules` (packages with their sub-modules), by name.

    Without any: those of `[tool.runtime] handlers` in the pyproject.toml of `folder` (default: the working directory),
    else the package `handlers`. Raises `HandlerInvalid` for a module that cannot be imported, for two handlers or
    quotas of one name, and where there is no handler at all.
    """
    found: dict[str, Handler[..., Any]] = {}
    names = _named(modules, folder)
    for value in _declared(names):
        if isinstance(value, Handler):
            _add(found, cast("Handler[..., Any]", value))
    if not found:
        raise HandlerInvalid(
            f"no handler in {', '.join(names)}", hint="declare one with @handler, or name another module"
        )
    _check_quotas(found)
    return found


@frozen
class Equipment:
    """What modules declare beside handlers."""

    buckets: Sequence[Bucket]
    lifespan: Lifespan[Any] | None
    middleware: Sequence[Middleware]
    """In the order of modules and declarations."""


UNEQUIPPED = Equipment((), None, ())


def equipment(modules: Sequence[str] = (), folder: Path | None = None) -> Equipment:
    """That of the same modules. Raises `HandlerInvalid` also for two rules under one name, and two lifespans."""
    buckets: dict[str, Bucket] = {}
    lifespans: list[Lifespan[Any]] = []
    middleware: dict[Middleware, None] = {}
    for value in _declared(_named(modules, folder)):
        for bucket in _buckets_of(value):
            _add_bucket(buckets, bucket)
        for lifespan in _lifespans_of(value):
            _add_lifespan(lifespans, lifespan)
        if isinstance(value, Middleware):
            middleware[value] = None
    return Equipment(list(buckets.values()), lifespans[0] if lifespans else None, list(middleware))


@frozen
class Inventory:
    """All that modules declare, and all that is wrong with them: what can be had is there, whatever cannot."""

    named: Sequence[str]
    """The modules looked into; those of a package beside it."""
    modules: int
    """As many were imported."""
    handlers: Handlers
    buckets: Sequence[Bucket]
    wrong: Sequence[Problem]


def inventory(modules: Sequence[str] = (), folder: Path | None = None) -> Inventory:
    """What `collect` and `equipment` are about, with every mistake instead of the first."""
    try:
        names = _named(modules, folder)
    except HandlerInvalid as problem:
        return Inventory((), 0, {}, (), (problem,))
    handlers: dict[str, Handler[..., Any]] = {}
    buckets: dict[str, Bucket] = {}
    lifespans: list[Lifespan[Any]] = []
    wrong: list[Problem] = []
    imported: list[ModuleType] = []
    for one in (one for name in names for one in _walk(name)):
        if isinstance(one, Problem):
            wrong.append(one)
        else:
            imported.append(one)
    for value in (value for module in imported for value in list(vars(module).values())):
        try:
            if isinstance(value, Handler):
                _add(handlers, cast("Handler[..., Any]", value))
            for new in _lifespans_of(value):
                _add_lifespan(lifespans, new)
            for bucket in _buckets_of(cast("object", value)):
                _add_bucket(buckets, bucket)
        except HandlerInvalid as problem:
            wrong.append(problem)
    try:
        _check_quotas(handlers)
    except HandlerInvalid as problem:
        wrong.append(problem)
    return Inventory(names, len(set(imported)), handlers, list(buckets.values()), wrong)


def _buckets_of(value: object) -> list[Bucket]:
    """Those of a handler, or the one that it is."""
    limits = value.spec.limit.costs if isinstance(value, Handler) else [value]
    return [limit for limit in limits if isinstance(limit, Bucket)]


def _add_bucket(found: dict[str, Bucket], new: Bucket) -> None:
    old = found.setdefault(new.name, new)
    if old.rule != new.rule:
        raise HandlerInvalid(
            f"two buckets are named {new.name!r}",
            cause=f"one of {old.rule}, one of {new.rule}",
            hint="declare it once, and import it where it is used",
        )
    if new.key is None:  # it stands for those of its keys
        found[new.name] = new


def _named(modules: Sequence[str], folder: Path | None) -> list[str]:
    folder = folder or Path.cwd()
    make_importable(folder)
    return list(modules) or _configured(folder)


def _declared(names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        modules: list[ModuleType] = []
        for module in _walk(name):
            if isinstance(module, Problem):
                raise module from None
            modules.append(module)
        for module in modules:
            yield from list(vars(module).values())


def _lifespans_of(value: Any) -> list[Lifespan[Any]]:
    """The one that it is."""
    return [value] if isinstance(value, Lifespan) else []


def _add_lifespan(found: list[Lifespan[Any]], new: Lifespan[Any]) -> None:
    if any(new is not old for old in found):
        raise HandlerInvalid(
            "two lifespans are declared",
            cause=f"{found[0]}, {new}",
            hint="a worker has one: open both in it, one `async with` within the other, and yield what holds them",
        )
    if not found:
        found.append(new)


def queues(handlers: Handlers) -> list[str]:
    """Those that the handlers are declared for, sorted."""
    return sorted({handler.spec.queue for handler in handlers.values()})


def schedules(handlers: Handlers, queues: Sequence[str]) -> "list[Schedule]":
    """Those of the handlers that are declared for these queues."""
    timed = [handler for handler in handlers.values() if handler.spec.timetable and handler.spec.queue in queues]
    if not timed:
        return []
    from runtime.core.schedule import Schedule  # most workers have none

    found: list[Schedule] = []
    for handler in timed:
        spec = handler.spec
        priority = spec.priority if isinstance(spec.priority, int) else handler.request().priority
        if spec.timetable is not None:
            found.append(Schedule(spec.name, spec.queue, spec.timetable, spec.misfire, priority, spec.shared_id))
    return found


def make_importable(folder: Path) -> None:
    """Let modules in `folder` be imported; last, as a file there must not hide an installed package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def find(handlers: Handlers, name: str) -> Handler[..., Any]:
    """The handler of this name. Raises `HandlerUnknown`, with the nearest one there is."""
    import difflib

    if name in handlers:
        return handlers[name]
    near = difflib.get_close_matches(name, handlers, 1)
    known = ", ".join(sorted(handlers))
    raise HandlerUnknown(
        f"no handler named {name!r}", hint=(f"did you mean {near[0]!r}? " if near else "") + f"there are: {known}"
    )


def _configured(folder: Path) -> list[str]:
    try:
        import tomllib  # where modules are named, nobody needs it

        project = tomllib.loads((folder / "pyproject.toml").read_text())
    except FileNotFoundError:
        return ["handlers"]
    except (OSError, ValueError) as error:
        raise HandlerInvalid(f"pyproject.toml cannot be read: {error}") from None
    said: Any = project
    defaults: Mapping[str, Any] = {"tool": {}, "runtime": {}, "handlers": ["handlers"]}
    for key, default in defaults.items():
        said = cast("dict[str, Any]", said).get(key, default) if isinstance(said, dict) else None
    match said:
        case [*names] if all(isinstance(name, str) for name in names):
            return names
        case _:
            raise HandlerInvalid("[tool.runtime] handlers in pyproject.toml is not a list of module names")


def _add(found: dict[str, Handler[..., Any]], new: Handler[..., Any]) -> None:
    old = found.setdefault(new.name, new)
    if old.function is not new.function:
        raise HandlerInvalid(
            f"two handlers are named {new.name!r}",
            cause=f"one at {old.spec.where}, one at {new.spec.where}",
            hint="rename one, or give it another name on the wire: @handler(name=…)",
        )


def _check_quotas(handlers: Handlers) -> None:
    seen: dict[str, Handler[..., Any]] = {}
    for handler in handlers.values():
        quota = handler.spec.quota
        if quota is not None and seen.setdefault(quota.name, handler).spec.quota is not quota:
            raise HandlerInvalid(
                f"two quotas are named {quota.name!r}",
                cause=f"one of the handler at {seen[quota.name].spec.where}, one of that at {handler.spec.where}",
                hint="rename one; or declare both handlers with the same Quota, to count their jobs together",
            )


def _walk(name: str) -> Iterator[ModuleType | Problem]:
    """The module, and if it is a package those in it; in the place of one that cannot be imported, why."""
    try:
        module = import_one(name)
    except HandlerInvalid as problem:
        yield problem
        return
    yield module
    for child in pkgutil.iter_modules(getattr(module, "__path__", []), prefix=f"{name}."):
        yield from _walk(child.name)


def import_one(name: str) -> ModuleType:
    """The module of this name. Raises `HandlerInvalid` with the line that failed."""
    try:
        return importlib.import_module(name)
    except (HandlerInvalid, LimitInvalid, OptionInvalid) as problem:
        raise _placed(problem) from None
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _missing(name) from None
        raise _failed(name, error) from None
    except (Exception, SystemExit) as error:
        raise (_missing(name) if name.startswith(".") else _failed(name, error)) from None


def _placed(problem: Problem) -> HandlerInvalid:
    """What a declaration was refused for, and the line where it stands."""
    where = _last_line_of_theirs(problem).strip()
    told = problem.cause is not None or where.rpartition(":")[0] in problem.message
    return HandlerInvalid(problem.message, cause=problem.cause if told else where, hint=problem.hint)


def _missing(name: str) -> HandlerInvalid:
    meant = ".".join(part for part in name.removesuffix(".py").split("/") if part not in ("", ".", ".."))
    return HandlerInvalid(
        f"there is no module {name!r}",
        cause=f"looked in {Path.cwd()} and where Python is installed",
        hint="name a module as Python imports it, "
        + ("e.g. handlers or app.jobs" if meant == name else f"not as a file: {meant}"),
    )


def _failed(name: str, error: BaseException) -> HandlerInvalid:
    failure = describe(error)
    text = error.msg if isinstance(error, SyntaxError) else failure.text
    where = _last_line_of_theirs(error)
    missing = isinstance(error, ModuleNotFoundError) and error.name
    return HandlerInvalid(
        f"the module {name!r} cannot be imported",
        cause=f"{where}{failure.error}: {text.splitlines()[0] if text else ''}",
        hint=f"install {missing}, or leave the module out"
        if missing
        else "nothing was started; correct the module first",
    )


def _last_line_of_theirs(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    theirs = [frame for frame in frames if not frame.filename.startswith(os.path.dirname(__file__))]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno} "
    return f"{theirs[-1].filename}:{theirs[-1].lineno} " if theirs else ""
