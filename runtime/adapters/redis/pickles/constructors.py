"""The classes that a body may name. Each is made by a function that checks what it is given, and has it counted."""

# `type(x) is list` tells pyright nothing of the members, and a cast would cost time for each value that is read.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import builtins
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard
from uuid import UUID, SafeUUID

from runtime.adapters.redis.pickles.values import (
    MAX_DIGITS,
    MAX_EXPONENT,
    MAX_PATH,
    RemoteError,
    Stub,
    refuse,
)

if TYPE_CHECKING:
    from fractions import Fraction
    from zoneinfo import ZoneInfo

    from runtime.adapters.redis.pickles.machine import Machine

Args = tuple[object, ...]


class Constructor(Stub):
    """What stands on the stack for a class: it checks arguments exactly as that class's pickles have them."""

    __slots__ = ("factory", "make")

    def __init__(self, make: Callable[[Machine, Args], object], factory: type[object] | None = None) -> None:
        self.make = make
        self.factory = factory
        """The class itself, where a defaultdict may have it make what is missing."""


def wrong_arguments() -> NoReturn:
    refuse("it calls a class with other arguments than its pickles have")


def _state_and_zone(args: Args, size: int) -> tuple[bytes, tzinfo | None]:
    state, zone = args if len(args) == 2 else (*args, None)
    if type(state) is not bytes or len(state) != size or not (zone is None or isinstance(zone, tzinfo)):
        wrong_arguments()
    return state, zone


# The classes of `datetime` take their packed form on trust, hour 255 included; so it is unpacked here. `fold` is the
# highest bit of the month, or of a time's hour.


def _datetime(_: Machine, args: Args) -> datetime:
    state, zone = _state_and_zone(args, 10)
    year, month, micros = int.from_bytes(state[:2]), state[2] & 127, int.from_bytes(state[7:])
    return datetime(year, month, state[3], state[4], state[5], state[6], micros, zone, fold=state[2] >> 7)


def _date(_: Machine, args: Args) -> date:
    state, zone = _state_and_zone(args, 4)
    if zone is not None:
        wrong_arguments()
    return date(int.from_bytes(state[:2]), state[2], state[3])


def _time(_: Machine, args: Args) -> time:
    state, zone = _state_and_zone(args, 6)
    return time(state[0] & 127, state[1], state[2], int.from_bytes(state[3:]), zone, fold=state[0] >> 7)


def _timedelta(_: Machine, args: Args) -> timedelta:
    days, seconds, micros = args
    if not (type(days) is int and type(seconds) is int and type(micros) is int):
        wrong_arguments()
    return timedelta(days, seconds, micros)


def _timezone(_: Machine, args: Args) -> timezone:
    offset, *name = args
    if type(offset) is not timedelta:
        wrong_arguments()
    if not name:
        return timezone(offset)
    if len(name) > 1 or type(name[0]) is not str:
        wrong_arguments()
    return timezone(offset, name[0])


_DECIMAL: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:E([+-]\d{1,5}))?|Infinity|s?NaN\d*)", re.ASCII)


def _decimal(machine: Machine, args: Args) -> Decimal:
    (text,) = args
    if type(text) is not str:
        wrong_arguments()
    number = _DECIMAL.fullmatch(text) if len(text) <= MAX_DIGITS + 8 else None  # 8 for sign, point and exponent
    if number is None or abs(int(number[1] or 0)) > MAX_EXPONENT:
        refuse(f"it has a Decimal of more than {MAX_DIGITS} digits or an exponent beyond {MAX_EXPONENT}")
    machine.count_copy(len(text))
    return Decimal(text)


def fill_uuid(blank: UUID, state: object) -> None:
    if type(state) is not dict or not state.keys() <= {"int", "is_safe"}:
        wrong_arguments()
    value = state["int"]
    if type(value) is not int or not 0 <= value < 2**128:
        wrong_arguments()
    # The class forbids assignment, and its own __setstate__ goes this way round it too.
    object.__setattr__(blank, "int", value)
    object.__setattr__(blank, "is_safe", SafeUUID(state.get("is_safe")))


def fill_namespace(machine: Machine, target: SimpleNamespace, state: object) -> None:
    if type(state) is not dict:
        wrong_arguments()
    machine.count(len(state))
    for name in state:
        if type(name) is not str or name.startswith("__"):  # pickle itself asks objects for such
            wrong_arguments()
    vars(target).update(state)


def _complex(_: Machine, args: Args) -> complex:
    real, imaginary = args
    if type(real) is not float or type(imaginary) is not float:
        wrong_arguments()
    return complex(real, imaginary)


def _encode(machine: Machine, args: Args) -> bytes:
    """`_codecs.encode(text, "latin1")`: how protocol 2, which has no bytes, writes them."""
    text, codec = args
    if type(text) is not str or codec != "latin1":
        wrong_arguments()
    machine.count_copy(len(text))
    return text.encode("latin1")


def _empty_bytes(_: Machine, args: Args) -> bytes:
    """`bytes()`: how protocol 2 writes that one."""
    if args:
        wrong_arguments()
    return b""


