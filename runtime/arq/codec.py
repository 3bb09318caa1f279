"""How the bodies and results of an arq application are written and read.

arq writes whatever its functions take and give, by `pickle.dumps` or the application's own `job_serializer`, and so do
we. What comes in as a pickle is read by the loader that runs no code: an application whose arguments are of classes of
its own names them in `runtime_types`, an attribute that arq does not look at.
"""

import asyncio
import builtins
import pickle
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

from arq.worker import JobExecutionFailed

from runtime.adapters.redis import pickles
from runtime.adapters.redis.codecs import Serializer
from runtime.core.errors import HandlerInvalid

NAME = "the application's serializer"


def serializer(dumps: Callable[[Any], Any] | None, loads: Callable[[bytes], Any] | None, types: object) -> Serializer:
    """That of an application with this `job_serializer`, `job_deserializer` and `runtime_types`.

    Raises `HandlerInvalid` for types that are none.
    """
    safely = loads is None or loads is pickle.loads
    dumps, loads = dumps or pickle.dumps, loads or pickle.loads
    write, vouched_for = partial(_dump, dumps, loads), admitted(types)
    if not safely:
        return Serializer(NAME, write, loads, revive=_exception)
    return Serializer(NAME, write, partial(pickles.loads, admitted=vouched_for), _exception, vouched_for)


def admitted(types: object) -> pickles.Admitted:
    """Those classes by their names, as pickles have them: `[Item, "app.models.Money"]`."""
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise _no_type(types)
    found: dict[tuple[str, str], Callable[..., object]] = {}
    for one in cast("Iterable[object]", types):
        try:
            kind: Any = pkgutil.resolve_name(one) if isinstance(one, str) else one
        except Exception as error:
            raise HandlerInvalid(
                f"runtime_types names {one!r:.100}, which cannot be imported", cause=f"{type(error).__name__}: {error}"
            ) from None
        if not callable(kind) or not hasattr(kind, "__qualname__"):
            raise _no_type(one)
        found[(kind.__module__, kind.__qualname__)] = kind
    return found


def _no_type(found: object) -> HandlerInvalid:
    return HandlerInvalid(
        f"runtime_types has {found!r:.100}",
        hint='it is a list of classes, or of their dotted names, that arguments of jobs may be of: [Item, "app.Money"]',
    )


def _dump(dumps: Callable[[Any], Any], loads: Callable[[bytes], Any], fields: Mapping[str, object]) -> Any:
    data = dumps(dict(fields))
    if isinstance(fields.get("r"), BaseException):
        # An exception with two required arguments, say, is written, and nobody can read its result (arq, #123).
        loads(data)
    return data


def _exception(error: pickles.RemoteError) -> BaseException:
    if error.name == "asyncio.exceptions.CancelledError":
        return asyncio.CancelledError()
    module, _, name = error.name.rpartition(".")
    kind = getattr(builtins, name, None) if module == "builtins" else None
    text = " ".join(map(str, error.args))
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(*error.args)
        except Exception:  # UnicodeDecodeError takes exactly five, and small ones; an ExceptionGroup none that is empty
            text = f"{name}: {text}"
    return JobExecutionFailed(text)
