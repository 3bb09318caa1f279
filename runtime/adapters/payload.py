"""Arguments and the signatures they must fit, and JSON of our own making. (Only `redis.documents` knows msgspec too.)

A producer sends plain data: what its annotations describe is taken apart here (dataclasses, msgspec structs and
pydantic models become dicts) and put together again at the worker. What is not annotated is passed as it is.
"""

import functools
import hashlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeVar, cast
from uuid import UUID

import msgspec

from runtime.core.values import frozen

T = TypeVar("T")

LARGEST = 2**53
"""A number in JSON of ours beyond it is none that we have counted, nor a moment: somebody else has written it."""
_PLAIN = (bytes, bytearray, datetime, date, time, timedelta, Decimal, UUID)
"""Types that a body carries as they are."""
_NOT_SPELT = (bytes, bytearray)
"""Those of them that are never made of text: it would be a guess."""
_SCALARS = (type(None), bool, int, float, str, bytes)
_UNCHECKED = (Any, inspect.Parameter.empty, object)


class Signature:
    """The parameters of a handler after `ctx`: which arguments fit, and what they are at either end."""

    def __init__(self, function: Callable[..., Any]) -> None:
        signature = inspect.signature(function)
        self._kinds = _annotations(function)
        self._parameters = [self._spelt(p) for p in list(signature.parameters.values())[1:]]
        returns = self._kinds.get("return", signature.return_annotation)
        if returns is type(None):
            returns = None
        self._signature = signature.replace(parameters=self._parameters, return_annotation=returns)
        self._checked = [(p.name, self._kind(p)) for p in self._parameters if self._kind(p) not in _UNCHECKED]
        plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in self._parameters)
        self._positional = [(p.name, self._kind(p)) for p in self._parameters] if plain else []
        self._required = sum(p.default is p.empty for p in self._parameters)
        self._result = self._kinds.get("return", Any)

    def __str__(self) -> str:
        return str(self._signature)

    def _spelt(self, parameter: inspect.Parameter) -> inspect.Parameter:
        """The parameter with its annotation itself, where it was written as text."""
        return parameter.replace(annotation=self._kinds.get(parameter.name, parameter.annotation))

    def _kind(self, parameter: inspect.Parameter) -> Any:
        kind = self._kinds.get(parameter.name, Any)
        if kind in _UNCHECKED:
            return Any
        if parameter.kind is parameter.VAR_POSITIONAL:
            return types.GenericAlias(tuple, (kind, ...))
        return types.GenericAlias(dict, (str, kind)) if parameter.kind is parameter.VAR_KEYWORD else kind

    @property
    def required(self) -> list[str]:
        """The parameters that an enqueue has to give."""
        free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [p.name for p in self._parameters if p.default is p.empty and p.kind not in free]

    def pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as plain data, checked. Raises `TypeError` (they do not fit) or `ValueError` (a wrong type)."""
        if self._by_place(args, kwargs):
            pairs = zip(args, self._positional, strict=False)
            return tuple(arg if kind is Any else _checked(arg, kind, name) for arg, (name, kind) in pairs), {}
        bound = self._bind(args, kwargs)
        for name, kind in self._checked:
            if name in bound.arguments:
                bound.arguments[name] = _checked(bound.arguments[name], kind, name)
        return bound.args, bound.kwargs

    def unpack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments as the handler wants them. Raises as `pack` does."""
        if self._by_place(args, kwargs):
            pairs = zip(args, self._positional, strict=False)
            return tuple(arg if kind is Any else _put_together(arg, kind, name) for arg, (name, kind) in pairs), kwargs
        bound = self._bind(args, kwargs)
        for name, kind in self._checked:
            if name in bound.arguments:
                bound.arguments[name] = _put_together(bound.arguments[name], kind, name)
        return bound.args, bound.kwargs

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """By parameter, these arguments and the defaults of the others. Raises `TypeError` if they do not fit."""
        bound = self._bind(args, kwargs)
        bound.apply_defaults()
        return bound.arguments

    def pack_result(self, value: Any) -> Any:
        """A return value as plain data, where it can be taken apart."""
        return _take_apart(value)

    def unpack_result(self, value: Any) -> Any:
        """A result as the handler's annotation says. Raises `ValueError` if it is something else."""
        return value if self._result in _UNCHECKED else _put_together(value, self._result, "return")

    def _by_place(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Each argument is of the parameter at its place, as nearly always; binding them takes ten times as long."""
        return not kwargs and self._required <= len(args) <= len(self._positional)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(str(error)) from None


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # Names that only a type checker imports: those parameters are not checked.
        return {name: Any if isinstance(kind, str) else kind for name, kind in function.__annotations__.items()}


def _checked(value: Any, kind: Any, name: str) -> Any:
    """A value as plain data that makes a `kind`."""
    plain = _take_apart(value)
    _put_together(plain, kind, name)
    return plain


def _take_apart(value: Any) -> Any:
    if type(value) in _SCALARS:
        return value
    dump = getattr(value, "model_dump", None)
    try:
        if callable(dump) and not isinstance(value, type):
            return dump()
        return msgspec.to_builtins(value, builtin_types=_PLAIN, enc_hook=_dump_model)
    except (TypeError, ValueError, NotImplementedError, RecursionError):
        return value  # left to the codec, which names the type


def _dump_model(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump()
    raise TypeError(f"values of type {type(value).__name__} cannot be taken apart")


# msgspec's texts name places and types, and quote the value in one case: where it is none of those allowed.
_QUOTED = re.compile(r"^(Invalid (?:enum )?value) .*?(?=( - at `[^`]*`)?\Z)", re.DOTALL)
_NOT_QUOTED = r"\1"


def _put_together(value: Any, kind: Any, name: str) -> Any:
    try:
        return _Making(_PLAIN).made(value, kind, name)
    except ValueError:
        return _Making(_NOT_SPELT).made(value, kind, name)  # JSON has text for the others


class _Making:
    """One value being put together.

    Of a union each kind is tried, and with it whatever is inside: what a part of the value makes as one kind is
    remembered, else a tree of such unions would take twice as long with every level.
    """

    def __init__(self, never_text: tuple[type, ...]) -> None:
        self._never_text = never_text
        self._parts: dict[tuple[int, int], Any] = {}  # by the ids of value and kind, both of which outlive this

    def made(self, value: Any, kind: Any, name: str) -> Any:
        try:
            return msgspec.convert(value, kind, builtin_types=self._never_text, dec_hook=_load_model)
        except msgspec.ValidationError as error:
            raise ValueError(f"argument {name!r}: {_QUOTED.sub(_NOT_QUOTED, str(error))}") from None
        except TypeError:  # somewhere in it is a union that msgspec cannot tell apart by itself, as of two dataclasses
            return self._in_parts(value, kind, name)

    def _part(self, value: Any, kind: Any, name: str) -> Any:
        key = (id(value), id(kind))
        if key not in self._parts:
            try:
                self._parts[key] = self.made(value, kind, name)
            except ValueError as error:
                self._parts[key] = _Refused(str(error))
        found = self._parts[key]
        if isinstance(found, _Refused):
            raise ValueError(found.reason)
        return found

    def _in_parts(self, value: Any, kind: Any, name: str) -> Any:
        origin, kinds = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return self._that_fits(value, kinds, name)
        if origin in _MANY:
            if not isinstance(value, list | tuple | set | frozenset):
                raise _unexpected("array", value, name)
            members = cast("Collection[Any]", value)
            each = kinds if origin is tuple and kinds[-1:] != (...,) else [kinds[0]] * len(members)
            if len(each) != len(members):
                raise ValueError(f"argument {name!r}: Expected `array` of length {len(each)}, got {len(members)}")
            pairs = zip(members, each, strict=True)
            return _MANY[origin](self._part(one, of, f"{name}[{at}]") for at, (one, of) in enumerate(pairs))
        if origin in (dict, Mapping):
            given = _object(value, name)
            named = f"{name}[…]"
            return {self._part(key, kinds[0], named): self._part(one, kinds[1], named) for key, one in given.items()}
        if isinstance(kind, type) and is_dataclass(kind):
            return self._dataclass_of(value, kind, name)
        return value  # an annotation that msgspec has no notion of: not checked

    def _that_fits(self, value: Any, kinds: tuple[Any, ...], name: str) -> Any:
        """What loses nothing of the value, else the first that it fits: fields that a dataclass does not have are no
        hindrance to making one."""
        fitting: list[Any] = []
        refusals: list[ValueError] = []
        for kind in kinds:
            try:
                fitting.append(self._part(value, kind, name))
            except ValueError as error:
                refusals.append(error)
        if not fitting:
            raise refusals[0]
        return next((made for made in fitting if _take_apart(_with_defaults(made)) == value), fitting[0])

    def _dataclass_of(self, value: Any, kind: type[Any], name: str) -> Any:
        given, kinds = _object(value, name), _hints(cast("Callable[..., Any]", kind))
        named = [field.name for field in fields(kind) if field.init and field.name in given]
        parts = {field: self._part(given[field], kinds[field], f"{name}.{field}") for field in named}
        try:
            return kind(**parts)
        except TypeError as error:
            raise ValueError(f"argument {name!r}: {error}") from None


@frozen
class _Refused:
    reason: str


_MANY: Mapping[Any, Callable[[Iterable[Any]], Any]] = {
    **dict.fromkeys((list, Sequence, Collection, Iterable), list),
    tuple: tuple,
    set: set,
    frozenset: frozenset,
}


@functools.cache
def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    """Cached for the ids of what is in it, too."""
    return typing.get_type_hints(kind)


def _object(value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _unexpected("object", value, name)
    return cast("dict[object, Any]", value)


def _unexpected(what: str, found: object, name: str) -> ValueError:
    return ValueError(f"argument {name!r}: Expected `{what}`, got `{type(found).__name__}`")


def _with_defaults(made: Any) -> Any:
    """msgspec leaves the defaults of a dataclass to its class, and what it takes apart is the instance alone."""
    if is_dataclass(made) and not isinstance(made, type):
        return {field.name: getattr(made, field.name) for field in fields(made)}
    return made


def _load_model(kind: Any, value: Any) -> Any:
    load = getattr(kind, "model_validate", None)
    if callable(load):
        return _validated(load, value)
    origin = typing.get_origin(kind) or kind
    if not isinstance(origin, type) or isinstance(value, origin):
        return value
    if issubclass(origin, dict) and isinstance(value, dict):  # OrderedDict, Counter: taken apart on their way
        return cast("dict[object, Any]", origin(value))
    raise ValueError(f"Expected `{origin.__name__}`, got `{type(value).__name__}`")


def _validated(load: Callable[[Any], Any], value: Any) -> Any:
    try:
        return load(value)
    except ValueError as error:
        details = getattr(error, "errors", None)
        if not callable(details):
            raise
        # pydantic's text quotes what it was given, and an argument is not to be seen in a log.
        said = cast("list[dict[str, Any]]", details(include_url=False, include_context=False, include_input=False))
        raise ValueError("; ".join(": ".join(filter(None, (_path(one["loc"]), one["msg"]))) for one in said)) from None


def _path(parts: Sequence[object]) -> str:
    return ".".join(map(str, parts))


def defaults(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The parameters after `ctx` that have a name to be given by, and their defaults, or `Parameter.empty`."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind in named}


def is_async(function: Any) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def yields(function: Any) -> bool:
    """Whether calling it gives something to iterate over, and runs nothing."""
    return any(
        inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)
        for called in (function, type(function).__call__)
    )


def digest(arguments: Mapping[str, Any]) -> str:
    """32 hex digits that tell these arguments, by name, from any others: the start of the SHA-256 of their JSON.

    Give them as they came, not packed: a set that was packed is a list, of an order that each process has for itself.

    Its JSON has no spaces; keys of objects are sorted, and members of sets. What JSON does not know counts as it is
    written there: bytes in base64, dates in ISO 8601, decimals and UUIDs as text. Raises `TypeError` for what cannot
    be written so.
    """
    plain = msgspec.to_builtins(arguments, str_keys=True, order="deterministic", enc_hook=_dump_model)
    try:
        text = msgspec.json.encode(plain, order="deterministic")
    except UnicodeEncodeError:
        text = msgspec.json.encode(_encodable(plain), order="deterministic")
    return hashlib.sha256(text).hexdigest()[:32]


def to_json(value: object) -> bytes:
    """`value` as JSON; for plain data and dataclasses. Text that is no Unicode (a hostile id, say) is escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(value)))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in cast("dict[object, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in cast("Sequence[Any]", value)]
    return value


def from_json(data: bytes | str, kind: type[T]) -> T:
    """JSON as a `kind`. Raises `ValueError` with the place and the rule."""
    return msgspec.json.decode(data, type=kind)