def _bytearray(machine: Machine, args: Args) -> bytearray:
    (raw,) = args or (b"",)
    if type(raw) is not bytes:
        wrong_arguments()
    machine.count_copy(len(raw))
    return bytearray(raw)


def _members(machine: Machine, args: Args) -> list[object]:
    (members,) = args or ([],)
    if type(members) is not list:
        wrong_arguments()
    machine.count(len(members))
    machine.admit_keys(members)
    return members


def _set(machine: Machine, args: Args) -> set[object]:
    return set(_members(machine, args))


def _frozenset(machine: Machine, args: Args) -> frozenset[object]:
    return frozenset(_members(machine, args))


def _ordered_dict(_: Machine, args: Args) -> OrderedDict[object, object]:
    if args:
        wrong_arguments()
    return OrderedDict()


def _counter(machine: Machine, args: Args) -> Counter[object]:
    (counts,) = args
    if type(counts) is not dict:
        wrong_arguments()
    machine.count(len(counts))
    # Its text has the counts in their order, and this one raises when it is compared.
    if any(type(one) is Decimal and one.is_snan() for one in counts.values()):
        refuse("it has a Counter that has no text")
    return Counter(counts)


_DEQUE_NODES: Final = 8  # as much memory as so many others takes one, even an empty one


def _deque(machine: Machine, args: Args) -> deque[object]:
    """Empty, to be appended to."""
    members, longest = args if len(args) == 2 else (*args, (), None)
    if members != () or not (longest is None or type(longest) is int):
        wrong_arguments()
    machine.count(_DEQUE_NODES)
    return deque(maxlen=longest)


def _defaultdict(_: Machine, args: Args) -> defaultdict[object, object]:
    (constructor,) = args or (None,)
    if constructor is None:
        return defaultdict(None)
    if type(constructor) is not Constructor or constructor.factory is None:
        refuse("it has a defaultdict of other defaults than empty builtins")
    return defaultdict(constructor.factory)


def _namespace(_: Machine, args: Args) -> SimpleNamespace:
    """Empty, to be filled by BUILD."""
    if args:
        wrong_arguments()
    return SimpleNamespace()


def _small(number: object) -> TypeGuard[int]:
    return type(number) is int and -(2**63) <= number < 2**63


def _range(_: Machine, args: Args) -> range:
    start, stop, step = args
    if not (_small(start) and _small(stop) and _small(step)):
        refuse("it has a range beyond 64 bits, or of what is no integer")
    return range(start, stop, step)


def _slice(_: Machine, args: Args) -> slice:
    start, stop, step = args
    if not all(part is None or _small(part) for part in (start, stop, step)):
        refuse("it has a slice beyond 64 bits, or of what is no integer")
    return slice(start, stop, step)


# `Fraction(1, 3)`; before Python 3.11 `Fraction("1/3")`.
_RATIO: Final = re.compile(r"(-?\d+)(?:/(\d+))?", re.ASCII)


