"""Reading pickles that strangers may have written (reliability campaign K4.1 to K4.3), and writing what arq reads."""

from __future__ import annotations

import asyncio
import builtins
import json
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import time
import uuid
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock_time
from decimal import Decimal
from fractions import Fraction
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import arq.worker
import pytest
from arq.jobs import deserialize_job, deserialize_result
from hypothesis import given
from hypothesis import strategies as st

from runtime.adapters.redis import pickles
from runtime.adapters.redis.pickles import RemoteError, Undecodable, dumps, dumps_failure, loads, machine, proof

PROTOCOLS = [2, 3, 4, 5]
JOB: dict[str, object] = {
    "t": None,
    "f": "send_mail",
    "a": (12, "x@y.org"),
    "k": {"subject": "hello"},
    "et": 1795000000000,
}
ROWS = [{"id": i, "name": f"n{i}", "tags": ["a", "b"], "share": i / 7} for i in range(30)]

# What is equal to itself when it comes back; hence no NaN, which has its own test.
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
)
zone_infos = st.sampled_from(["Europe/Berlin", "UTC", "America/Sao_Paulo", "Etc/GMT+3"]).map(ZoneInfo)
offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
zones = st.none() | st.just(UTC) | offsets | zone_infos
small = st.integers(-(2**63), 2**63 - 1)
paths = st.lists(st.text(max_size=20), max_size=4).flatmap(
    lambda parts: st.sampled_from([kind(*parts) for kind in (Path, PurePosixPath, PureWindowsPath)])
)
networks = st.ip_addresses().flatmap(
    lambda ip: st.integers(0, ip.max_prefixlen).map(lambda length: ip_network(f"{ip}/{length}", strict=False))
)
interfaces = st.ip_addresses().flatmap(
    lambda ip: st.integers(0, ip.max_prefixlen).map(lambda length: ip_interface(f"{ip}/{length}"))
)
rarer_scalars = (
    st.fractions()
    | paths
    | st.ip_addresses()
    | networks
    | interfaces
    | zone_infos
    | st.builds(range, small, small, small.filter(bool))
)
slices = st.builds(slice, st.none() | small, st.none() | small, st.none() | small)  # no keys before Python 3.12
typed_scalars = (
    rarer_scalars
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
)
keys = st.integers() | st.text(max_size=80) | st.binary(max_size=80) | st.tuples(st.integers(), st.text(max_size=5))


FACTORIES: list[Any] = [None, list, dict, set, int, str, float, tuple]


