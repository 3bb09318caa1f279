"""What a body may hold, in whatever codec: the limits, the types, the tree they form; how a refusal says so."""

# `type(x) is list` tells pyright nothing of the members, and a cast would cost time for each value that is read.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Set
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from types import NoneType, SimpleNamespace
from typing import Final, NoReturn
from uuid import UUID

from runtime.core.values import frozen

MAX_BYTES: Final = 8 * 2**20
MAX_NODES: Final = 200_000  # values in the tree, a shared one counted wherever it appears
MAX_DEPTH: Final = 64  # containers inside containers
MAX_DIGITS: Final = 4_300  # of an int or a Decimal; CPython's own limit for turning an int into text
MAX_EXPONENT: Final = 6_144  # of a Decimal; decimal128's, so that int() of one stays cheap

MAX_OPCODES: Final = 10 * MAX_NODES  # a UUID, the wordiest of the types, takes ten
LOOK_EVERY: Final = 2_000  # opcodes, at how much has piled up
MAX_KEY_NODES: Final = 1_000  # in one dict key or set member
MAX_COLLISIONS: Final = 16  # different keys of one container with one hash value
MAX_KEY_PAIRS: Final = 2**30  # of keys of one container that are not text and the like, over all containers: 46 000²/2
MAX_WORK_US: Final = 50_000  # that classes written in Python, of which some are slow, may take to make of a body
MAX_PATH: Final = 4_096  # characters of a path; Linux's own limit


class Undecodable(ValueError):
    """Why a body is refused.

    `reason` is a short sentence about the rule that was broken and holds nothing of the body, so it may be logged.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Admitted = Mapping[tuple[str, str], Callable[..., object]]
"""What a body may hold besides the types in the tables, by module and name: classes that somebody has vouched for."""


@frozen
class RemoteError:
    """An exception found in a result: what it was called and its arguments, and no behaviour."""

    name: str  # e.g. "builtins.ValueError", "arq.worker.JobExecutionFailed"
    args: tuple[object, ...]


RemoteError("", ())  # with the first of a class its `__init__` is compiled; nothing is to be while a body is read


class Stub:
    """What stands for a class while a body is read. It is no value."""

    __slots__ = ()


NOT_LISTED: Final = "it refers to a class that is not on the list"


def refuse(reason: str) -> NoReturn:
    raise Undecodable(reason)


def too_many_values() -> NoReturn:
    refuse(f"it has more than {MAX_NODES} values")


LEAVES: Final[set[type]] = {
    *(NoneType, bool, int, float, complex, str, bytes, bytearray, range, slice),
    *(datetime, date, time, timedelta, timezone, UUID, Decimal),
    *(IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network),
    *(PosixPath, PurePosixPath, PureWindowsPath),
}
# Their modules take up to 4 ms to import, and hardly a worker ever meets them: they join the leaves when one is met.
_RARE: Final = {"fractions": "Fraction", "zoneinfo": "ZoneInfo"}
_SEQUENCES: Final = (list, tuple, set, frozenset, deque)
_MAPPINGS: Final = (dict, OrderedDict, Counter, defaultdict)
_ERRORS: Final = (RemoteError, BaseException)  # the latter only in what is to be written
CONTAINERS: Final[frozenset[type]] = frozenset({*_SEQUENCES, *_MAPPINGS, RemoteError, SimpleNamespace})
# Written by opcodes of their own, not by the name of a class.
BARE: Final[frozenset[type]] = frozenset({NoneType, bool, int, float, str, bytes, list, tuple, dict})


def is_leaf(kind: type) -> bool:
    if kind not in LEAVES:
        name = _RARE.get(kind.__module__)
        if name is None or getattr(sys.modules.get(kind.__module__), name, None) is not kind:
            return False
        LEAVES.add(kind)
    return True


def parts_of(item: object) -> Collection[object]:
    if isinstance(item, _MAPPINGS):
        return [*item, *item.values()]
    if isinstance(item, _SEQUENCES):
        return item
    if isinstance(item, SimpleNamespace):
        return vars(item).values()
    return item.args if isinstance(item, _ERRORS) else ()


def check_tree(root: object, admitted: Set[type] = frozenset()) -> None:
    """Refuse a value with too many nodes, too deep (which a cycle is), or of a type that is not in the tables.

    What is of an `admitted` type besides is taken as it is, with whatever it holds.

    Level by level, and on each level every container once, so that neither depth nor sharing costs more than counting.
    """
    nodes = 1
    leaves = LEAVES | admitted if admitted else LEAVES
    level = [root] if type(root) not in leaves else []
    times: Mapping[int, int] = {}  # how often a container is on this level, by id; empty if all are there once
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        surplus: dict[int, int] = {}
        for item in level:
            if type(item) not in CONTAINERS:
                if is_leaf(type(item)):  # the first of its kind in this process
                    check_tree(root, admitted)
                    return
                refuse(f"it holds {_spelt(item)}")
            parts = parts_of(item)
            more = times[id(item)] if times else 1
            nodes += more * len(parts)
            if nodes > MAX_NODES:
                too_many_values()
            if not leaves.issuperset(map(type, parts)):
                inner = [part for part in parts if type(part) not in leaves]
                below += inner
                if more > 1:
                    for part in inner:
                        surplus[id(part)] = surplus.get(id(part), 0) + more - 1
        if not below:
            return
        distinct = dict(zip(map(id, below), below, strict=True))
        times = {}
        if surplus or len(distinct) < len(below):
            times = Counter(map(id, below))
            times.update(surplus)
        level = list(distinct.values())
    refuse(f"it is nested more than {MAX_DEPTH} deep, or contains itself")


def _spelt(stranger: object) -> str:
    kind = type(stranger)
    if kind is type or isinstance(stranger, Stub):
        return "a class, not an object of it"
    return f"a value of type {kind.__module__}.{kind.__qualname__}"