def _fraction(machine: Machine, args: Args) -> Fraction:
    from fractions import Fraction

    match args:
        case (above, below) if type(above) is int and type(below) is int:
            _count_division(machine, (above.bit_length() + below.bit_length()) // 3)
            return Fraction(above, below)
        case (str() as text,):
            _count_division(machine, len(text))
            ratio = _RATIO.fullmatch(text)
            if ratio is None or max(map(len, ratio.groups(""))) > MAX_DIGITS:
                refuse(f"it has a Fraction of more than {MAX_DIGITS} digits, or of none")
            return Fraction(int(ratio[1]), int(ratio[2] or 1))
        case _:
            wrong_arguments()


def _count_division(machine: Machine, digits: int) -> None:
    """That of numbers with so many digits in all by their common divisor, and reading them."""
    machine.count_work(3 + digits // 80 + digits * digits // 72_000)


def _path(kind: type[PurePath]) -> Constructor:
    def make(machine: Machine, args: Args) -> PurePath:
        parts = [part for part in args[:MAX_PATH] if type(part) is str]
        length = len(args) + sum(map(len, parts))
        if length > MAX_PATH + 1:
            refuse(f"it has a path of more than {MAX_PATH} characters")
        if len(parts) < len(args):
            wrong_arguments()
        machine.count_work(3 + length // 20 + len(args) // 5)
        return kind(*parts)

    return Constructor(make)


_LONGEST_IP: Final = 100


def _ip(kind: Callable[[Any], object], us: int, spelt: tuple[type[object], ...] = (str,)) -> Constructor:
    """What is written as text, or as the number that it is."""

    def make(machine: Machine, args: Args) -> object:
        (said,) = args
        if type(said) not in spelt or (isinstance(said, str) and len(said) > _LONGEST_IP):
            wrong_arguments()
        machine.count_work(us)
        return kind(said)

    return Constructor(make)


# No dot, so that none of them leads out of the directories that ZoneInfo looks into, nor out of the package `tzdata`.
_ZONE_NAME: Final = re.compile(r"[\w+-]{1,40}(?:/[\w+-]{1,40}){0,3}", re.ASCII)
_ZONE_US: Final = 100  # to read its file


def _zone(machine: Machine, args: Args) -> ZoneInfo:
    """`ZoneInfo._unpickle(key, from_cache)`; one that was made without the cache is made with it all the same."""
    name, cached = args
    if type(name) is not str or cached not in (0, 1) or not _ZONE_NAME.fullmatch(name):
        wrong_arguments()
    if name not in machine.zones:
        from zoneinfo import ZoneInfo

        machine.count_work(_ZONE_US)
        machine.zones[name] = ZoneInfo(name)
    return machine.zones[name]


def _never(_: Machine, args: Args) -> NoReturn:
    wrong_arguments()  # its objects are made in another way


def remote_error(name: str) -> Constructor:
    return Constructor(lambda _, args: RemoteError(name, args))


UUID_CLASS: Final = Constructor(_never)  # made empty by NEWOBJ, then filled by BUILD
ZONE: Final = Constructor(_zone)
ZONE_INFO_CLASS: Final = Constructor(_never)  # by an attribute of it

_FACTORIES: Final[Mapping[str, type[object]]] = {
    **{kind.__name__: kind for kind in (dict, float, int, list, str, tuple)},
    # Python 2's names, of which protocol 2 speaks, as it does of `xrange`.
    "long": int,
    "unicode": str,
}
_BUILTINS: Final = {
    "bytearray": Constructor(_bytearray),
    "bytes": Constructor(_empty_bytes),
    "complex": Constructor(_complex),
    "frozenset": Constructor(_frozenset),
    "range": Constructor(_range),
    "set": Constructor(_set, set),
    "slice": Constructor(_slice),
    "xrange": Constructor(_range),
    **{name: Constructor(_never, kind) for name, kind in _FACTORIES.items()},
}
_PATHS: Final = {
    "PosixPath": _path(PosixPath),
    "PurePosixPath": _path(PurePosixPath),
    "PureWindowsPath": _path(PureWindowsPath),
    "WindowsPath": _path(PureWindowsPath),  # only Windows has those
}
_IP_ADDRESSES: Final = {
    "IPv4Address": _ip(IPv4Address, 0, (int,)),
    "IPv4Interface": _ip(IPv4Interface, 8),
    "IPv4Network": _ip(IPv4Network, 4),
    "IPv6Address": _ip(IPv6Address, 5, (int, str)),  # a number before Python 3.11
    "IPv6Interface": _ip(IPv6Interface, 14),
    "IPv6Network": _ip(IPv6Network, 5),
}
_BUILTIN_ERRORS: Final = {
    name: remote_error(f"builtins.{name}")
    for name, kind in [*vars(builtins).items(), ("PythonFinalizationError", Exception)]  # that one is new in 3.13
    if isinstance(kind, type) and issubclass(kind, BaseException)
}
_OTHER_ERRORS: Final = {
    "arq.worker": ("FailedJobs", "JobExecutionFailed", "Retry", "RetryJob"),
    "arq.jobs": ("DeserializationError", "ResultNotFound", "SerializationError"),
    "asyncio.exceptions": ("CancelledError", "TimeoutError"),  # the latter is the builtin one since 3.11
}


def _named(module: str, constructors: Mapping[str, Constructor]) -> Iterator[tuple[tuple[object, object], Constructor]]:
    return (((module, name), constructor) for name, constructor in constructors.items())


CONSTRUCTORS: Final[Mapping[tuple[object, object], Constructor]] = {
    ("datetime", "datetime"): Constructor(_datetime),
    ("datetime", "date"): Constructor(_date),
    ("datetime", "time"): Constructor(_time),
    ("datetime", "timedelta"): Constructor(_timedelta),
    ("datetime", "timezone"): Constructor(_timezone),
    ("decimal", "Decimal"): Constructor(_decimal),
    ("uuid", "UUID"): UUID_CLASS,
    ("zoneinfo", "ZoneInfo"): ZONE_INFO_CLASS,
    ("fractions", "Fraction"): Constructor(_fraction),
    ("types", "SimpleNamespace"): Constructor(_namespace),
    ("collections", "Counter"): Constructor(_counter),
    ("collections", "OrderedDict"): Constructor(_ordered_dict),
    ("collections", "defaultdict"): Constructor(_defaultdict),
    ("collections", "deque"): Constructor(_deque),
    ("_codecs", "encode"): Constructor(_encode),
    **dict(_named("builtins", _BUILTINS | _BUILTIN_ERRORS)),
    **dict(_named("ipaddress", _IP_ADDRESSES)),
    **dict(_named("pathlib", _PATHS)),
    **dict(_named("pathlib._local", _PATHS)),  # Python 3.13's name for it
    # Protocol 2 speaks of Python 2's modules.
    **dict(_named("__builtin__", _BUILTINS | _BUILTIN_ERRORS)),
    **dict(_named("exceptions", _BUILTIN_ERRORS)),
    **{(module, name): remote_error(f"{module}.{name}") for module, names in _OTHER_ERRORS.items() for name in names},
}