def rarer(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Containers of the other types."""
    items, mappings = st.lists(inner, max_size=5), st.dictionaries(keys | typed_scalars, inner, max_size=5)
    names = st.text(max_size=5).filter(lambda name: not name.startswith("__"))
    return (
        st.builds(deque, items, st.none() | st.integers(0, 6))
        | mappings.map(Counter)
        | st.builds(defaultdict, st.sampled_from(FACTORIES), mappings)
        | st.dictionaries(names, inner, max_size=5).map(lambda fields: SimpleNamespace(**fields))
    )


def nothing_more(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.nothing()


def trees(
    leaves: st.SearchStrategy[object],
    more_keys: st.SearchStrategy[object],
    more: Callable[[st.SearchStrategy[object]], st.SearchStrategy[object]] = nothing_more,
) -> st.SearchStrategy[object]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.lists(inner, max_size=5).map(tuple)
            | st.dictionaries(more_keys, inner, max_size=5)
            | st.sets(more_keys, max_size=5)
            | st.frozensets(more_keys, max_size=5)
            | inner.map(lambda shared: [shared, {"again": shared}])
            | more(inner)
        ),
        max_leaves=20,
    )


plain_values = trees(scalars, keys)
typed_values = trees(
    scalars | typed_scalars | slices | st.binary().map(bytearray) | st.dictionaries(keys, scalars).map(OrderedDict),
    keys | typed_scalars,
    rarer,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, defaultdict) and left.default_factory is not right.default_factory:
        return False
    if isinstance(left, deque):
        return left.maxlen == right.maxlen and same(list(left), list(right))
    if isinstance(left, SimpleNamespace):
        return same(vars(left), vars(right))
    if isinstance(left, dict) and isinstance(right, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


# Round trips


@given(plain_values, st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_as_they_were(value: object, protocol: int) -> None:
    assert same(loads(pickle.dumps(value, protocol)), value)


@given(typed_values, st.sampled_from(PROTOCOLS))
def test_typed_values_come_back_as_they_were(value: object, protocol: int) -> None:
    assert same(loads(pickle.dumps(value, protocol)), value)


@given(typed_values)
def test_what_we_write_we_read(value: object) -> None:
    data = dumps(value)
    assert same(loads(data), value)
    assert same(pickle.loads(data), value)


@given(plain_values, st.sampled_from(PROTOCOLS))
def test_both_ways_of_reading_agree(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert same(machine.Machine(data).run(), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        "\ud800 is no character",
        float("inf"),
        -(2**63),
        2**64,
        10**4300 - 1,
        b"",
        b"\xff" * 300,
        "é" * 300,
        list(range(3000)),
        bytearray(),
        set(),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=timezone(timedelta(hours=1), "CET")),
        clock_time(2, 30, 0, 1),
        timezone(timedelta(hours=-3, minutes=-30), "NST"),
        timedelta.min,
        uuid.UUID("4ee629ec-e63f-11f1-8b76-02fc00000001"),
        Decimal("-1.50E+6000"),
        Decimal("Infinity"),
        Decimal("1" * 4300),
        [Decimal("0E-10"), Decimal("-0")],
        [date.min, date.max, datetime.min, datetime.max],
        OrderedDict(b=[1], a=OrderedDict()),
        {(1, "a"): 1, frozenset({(1, 2)}): 2, date(2026, 1, 1): 3},
        [frozenset({(1, i)}) for i in range(500)] * 2,
        [{"row": (i, str(i))} for i in range(500)],
        [ROWS, ROWS],
        [
            Path("/srv/a b"),
            Path(),
            PurePosixPath("a//b/../c"),
            PureWindowsPath("C:/x"),
            PureWindowsPath("//srv/share/a"),
        ],
        Path("/" + "a/" * 2000),
        [range(2**63 - 1), range(-(2**63), 0, -7), slice(None), slice(1, None, -2)],
        [Fraction(-1, 3), Fraction(5), Fraction(10**400 + 1, 3**700), Fraction(0)],
        [ip_address("::1"), ip_address("fe80::1%eth0"), ip_address("255.255.255.255"), ip_address(0)],
        [
            ip_network("10.0.0.0/8"),
            ip_network("2001:db8::/32"),
            ip_interface("10.0.0.1/8"),
            ip_interface("fe80::1%e/64"),
        ],
        [ZoneInfo("Europe/Berlin"), datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")), clock_time(3, tzinfo=UTC)],
        [ZoneInfo("America/Argentina/ComodRivadavia"), ZoneInfo("Etc/GMT+3"), ZoneInfo("Etc/GMT-14")],
        Counter({"a": 2, (1, 2): -1, "b": "no number"}),
        [deque(), deque([1, 2], 2), deque([[1]], 5), deque(maxlen=0)],
        [defaultdict(kind, {1: [2]}) for kind in FACTORIES],
        SimpleNamespace(a=1, b=SimpleNamespace(c=[])),
        {ip_network("10.0.0.0/8"): 1, Fraction(1, 3): 2, Path("a"): 3, range(3): 4, ZoneInfo("UTC"): 5},
        [Fraction(i, 7) for i in range(3000)],
        [ip_network(f"10.{i // 256}.{i % 256}.0/24") for i in range(3000)],
        [datetime(2026, 1, 1, i % 24, tzinfo=ZoneInfo("Europe/Berlin")) for i in range(3000)],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_values_at_the_edges_come_back_as_they_were(value: object, protocol: int) -> None:
    if protocol < 4 and isinstance(value, datetime):
        value = value.replace(fold=0)  # older protocols have no room for it
    assert same(loads(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_unequal_to_themselves_come_back_too(protocol: int) -> None:
    values = [float("nan"), Decimal("NaN"), Decimal("sNaN"), Decimal("-NaN123"), complex("nan")]
    assert repr(loads(pickle.dumps(values, protocol))) == repr(values)


def test_the_utc_of_a_datetime_is_the_one_and_only() -> None:
    assert loads(pickle.dumps(UTC)) is UTC


@pytest.mark.parametrize("is_safe", list(uuid.SafeUUID))
def test_a_uuid_keeps_whether_it_was_made_safely(is_safe: uuid.SafeUUID) -> None:
    loaded = loads(pickle.dumps(uuid.UUID(int=5, is_safe=is_safe)))
    assert isinstance(loaded, uuid.UUID)
    assert loaded.is_safe is is_safe


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_object_used_twice_is_still_one_object(protocol: int) -> None:
    shared: list[object] = [1, datetime(2026, 1, 1)]
    loaded = loads(pickle.dumps([shared, shared], protocol))
    assert isinstance(loaded, list)
    assert loaded[0] is loaded[1]


@pytest.mark.parametrize(
    "value",
    [
        JOB,
        JOB | {"a": (), "k": {}},
        JOB | {"a": (1, 2, 3, 4, [5, {"deep": [6]}]), "k": {"body": "long text " * 200, "n": 1.5, "ok": True}},
        JOB | {"s": True, "r": {"n": 5}, "st": 1795000000000, "ft": 1795000000001, "q": "arq:queue", "id": "a" * 32},
    ],
)
def test_an_ordinary_body_is_proven_harmless_and_takes_the_fast_way(value: dict[str, object]) -> None:
    assert proof.proven(pickle.dumps(value)) == "tree"
    assert loads(pickle.dumps(value)) == value


def test_rows_that_share_their_keys_are_proven_harmless_but_for_their_shape() -> None:
    assert proof.proven(pickle.dumps(JOB | {"a": (ROWS,)})) == "graph"


# Exceptions found in results


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x"), RemoteError("builtins.ValueError", ("x",))),
        (KeyError(("a", 1)), RemoteError("builtins.KeyError", (("a", 1),))),
        (SystemExit(3), RemoteError("builtins.SystemExit", (3,))),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), None),
        (ExceptionGroup("two", [ValueError("x"), OSError(2, "y")]), None),
        (asyncio.CancelledError(), RemoteError("asyncio.exceptions.CancelledError", ())),
        (arq.worker.JobExecutionFailed("gone"), RemoteError("arq.worker.JobExecutionFailed", ("gone",))),
        (arq.worker.Retry(5), RemoteError("arq.worker.Retry", (5,))),
    ],
)
def test_an_exception_becomes_a_stand_in(error: BaseException, expected: RemoteError | None, protocol: int) -> None:
    loaded = loads(pickle.dumps({"r": error}, protocol))
    assert isinstance(loaded, dict)
    stand_in = loaded["r"]
    assert isinstance(stand_in, RemoteError)
    assert stand_in == expected or (expected is None and stand_in.name == f"builtins.{type(error).__name__}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_notes_and_attributes_of_an_exception_are_dropped(protocol: int) -> None:
    error = ImportError("no such", name="secret")
    error.add_note("a note")
    assert loads(pickle.dumps(error, protocol)) == RemoteError("builtins.ImportError", ("no such",))


# What must never happen while reading (K4.1)


class Reduced:
    """Pickles as whatever it is told."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


def op(*parts: bytes | str) -> bytes:
    return b"\x80\x04" + b"".join(part.encode("latin1") if isinstance(part, str) else part for part in parts) + b"."


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


SHELL = "(X\x04\0\0\0truet"
HOSTILE: dict[str, bytes] = {
    "os.system by GLOBAL": op("cos\nsystem\n", SHELL, "R"),
    "os.system by STACK_GLOBAL": op(short("os"), short("system"), b"\x93", SHELL, "R"),
    "os.system in protocol 0": b"cos\nsystem\n(S'true'\ntR.",
    "os.system by INST": op("(X\x04\0\0\0trueios\nsystem\n"),
    "os.system by OBJ": op("(cos\nsystem\nX\x04\0\0\0trueo"),
    "os.system by NEWOBJ": op("cos\nsystem\n", SHELL, b"\x81"),
    "os.system by NEWOBJ_EX": op("cos\nsystem\n", SHELL, b"}\x92"),
    "posix.system": op("cposix\nsystem\n", SHELL, "R"),
    "eval": op("cbuiltins\neval\n(X\x03\0\0\x001+1tR"),
    "exec in Python 2's module": op("c__builtin__\nexec\n(X\x04\0\0\0passtR"),
    "getattr": pickle.dumps(Reduced(getattr, (int, "real"))),
    "a chain of getattr": pickle.dumps(Reduced(getattr, (Reduced(__import__, ("os",)), "system"))),
    "a dotted name": op(short("uuid"), short("os.system"), b"\x93", SHELL, "R"),
    "a method of an admitted class": op(short("datetime"), short("datetime.now"), b"\x93", ")R"),
    "an attribute of an admitted class": op(short("uuid"), short("UUID.__init__.__globals__"), b"\x93"),
    "a module of an admitted class": op("cuuid\nos\n"),
    "import by name alone": op("cantigravity\nfly\n"),
    "a class by reference": op("cuuid\nUUID\n"),
    "an exception class by reference": op("(cbuiltins\nValueError\nl"),
    "a class as a key": op("}cuuid\nUUID\nNs"),
    "an object of another class": pickle.dumps(array("i", [1])),
    "operator.itemgetter": op("coperator\nitemgetter\nK\x01\x85R"),
    "functools.partial": op("cfunctools\npartial\ncos\nsystem\n\x85R"),
    "copyreg._reconstructor": op("ccopyreg\n_reconstructor\n(cuuid\nUUID\ncbuiltins\nobject\nNtR"),
    "extension code of 1 byte": op(b"\x82\x01"),
    "extension code of 2 bytes": op(b"\x83\x01\x00"),
    "extension code of 4 bytes": op(b"\x84\x01\x00\x00\x00"),
    "a persistent id": op("K\x01Q"),
    "a persistent id in text": op("P1\n"),
    "an out-of-band buffer": op(b"\x97"),
    "a read-only buffer": op(b"C\x01a\x98"),
    "BUILD on a class by dict": op("cuuid\nUUID\n}", short("__setstate__"), "Nsb"),
    "BUILD on a class by slots": op("cuuid\nUUID\nN}", short("int"), "K\x05s\x86b"),
    "BUILD on an exception class": op("cbuiltins\nValueError\n}", short("args"), "Nsb"),
    "BUILD on a function": op("c_codecs\nencode\n}", short("__doc__"), "Nsb"),
    "BUILD on a value": op("K\x01}b"),
    "BUILD twice on a UUID": op("cuuid\nUUID\n)\x81", *["}" + "\x8c\x03intK\x05sb"] * 2),
    "BUILD of a UUID with other attributes": op("cuuid\nUUID\n)\x81}(", short("int"), "K\x05", short("__doc__"), "Nub"),
    "BUILD of a UUID with slots": op("cuuid\nUUID\n)\x81N}", short("int"), "K\x05s\x86b"),
    "BUILD of a UUID that is no number": op("cuuid\nUUID\n)\x81}", short("int"), "Nsb"),
    "a UUID beyond 128 bits": op("cuuid\nUUID\n)\x81}", short("int"), b"\x8a\x11" + b"\xff" * 16 + b"\x01", "sb"),
    "a UUID without a value": op("cuuid\nUUID\n)\x81"),
    "a UUID called with text": op("cuuid\nUUID\n", short("0" * 32), "\x85R"),
    "a call of a call's result": op("cdatetime\ntimedelta\n(K\x01K\x01K\x01tR)R"),
    "_codecs.encode with another codec": op("c_codecs\nencode\n", short("a"), short("rot13"), b"\x86R"),
    "_codecs.decode": op("c_codecs\ndecode\nC\x01a", short("zlib"), b"\x86R"),
    "bytes of a length": op("cbuiltins\nbytes\nJ\0\0\0\x7f\x85R"),
    "bytearray of a length": op("cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R"),
    "set of text": op("cbuiltins\nset\n", short("abc"), "\x85R"),
    "an hour 255": op("cdatetime\ndatetime\nC\x0a\x07\xea\x01\x01".encode("latin1"), b"\xff\0\0\0\0\0\x85R"),
    "a year 0": op("cdatetime\ndate\nC\x04\0\0\x01\x01\x85R"),
    "a datetime with a zone of text": op(
        "cdatetime\ndatetime\nC\x0a", b"\x07\xea\x01\x01\0\0\0\0\0\0N\x86R"[:-3], "K\x01\x86R"
    ),
    "a timedelta of floats": op("cdatetime\ntimedelta\n", (b"G" + struct.pack(">d", 1e300)) * 3, b"\x87R"),
    "a timedelta beyond its range": op("cdatetime\ntimedelta\nJ\0\0\0\x7fK\x00K\x00\x87R"),
    "a timezone of 25 hours": op("cdatetime\ntimezone\ncdatetime\ntimedelta\nK\x02K\x00K\x00\x87R\x85R"),
    "a Decimal of a tuple": op("cdecimal\nDecimal\nK\x00K\x01\x85K\x00\x87\x85R"),
    "a Decimal of words": op("cdecimal\nDecimal\n", short("many"), "\x85R"),
    "an OrderedDict of pairs": op("ccollections\nOrderedDict\n]\x85R"),
    "a key that is an exception": op("}cbuiltins\nValueError\n)RNs"),
    "a key that cannot be one": op("}]Ns"),
    "appending to a dict": op("}K\x01a"),
    "appending to a bytearray": op("cbuiltins\nbytearray\n)RK\x01a"),
    "setting an item of a tuple": op(")K\x00K\x01s"),
    "setting an item without a value": op("}(K\x01u"),
    "adding to a frozenset": op(b"(\x91(K\x01\x90"),
    "a value taken before it was put": op("h\x00"),
    "more than one value popped": op("N\x86"),
    "no value": op(),
    "no end": op("N")[:-1],
    "something after the end": op("N") + b".",
    "a second pickle": op("N") * 2,
    "a second PROTO": op(b"\x80\x04N"),
    "protocol 6": b"\x80\x06N.",
    "no protocol": b"N.",
    "text of no encoding": op(b"\x8c\x01\xff"),
    "nothing": b"",
    "JSON": b'{"t": null}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_or_broken_body_is_refused(body: bytes) -> None:
    with pytest.raises(Undecodable):
        loads(body)


# Also from other Pythons than this one: Fraction before 3.11, IPv6Address before 3.11, paths of 3.13 and of Windows.
WRITTEN_ELSEWHERE: dict[str, tuple[bytes, object]] = {
    "a Fraction as text": (op("cfractions\nFraction\n", short("-1/3"), "\x85R"), Fraction(-1, 3)),
    "a whole Fraction as text": (op("cfractions\nFraction\n", short("12"), "\x85R"), Fraction(12)),
    "an IPv6Address as a number": (op("cipaddress\nIPv6Address\nK\x01\x85R"), ip_address("::1")),
    "a path of 3.13": (op("cpathlib._local\nPosixPath\n", short("/a//b"), "\x85R"), Path("/a/b")),
    "a path of Windows": (op("cpathlib\nWindowsPath\n", short("C:\\"), short("x"), "\x86R"), PureWindowsPath("C:/x")),
    "a defaultdict in protocol 2": (op("ccollections\ndefaultdict\nc__builtin__\nlong\n\x85R"), defaultdict(int)),
    "another in protocol 2": (op("ccollections\ndefaultdict\nc__builtin__\nunicode\n\x85R"), defaultdict(str)),
    "a range in protocol 2": (op("c__builtin__\nxrange\nK\x00K\x02K\x01\x87R"), range(2)),
}


@pytest.mark.parametrize(("body", "value"), WRITTEN_ELSEWHERE.values(), ids=WRITTEN_ELSEWHERE.keys())
def test_what_other_pythons_write_is_read(body: bytes, value: object) -> None:
    assert same(loads(body), value)


def test_a_zone_made_without_the_cache_is_that_of_the_cache() -> None:
    assert loads(pickle.dumps(ZoneInfo.no_cache("Europe/Berlin"))) is ZoneInfo("Europe/Berlin")


def test_a_default_is_made_by_what_was_read() -> None:
    found = loads(pickle.dumps(defaultdict(list)))
    assert isinstance(found, defaultdict)
    assert found["a"] == []


def test_what_a_body_refers_to_a_class_for_is_told() -> None:
    with pytest.raises(Undecodable, match="a class, not an object of it"):
        loads(pickle.dumps([list, uuid.UUID]))


ZONE = "cbuiltins\ngetattr\nczoneinfo\nZoneInfo\n\x8c\x09_unpickle\x86R"


def zone(name: str) -> bytes:
    return op(ZONE, "X", struct.pack("<I", len(name)), name, "K\x01\x86R")


STRANGE: dict[str, bytes] = {
    "a zone outside": zone("../../../etc/passwd"),
    "a zone beside": zone("Europe/../UTC"),
    "a zone at an absolute path": zone("/etc/localtime"),
    "a zone that is a directory": zone("Europe"),
    "a zone that is none": zone("Europe/Nowhere"),
    "a zone that is another file": zone("leapseconds"),
    "a zone in another package": zone("os.path/x"),
    "a zone without a name": zone(""),
    "a zone with a NUL": zone("UTC\0"),
    "a zone on a line of its own": zone("UTC\n"),
    "a zone of 1 MB": zone("a" * 2**20),
    "a zone of no text": op(ZONE, "K\x01K\x01\x86R"),
    "a zone from no cache nor none": op(ZONE, short("UTC"), "K\x02\x86R"),
    "a zone by a call": op("czoneinfo\nZoneInfo\n", short("UTC"), "\x85R"),
    "a zone by NEWOBJ": op("czoneinfo\nZoneInfo\n", short("UTC"), "\x85\x81"),
    "a zone from a file": op("cbuiltins\ngetattr\nczoneinfo\nZoneInfo\n", short("from_file"), "\x86R"),
    "no cache any more": op("cbuiltins\ngetattr\nczoneinfo\nZoneInfo\n", short("clear_cache"), "\x86R)R"),
    "an attribute of an attribute": op("cbuiltins\ngetattr\n", ZONE, short("__globals__"), "\x86R"),
    "an attribute of a factory": op("cbuiltins\ngetattr\ncbuiltins\nlist\n", short("_unpickle"), "\x86R"),
    "getattr as a value": op("cbuiltins\ngetattr\n"),
    "a factory as a value": op("cbuiltins\nlist\n"),
    "a call of a factory": op("cbuiltins\nlist\n)R"),
    "a defaultdict of bytes": op("ccollections\ndefaultdict\ncbuiltins\nbytes\n\x85R"),
    "a defaultdict of a class": op("ccollections\ndefaultdict\ncuuid\nUUID\n\x85R"),
    "a defaultdict of getattr": op("ccollections\ndefaultdict\ncbuiltins\ngetattr\n\x85R"),
    "a defaultdict of a value": op("ccollections\ndefaultdict\nK\x05\x85R"),
    "a defaultdict of pairs": op("ccollections\ndefaultdict\nN]\x86R"),
    "a Counter of a list": op("ccollections\nCounter\n]\x85R"),
    "a Counter that has no text": op(
        "ccollections\nCounter\n}(K\x01cdecimal\nDecimal\n", short("sNaN"), "\x85RK\x02K\x03u\x85R"
    ),
    "a Counter with an item set": op("ccollections\nCounter\n}\x85RK\x01K\x01s"),
    "a deque of text": op("ccollections\ndeque\n", short("abc"), "\x85R"),
    "a deque of a negative length": op("ccollections\ndeque\n)J\xff\xff\xff\xff\x86R"),
    "a deque of an endless length": op("ccollections\ndeque\n)", b"\x8a\x09" + b"\xff" * 8 + b"\x01", "\x86R"),
    "a deque as a key": op("}ccollections\ndeque\n)RNs"),
    "a deque in itself": op("ccollections\ndeque\n)R\x94h\x00a"),
    "a namespace in itself": op("ctypes\nSimpleNamespace\n)R\x94}", short("a"), "h\x00sb"),
    "a namespace with arguments": op("ctypes\nSimpleNamespace\n}\x85R"),
    "a namespace of slots": op("ctypes\nSimpleNamespace\n)RN}", short("a"), "K\x01s\x86b"),
    "a namespace with a method of pickle": op("ctypes\nSimpleNamespace\n)R}", short("__reduce_ex__"), "K\x01sb"),
    "a namespace with a number for a name": op("ctypes\nSimpleNamespace\n)R}K\x01K\x01sb"),
    "another class of types": op("ctypes\nFunctionType\n"),
    "a Fraction over 0": op("cfractions\nFraction\nK\x01K\x00\x86R"),
    "a Fraction of floats": op("cfractions\nFraction\n", (b"G" + struct.pack(">d", 1.5)) * 2, "\x86R"),
    "a Fraction of an exponent": op("cfractions\nFraction\n", short("1e999999999"), "\x85R"),
    "a Fraction of a Decimal": op("cfractions\nFraction\n", "cdecimal\nDecimal\n", short("1"), "\x85R\x85R"),
    "a range of 70 bits": op("cbuiltins\nrange\nK\x00\x8a\x09" + "\xff" * 8 + "\x01K\x01\x87R"),
    "a range of step 0": op("cbuiltins\nrange\nK\x00K\x01K\x00\x87R"),
    "a range of flags": op("cbuiltins\nrange\nK\x00\x88K\x01\x87R"),
    "a slice of lists": op("cbuiltins\nslice\n]]]\x87R"),
    "a path of numbers": op("cpathlib\nPosixPath\nK\x01\x85R"),
    "a path of bytes": op("cpathlib\nPosixPath\nC\x01a\x85R"),
    "a path of 5 000 characters": op(b"cpathlib\nPosixPath\nX\x88\x13\0\0", b"a" * 5000, b"\x85R"),
    "a path that is called": op("cpathlib\nPath.read_text\n)R"),
    "a method of paths": op(short("pathlib"), short("PosixPath.cwd"), b"\x93)R"),
    "the home of a path": op("cpathlib\nPath\n)R"),
    "an address of 33 bits": op("cipaddress\nIPv4Address\n\x8a\x05", b"\xff" * 4 + b"\x01", "\x85R"),
    "an address of bytes": op("cipaddress\nIPv4Address\nC\x04abcd\x85R"),
    "an address of text": op("cipaddress\nIPv4Address\n", short("1.2.3.4"), "\x85R"),
    "a negative address": op("cipaddress\nIPv6Address\nJ\xff\xff\xff\xff\x85R"),
    "a network of a pair": op("cipaddress\nIPv4Network\nK\x01K\x08\x86\x85R"),
    "a network with bits of a host": op("cipaddress\nIPv4Network\n", short("10.0.0.1/8"), "\x85R"),
    "an address of 200 characters": op("cipaddress\nIPv6Address\n", short("::1%" + "a" * 200), "\x85R"),
}
HOSTILE.update(STRANGE)


@pytest.mark.parametrize("body", STRANGE.values(), ids=STRANGE.keys())
def test_a_constructor_takes_nothing_but_what_its_pickles_have(body: bytes) -> None:
    with pytest.raises(Undecodable):
        loads(body)


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "/etc/localtime", "Europe/../UTC", "zone.tab", "os.path/x", "UTC\n", "a" * 50, "a/" * 9],
)
def test_a_zone_that_can_be_none_is_not_looked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("zoneinfo.ZoneInfo", asked.append)
    with pytest.raises(Undecodable):
        loads(zone(name))
    assert asked == []


def test_many_integers_may_be_keys_and_in_many_dicts_more() -> None:
    many: list[object] = [dict.fromkeys(range(0, 45_000 * 7919, 7919)), {i * 7919 for i in range(45_000)}]
    for value in (*many, [dict.fromkeys(range(500)) for _ in range(190)]):
        assert loads(pickle.dumps(value, 4)) == value


def test_an_empty_deque_counts_for_the_memory_it_takes() -> None:
    assert loads(pickle.dumps([deque() for _ in range(20_000)])) == [deque()] * 20_000
    with pytest.raises(Undecodable, match="more than 200000 values"):
        loads(pickle.dumps([deque() for _ in range(25_000)]))


def in_another_process(program: str, bodies: list[bytes]) -> list[Any]:
    """What a program prints as JSON about bodies that it finds in `bodies`, having imported `pickles` and `wire`."""
    lines = [
        "import json, sys, time, resource, uuid, datetime, decimal, collections",
        "from runtime.adapters.redis import pickles, wire",
        "bodies = [bytes.fromhex(line) for line in sys.stdin.read().split()]",
        program,
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        input="\n".join(body.hex() for body in bodies),
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    answer: list[Any] = json.loads(done.stdout)
    return answer


def test_reading_imports_opens_and_runs_nothing() -> None:
    """But for the data of time zones, which are where ZoneInfo looks for them."""
    harmless = [pickle.dumps(value, protocol) for value in typed_samples() for protocol in PROTOCOLS]
    answer = in_another_process(
        """
import fractions, pathlib, ipaddress, types, zoneinfo, importlib.resources
classes = [uuid.UUID, datetime.datetime, datetime.timezone, decimal.Decimal, collections.OrderedDict, zoneinfo.ZoneInfo,
           fractions.Fraction, pathlib.PosixPath, types.SimpleNamespace, collections.defaultdict, ipaddress.IPv6Network]
def state():
    return [sorted((name, id(value)) for name, value in vars(kind).items()) for kind in [*classes, pickles, uuid]]
def note(event, args):
    if recording:
        seen.append([event, *(str(arg) for arg in args[:1])])
for body in bodies[:len(bodies) - HOSTILE]:
    pickles.loads(body)
before, modules, seen, recording = state(), set(sys.modules), [], False
sys.addaudithook(note)
refused = 0
for body in bodies:
    recording = True
    try:
        pickles.loads(body)
    except pickles.Undecodable:
        refused += 1
    recording = False
imported = [name for name in set(sys.modules) - modules if not name.startswith("tzdata")]
print(json.dumps([seen, refused, state() == before, imported, list(zoneinfo.TZPATH)]))
""".replace("HOSTILE", str(len([body for body in HOSTILE.values() if body]))),
        [*harmless, *HOSTILE.values()],
    )
    events, refused, unchanged, imported, homes = answer
    assert {event for event, *_ in events} <= {"builtins.id", "open"}  # the former says nothing
    opened = [path for event, *said in events if event == "open" for path in said]
    assert all(any(path.startswith(home) for home in homes) for path in opened), opened
    assert refused == len([body for body in HOSTILE.values() if body])  # an empty one does not get through the pipe
    assert (unchanged, imported) == (True, [])


def typed_samples() -> list[object]:
    return [
        JOB,
        ROWS,
        [datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2), "EET")), date(2026, 1, 1), clock_time(3, tzinfo=UTC)],
        {uuid.uuid1(): Decimal("1.50"), (1, 2): bytearray(b"abc"), frozenset({1}): {2.5, b"x"}, 2**70: 1 + 2j},
        OrderedDict(z=1, a=[timedelta(1)]),
        {"r": ValueError("x", [1]), "s": False, "f": "f" * 300},
        {"r": asyncio.CancelledError()},
        [
            ZoneInfo("Europe/Berlin"),
            datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
            Fraction(1, 3),
            range(1, 9, 2),
            slice(3),
        ],
        [Path("/a/b"), PureWindowsPath("C:/a"), Counter("aab"), deque([1, 2], 3), SimpleNamespace(a=1, b=[2])],
        [ip_address("::1"), ip_address("1.2.3.4"), ip_network("10.0.0.0/8"), ip_interface("fe80::1/64")],
        [defaultdict(list, {1: [2]}), defaultdict(None), defaultdict(int, a=1)],
    ]


def test_a_reason_says_nothing_of_the_body() -> None:
    secret = "hunter2"
    for body in [
        op(f"c{secret}\n{secret}\n"),
        op(short(secret), "}b"),
        op("}]", short(secret), "\x85aNs"),
        op("cdecimal\nDecimal\n", short(secret), "\x85R"),
        op("cuuid\nUUID\n)\x81}", short(secret), "Nsb"),
    ]:
        with pytest.raises(Undecodable) as refusal:
            loads(body)
        assert secret not in str(refusal.value) + refusal.value.reason
        assert refusal.value.__context__ is None or secret not in str(refusal.value.__context__)


@pytest.mark.parametrize("stranger", [None, "text", 5, bytearray(pickle.dumps(1)), memoryview(pickle.dumps(1)), [b"x"]])
def test_what_is_no_bytes_is_refused(stranger: object) -> None:
    with pytest.raises(Undecodable):
        loads(stranger)  # type: ignore[arg-type]  # that is the point


def test_a_body_over_the_limit_is_refused_unread() -> None:
    body = pickle.dumps("x" * 1000)
    assert loads(body, max_bytes=len(body)) == "x" * 1000
    with pytest.raises(Undecodable, match="larger than"):
        loads(body, max_bytes=len(body) - 1)


# Malformed bodies (K4.2)


def value_or_refusal(body: bytes) -> object:
    try:
        return loads(body)
    except Undecodable as refusal:
        return refusal


def mutations(bodies: list[bytes], seed: int, count: int) -> list[bytes]:
    """So many of these, with bits turned, cut off, or with a piece of another one inside."""
    rng = random.Random(seed)

    def flip(body: bytearray) -> bytearray:
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        return body

    def cut(body: bytearray) -> bytearray:
        return body[: rng.randrange(len(body))] + (b"." if rng.random() < 0.5 else b"")

    def splice(body: bytearray) -> bytearray:
        other = rng.choice(bodies)
        start = rng.randrange(len(other))
        at = rng.randrange(len(body))
        return body[:at] + other[start : start + rng.randint(1, 40)] + body[at + rng.choice([0, 0, 1, 9]) :]

    ways: list[Callable[[bytearray], bytearray]] = [flip, cut, splice]
    return [bytes(rng.choice(ways)(bytearray(rng.choice(bodies)))) for _ in range(count)]


def samples() -> list[bytes]:
    bodies = [pickle.dumps(value, protocol) for value in typed_samples() for protocol in PROTOCOLS]
    return bodies + [failure() for _ in range(4)]


def failure() -> bytes:
    return dumps_failure(JOB | {"s": False}, "r", RemoteError("builtins.ValueError", ("x",)))


def test_a_mutated_body_gives_a_value_or_a_refusal_quickly() -> None:
    bodies = mutations(samples(), seed=20261101, count=20_000)
    started = time.perf_counter()
    outcomes = [value_or_refusal(body) for body in bodies]
    assert (time.perf_counter() - started) / len(bodies) < 0.001
    refused = sum(isinstance(outcome, Undecodable) for outcome in outcomes)
    assert 1_000 < refused < 19_000  # both happen


def test_what_is_proven_of_mutated_bodies_is_so() -> None:
    for body in mutations(samples(), seed=7, count=5_000):
        if not proof.proven(body):
            continue
        quick = value_or_refusal(body)
        try:
            careful: object = machine.Machine(body).run()
        except Exception:
            continue  # it may be stricter
        assert isinstance(quick, Undecodable) or repr(quick) == repr(careful)


pieces = st.sampled_from(
    [bytes([code]) for code in range(256)]
    + [b"K\x05", b"h\x00", b"q\x00", b"(", b"(", b"u", b"e", b"s", b"}", b"]", b"\x94", b"\x85", b"R", b"b", b"\x81"]
    + [b"cuuid\nUUID\n", b"cdatetime\ndate\n", b"C\x04\x07\xea\x01\x01", b"\x8c\x03int", b"cbuiltins\nset\n"]
    + [ZONE.encode("latin1"), b"\x8c\x03UTCK\x01\x86", b"ccollections\ndeque\n)", b"ccollections\nCounter\n}\x85"]
    + [b"ccollections\ndefaultdict\n", b"cbuiltins\nlist\n\x85", b"ctypes\nSimpleNamespace\n)R}", b"cbuiltins\nrange\n"]
    + [b"cpathlib\nPosixPath\n", b"cfractions\nFraction\n", b"cipaddress\nIPv6Address\n", b"\x87", b"\x8c\x011\x85"]
    + [b"cbuiltins\nKeyError\n", b"ccollections\nOrderedDict\n", b"cdecimal\nDecimal\n", b"\x8c\x011", b"X\x01\0\0\0a"]
)


@given(st.lists(pieces, max_size=30))
def test_any_stream_of_opcodes_gives_a_value_or_a_refusal(stream: list[bytes]) -> None:
    value_or_refusal(op(*stream))


@given(st.binary(max_size=100))
def test_any_bytes_give_a_value_or_a_refusal(data: bytes) -> None:
    value_or_refusal(data)
    value_or_refusal(b"\x80\x04" + data + b".")


# Bombs (K4.3)


def doubled(make: Callable[[object], object], times: int) -> object:
    value: object = make(1)
    for _ in range(times):
        value = make(value)
    return value


def long1(number: int) -> bytes:
    return pickle.dumps(number, 2)[2:-1]


def over_and_over(kind: str, args: object) -> bytes:
    """A body of 1 MB that makes the same thing of one tuple, as often as it has room for."""
    shared = pickletools.optimize(pickle.dumps(args, 2))[2:-1]
    return op("(", shared, "q\0", f"c{kind}\n", "q\1", "h\1h\0R" * 200_000, "l")


SLOW: dict[str, tuple[str, object]] = {
    "Fraction": ("fractions\nFraction", (10**4299 + 7, 3**9000)),
    "Fraction as text": ("fractions\nFraction", (f"{10**4299 + 7}/{3**9000}",)),
    "path": ("pathlib\nPosixPath", ("a/" * 2000,)),
    "path of 4 000 parts": ("pathlib\nPureWindowsPath", ("",) * 4000),
    "network": ("ipaddress\nIPv6Network", ("2001:db8::/32",)),
    "interface": ("ipaddress\nIPv6Interface", ("2001:db8:1:2:3:4:5:6%eth0/32",)),
    "IPv6 address": ("ipaddress\nIPv6Address", ("2001:db8:1:2:3:4:5:6%eth0",)),
    "IPv4 address": ("ipaddress\nIPv4Address", (5,)),
    "range": ("builtins\nrange", (0, 2**62, 3)),
    "deque": ("collections\ndeque", ((), 5)),
    "namespace": ("types\nSimpleNamespace", ()),
}
ONE_HASH = 2**61 - 1  # integers are hashed modulo this
BOMBS: dict[str, bytes] = {
    "memo index 2^27 in 9 bytes": op("Nr", struct.pack("<I", 2**27)),
    "2^27 shared lists": pickle.dumps(doubled(lambda x: [x, x], 27)),
    "2^27 shared dicts": pickle.dumps(doubled(lambda x: {1: x, 2: x}, 27)),
    "2^40 shared tuples": pickle.dumps(doubled(lambda x: (x, x), 40)),
    "2^40 shared tuples as a key": op("}N", *[b"\x94h" + bytes([i]) + b"\x86" for i in range(40)], "Ns"),
    "2^40 shared tuples in a set": op(b"\x8f(N", *[b"\x94h" + bytes([i]) + b"\x86" for i in range(40)], b"\x90"),
    "a wide tuple as a key, over and over": op("}((", "N" * 20_000, "t\x94", "Nh\x00" * 20_000, "Nu"),
    "100 000 nested lists": op("]" * 100_000, "a" * 99_999),
    "100 000 nested lists of one list": op("]\x94(h\x00", "]" * 100_000, "a" * 99_999, "l"),
    "100 000 nested tuples": op("N", b"\x85" * 100_000),
    "a million nested tuples as a key": op("}N", b"\x85" * 1_000_000, "Ns"),
    "100 000 marks": op("(" * 100_000),
    "100 000 nested dicts": op("}" + "K\x01}" * 99_999, "s" * 99_999),
    "a list in itself": op("]\x94h\x00a"),
    "a dict in itself": op("}\x94Nh\x00s"),
    "an integer of 1 MB": op(b"\x8b", struct.pack("<i", 2**20), b"\x7f" * 2**20),
    "an integer of -1 bytes": op(b"\x8b\xff\xff\xff\xff"),
    "an integer of 4 301 digits": pickle.dumps(10**4300),
    "a bytearray of 2^40 bytes": op(b"\x96", struct.pack("<Q", 2**40)),
    "a bytearray of 2^63 bytes": op(b"\x96", struct.pack("<Q", 2**63)),
    "bytes of 2^40 bytes": op(b"\x8e", struct.pack("<Q", 2**40)),
    "bytes of 2^32 bytes": op(b"B\xff\xff\xff\xff"),
    "text of 2^63 bytes": op(b"\x8d", struct.pack("<Q", 2**63 - 1)),
    "text of 2^31 bytes": op(b"X\xff\xff\xff\x7f"),
    "a frame of 2^62 bytes": op(b"\x95", struct.pack("<Q", 2**62), "N"),
    "a frame of 2^64 bytes": op(b"\x95\xff\xff\xff\xff\xff\xff\xff\xff", "N"),
    "100 000 frames and no value": op(b"\x95\0\0\0\0\0\0\0\0" * 100_000),
    "16 000 integers of one hash": op("}(", *[long1(i * ONE_HASH) + b"N" for i in range(2, 16_000)], "u"),
    "16 000 integers of one hash, one by one": op("}", *[long1(i * ONE_HASH) + b"Ns" for i in range(2, 16_000)]),
    "16 000 integers of one hash in a set": op(b"(", *[long1(i * ONE_HASH) for i in range(2, 16_000)], b"\x91"),
    "a list copied into 50 000 sets": op(
        "((", "K\x01" * 9_000, "l\x94\x85\x94cbuiltins\nset\n\x94", "h\x02h\x01R" * 50_000, "l"
    ),
    "a text turned into 50 000 Decimals": op(
        b"(X\xa0\x0f\0\0", b"1" * 4000, b"\x85\x94cdecimal\nDecimal\n\x94", b"h\x01h\x00R" * 50_000, b"l"
    ),
    "a Decimal of a billion zeros": op("cdecimal\nDecimal\n", short("1E+999999999"), "\x85R"),
    "a Decimal of 1 MB": op(b"cdecimal\nDecimal\nX\0\0\x10\0", b"1" * 2**20, b"\x85R"),
    **{f"a {name} over and over": over_and_over(kind, args) for name, (kind, args) in SLOW.items()},
    "2^27 shared deques": pickle.dumps(doubled(lambda x: deque([x, x]), 27)),
    "2^27 shared namespaces": pickle.dumps(doubled(lambda x: SimpleNamespace(a=x, b=x), 27)),
    "2^27 shared Counters": pickle.dumps(doubled(lambda x: Counter[str]({"a": x, "b": x}), 27)),
    "a namespace filled over and over": op(
        "}\x94(",
        *[short(str(i)) + b"N" for i in range(5_000)],
        "u0"[:1],
        "ctypes\nSimpleNamespace\n)R",
        "h\x00b" * 50_000,
    ),
    "a Counter of 5 000, over and over": op(
        "(}(",
        *[short(str(i)) + b"N" for i in range(5_000)],
        "u\x85\x94ccollections\nCounter\n\x94",
        b"h\x01h\x00R" * 50_000,
        "l",
    ),
    "all zones, 25 times": op(
        "(", *[ZONE.encode("latin1") + short(name) + b"K\x01\x86R" for name in sorted(available_timezones())] * 25, "l"
    ),
    "a Fraction of 4 000 digits as a key, over and over": op(
        "cfractions\nFraction\n", long1(3**8000), long1(2**13000), "\x86R\x94", ("}(" + "h\x00N" * 15 + "u") * 12_000
    ),
    "100 000 integers as keys": op(
        "}",
        *[
            "(" + "".join(f"J{struct.pack('<i', i * 7919).decode('latin1')}N" for i in range(at, at + 1000)) + "u"
            for at in range(0, 100_000, 1000)
        ],
    ),
    "100 000 integers in a set": pickle.dumps({i * 7919 for i in range(100_000)}, 4),
    "300 000 empty sets": op(b"(", b"\x8f" * 300_000, b"l"),
    "300 000 nothings": op("(", "N" * 300_000, "l"),
    "200 000 keys of a tuple": op("}(", b"(K\x01tN" * 200_001, "u"),
}


def large_bombs() -> dict[str, bytes]:
    return {
        "8 MB of empty sets": op(b"(", b"\x8f" * (2**23 - 8), b"l"),
        "8 MB of nothing": op("(", "N" * (2**23 - 8), "l"),
        "8 MB of memo entries": op("N", b"\x94" * (2**23 - 8)),
        "8 MB of memo reads": op(b"N\x94(", b"h\x00" * (2**22 - 8), b"l"),
        "8 MB of keys": op("}(", *[b"M" + struct.pack("<H", i % 2**16) + b"N" for i in range(2**21 - 8)], "u"),
    }


def test_a_bomb_is_refused_and_costs_neither_time_nor_memory() -> None:
    bombs = BOMBS | large_bombs()
    answer = in_another_process(
        """
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answer = []
for body in bodies:
    took = []
    before = peak()
    for _ in range(2):
        started = time.process_time()
        try:
            pickles.loads(body)
        except pickles.Undecodable as refusal:
            took.append(time.process_time() - started)
            reason = refusal.reason
    answer.append([min(took), (peak() - before) / 1024, reason])
print(json.dumps(answer))
""",
        list(bombs.values()),
    )
    for (name, body), (seconds, megabytes, reason) in zip(bombs.items(), answer, strict=True):
        assert seconds < (0.05 if len(body) < 2**16 else 1.0), (name, seconds, reason)
        assert megabytes < 64, (name, megabytes)


# Writing


class Money:
    def __init__(self) -> None:
        self.amount = "a secret amount"


class Label(str):
    __slots__ = ()


class MyPath(PurePosixPath):
    __slots__ = ()


class Tally(Counter[str]):
    pass


class Own(tzinfo):
    """A zone of the application's."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> str:
        return "own"


def endless() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Money(), "Money"),
        ({"a": [1, (Money(),)]}, "Money"),
        ({Label("x"): 1}, "Label"),
        (array("i", [1]), "array.array"),
        ([datetime(2026, 1, 1, tzinfo=Own())], "Own"),
        ({"p": [MyPath("/a")]}, "MyPath"),
        ([Tally("aab")], "Tally"),
        ([1, {"a": defaultdict(Money)}], "collections.defaultdict"),
        (lambda: None, "builtins.function"),
        ((x for x in "abc"), "builtins.generator"),
        (Money, "builtins.type"),
        ({"r": RemoteError("builtins.ValueError", ())}, "RemoteError"),
        (ValueError(Money()), "Money"),
        (endless(), "list"),
        (doubled(lambda x: [x], 80), "list"),
        (doubled(lambda x: [x], 2000), "list"),
        (doubled(lambda x: [x, x], 30), "list"),
        (10**5000, "int"),
        ("x" * 2**23, "str"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else type(value).__name__,
)
def test_what_could_not_be_read_is_not_written_and_the_type_is_named(value: object, name: str) -> None:
    with pytest.raises(TypeError, match=name) as refusal:
        dumps(value)
    assert "secret" not in str(refusal.value)
    assert len(str(refusal.value)) < 200
    assert refusal.value.__context__ is None


def test_a_plain_job_is_written_as_arq_writes_it() -> None:
    assert dumps(JOB) == pickle.dumps(JOB, 4)
    assert deserialize_job(dumps(JOB)).args == JOB["a"]


def test_an_exception_returned_as_a_value_is_written_as_one() -> None:
    data = dumps([ValueError("x")])
    assert loads(data) == [RemoteError("builtins.ValueError", ("x",))]


FIELDS = JOB | {"s": False, "st": 1795000000000, "ft": 1795000000500, "q": "arq:queue", "id": "abc"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RemoteError("builtins.ValueError", ("wrong", 5)), ValueError("wrong", 5)),
        (RemoteError("builtins.KeyError", ()), KeyError()),
        (RemoteError("builtins.FileNotFoundError", (2, "no such", "f")), FileNotFoundError(2, "no such", "f")),
        (RemoteError("builtins.UnicodeDecodeError", ("utf-8", b"\xff", 0, 1, "no")), None),
        (RemoteError("asyncio.exceptions.CancelledError", ()), asyncio.CancelledError()),
        (RemoteError("arq.worker.JobExecutionFailed", ("max retries",)), arq.worker.JobExecutionFailed("max retries")),
        (RemoteError("httpx.ReadTimeout", ("slow",)), arq.worker.JobExecutionFailed("httpx.ReadTimeout: slow")),
        (RemoteError("httpx.ReadTimeout", ()), arq.worker.JobExecutionFailed("httpx.ReadTimeout")),
        (RemoteError("builtins.SystemExit", (1,)), arq.worker.JobExecutionFailed("builtins.SystemExit")),
        (
            RemoteError("builtins.UnicodeDecodeError", ("x",)),
            arq.worker.JobExecutionFailed("builtins.UnicodeDecodeError: x"),
        ),
        (
            RemoteError("builtins.ExceptionGroup", ("x", [])),
            arq.worker.JobExecutionFailed("builtins.ExceptionGroup: x"),
        ),
        (RemoteError("builtins.ValueError", (Money(),)), arq.worker.JobExecutionFailed("builtins.ValueError")),
        (RemoteError("builtins.eval", ("1",)), arq.worker.JobExecutionFailed("builtins.eval: 1")),
        (RemoteError("a\nb.c\nos", ("1",)), arq.worker.JobExecutionFailed("a\nb.c\nos: 1")),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_failure_is_an_exception_to_stock_clients_and_a_stand_in_to_ours(
    error: RemoteError, expected: BaseException | None
) -> None:
    data = dumps_failure(FIELDS, "r", error)
    stock = deserialize_result(data)
    if expected is None:
        expected = getattr(builtins, error.name.removeprefix("builtins."))(*error.args)
    assert type(stock.result) is type(expected)
    assert stock.result.args == expected.args
    assert (stock.function, stock.args, stock.success, stock.job_id) == ("send_mail", JOB["a"], False, "abc")
    ours = loads(data)
    assert isinstance(ours, dict)
    assert {key: value for key, value in ours.items() if key != "r"} == FIELDS
    assert isinstance(ours["r"], RemoteError)
    assert ours["r"].args == pickle.loads(pickle.dumps(error.args)) or ours["r"].name == pickles._JOB_FAILED


@given(st.dictionaries(st.text(max_size=4), typed_values, max_size=5), st.lists(scalars, max_size=3))
def test_fragments_of_a_failure_do_not_disturb_each_other(fields: dict[str, object], args: list[object]) -> None:
    shared = ["same", "same", fields]
    data = dumps_failure(
        {**fields, "one": shared, "two": shared}, "the error", RemoteError("builtins.LookupError", tuple(args))
    )
    for loaded in (loads(data), pickle.loads(data)):
        assert isinstance(loaded, dict)
        error = loaded.pop("the error")
        assert same(error.args, tuple(args))
        assert loaded == {**fields, "one": shared, "two": shared}


def test_the_error_takes_the_place_of_a_field_of_its_name() -> None:
    data = dumps_failure({"r": Money(), "s": False}, "r", RemoteError("builtins.OSError", ()))
    assert loads(data) == {"s": False, "r": RemoteError("builtins.OSError", ())}


def test_a_failure_with_a_field_that_cannot_be_read_is_not_written() -> None:
    with pytest.raises(TypeError, match="Money"):
        dumps_failure({"a": [Money()]}, "r", RemoteError("builtins.ValueError", ()))


def test_writing_a_failure_does_not_import_arq() -> None:
    program = (
        "pickles.dumps_failure({}, 'r', pickles.RemoteError('arq.worker.JobExecutionFailed', ('x',)))\n"
        "print(json.dumps([['arq' in sys.modules]]))"
    )
    assert in_another_process(program, []) == [[False]]


def test_a_stock_result_with_any_exception_can_be_read_and_a_body_cannot_hold_one() -> None:
    from aiohttp import ServerDisconnectedError

    data = pickle.dumps({"s": False, "r": ServerDisconnectedError("gone")})
    found = loads(data, any_error=True)
    error = RemoteError("aiohttp.client_exceptions.ServerDisconnectedError", ("gone",))
    assert found == {"s": False, "r": error}
    with pytest.raises(Undecodable):
        loads(data)
