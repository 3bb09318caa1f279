"""Bodies and results in every codec: told apart, read whatever they hold (K4.1 to K4.3), answered in kind."""

from __future__ import annotations

import json
import math
import pickle
import sys
import types
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.adapters.redis import codecs, wire
from runtime.adapters.redis.codecs import Serializer, Undecodable
from runtime.adapters.redis.documents import loads_json, loads_msgpack
from runtime.core.errors import SettingsInvalid
from runtime.core.job import Call, Cancelled, Claim, Codec, Dead, Done, Failure, Settlement, Unreadable
from tests.unit.test_pickles import JOB, PROTOCOLS, in_another_process, mutations, samples

MB = 2**20
ARGS = [1, "é😀", None, True, -2.5, [], {}, [[{"a": [1, {"b": "x" * 300}]}]], 2**63, 'a,b:[{\\"']
BODY = {"t": None, "f": "work", "a": ARGS, "k": {"when": "now", "n": list(range(40))}, "et": 1795000000000}


def packed(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def squeezed(value: object) -> bytes:
    return zlib.compress(json.dumps(value).encode())


SQUEEZED = Serializer("squeezed", squeezed, lambda data: json.loads(zlib.decompress(data)))

WRITTEN: dict[str, tuple[bytes, Codec]] = {
    "json": (json.dumps(BODY).encode(), "json"),
    "json without escapes": (json.dumps(BODY, ensure_ascii=False).encode(), "json"),
    "json with indents": (b" \r\n\t" + json.dumps(BODY, indent=4).encode(), "json"),
    "msgspec's json": (msgspec.json.encode(BODY), "json"),
    "msgpack": (packed(BODY), "msgpack"),
    "msgpack, a map of 16 bits": (b"\xde\0\x05" + packed(BODY)[1:], "msgpack"),
    "msgpack, a map of 32 bits": (b"\xdf\0\0\0\x05" + packed(BODY)[1:], "msgpack"),
    **{f"pickle {protocol}": (pickle.dumps(BODY, protocol), "pickle") for protocol in PROTOCOLS},
}


@pytest.mark.parametrize(("body", "codec"), WRITTEN.values(), ids=WRITTEN.keys())
def test_a_body_is_read_whatever_it_is_written_in(body: bytes, codec: Codec) -> None:
    assert wire.decode_call(body) == Call("work", tuple(ARGS), BODY["k"], 1795000000000, codec=codec)  # type: ignore[arg-type]


def test_what_pythons_json_writes_beyond_the_standard_is_read() -> None:
    odd = [float("inf"), -float("inf"), "\ud800", 10**4000]
    call = wire.decode_call(json.dumps({**JOB, "a": odd}).encode())
    assert isinstance(call, Call)
    assert call.args == tuple(odd)
    call = wire.decode_call(json.dumps({**JOB, "a": [math.nan]}).encode())
    assert isinstance(call, Call)
    assert math.isnan(call.args[0])  # type: ignore[arg-type]


def test_a_timestamp_of_messagepack_is_a_datetime() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    call = wire.decode_call(packed({**JOB, "a": [moment]}))
    assert isinstance(call, Call)
    assert call.args == (moment,)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)


@given(plain)
def test_plain_values_come_back_from_json_and_messagepack(value: object) -> None:
    assert loads_json(json.dumps(value).encode()) == value
    assert loads_json(json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")) == value
    assert loads_msgpack(packed(value)) == value


def test_json_has_null_for_numbers_that_are_none() -> None:
    data = codecs.dumps({"r": [math.nan, math.inf]}, "json")
    assert codecs.loads(data) == ({"r": [None, None]}, "json")


@given(plain, st.sampled_from(["json", "msgpack", "custom", "pickle"]))
def test_what_is_written_is_read(value: object, codec: Codec) -> None:
    data = codecs.dumps({"r": value}, codec, SQUEEZED)
    assert codecs.loads(data, SQUEEZED) == ({"r": value}, codec)


# Bodies that are none


def nested(depth: int, opening: bytes, closing: bytes = b"") -> bytes:
    return opening * depth + closing * depth


NO_BODIES: dict[str, bytes] = {
    "an empty map": b"\x80",
    "no bytes": b"",
    "protocol 1": b"}q\0.",
    "protocol 0": pickle.dumps(JOB, 0),
    "white space": b" " * 1000,
    "a JSON list": b'["work"]',
    "a MessagePack list": b"\x91\xa4work",
    "no fields": b"{}",
    "no t": json.dumps({key: value for key, value in JOB.items() if key != "t"}).encode(),
    "a number for f": json.dumps({**JOB, "f": 5}).encode(),
    "a float for et": json.dumps({**JOB, "et": 1.5}).encode(),
    "a bool for et": packed({**JOB, "et": True}),
    "text for t": packed({**JOB, "t": "1"}),
    "a dict for a": json.dumps({**JOB, "a": {}}).encode(),
    "a list for k": json.dumps({**JOB, "k": []}).encode(),
    "numbers in k": packed({**JOB, "k": {1: 2}}),
    "two values": json.dumps(JOB).encode() + b"{}",
    "two packs": packed(JOB) * 2,
    "cut JSON": json.dumps(JOB).encode()[:-1],
    "cut MessagePack": packed(JOB)[:-1],
    "no UTF-8 in JSON": b'{"f":"\xff"}',
    "no UTF-8 in MessagePack": b"\x81\xa1f\xa1\xff",
    "UTF-16": json.dumps(JOB).encode("utf-16-le"),
    "an extension": packed({**JOB, "a": [msgspec.msgpack.Ext(5, b"x")]}),
    "a timestamp out of range": b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,
    "a byte that is never used": b"\x81\xa1a\xc1",
    "an array as a key": b"\x81\x92\1\2\1",
    "a map as a key": b"\x81\x80\1",
    "a timestamp as a key": b"\x81\xd6\xff\0\0\0\1\1",
    "100 000 nested JSON lists": b'{"a":' + nested(100_000, b"[", b"]") + b"}",
    "100 000 nested JSON lists without end": b'{"a":' + nested(100_000, b"["),
    "100 000 nested JSON objects": nested(100_000, b'{"a":', b"}"),
    "65 nested JSON lists": json.dumps({**JOB, "a": json.loads(nested(65, b"[", b"]"))}).encode(),
    "100 000 nested arrays": b"\x81\xa1a" + nested(100_000, b"\x91") + b"\1",
    "100 000 nested maps": nested(100_000, b"\x81\xa1a") + b"\1",
    "65 nested arrays": b"\x81\xa1a" + nested(65, b"\x91") + b"\1",
    "an array of 2^32": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a map of 2^32": b"\xdf\xff\xff\xff\xff\xa1a",
    "arrays of 2^17": b"\x81\xa1a" + b"\xdd\0\2\0\0" * 60,
    "text of 2^32": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "an integer of 1 MB": b'{"et":' + b"9" * MB + b"}",
    "a float of 1 MB": b'{"et":0.' + b"9" * MB + b"}",
    "8 MB of empty lists": b'{"a":[' + b"[]," * (8 * MB // 3 - 10) + b"[]]}",
    "8 MB of empty objects": b'{"a":[' + b"{}," * (8 * MB // 3 - 10) + b"{}]}",
    "8 MB of empty texts": b'{"a":[' + b'"",' * (8 * MB // 3 - 10) + b'""]}',
    "8 MB of open lists": b'{"a":' + b"[" * (8 * MB - 10),
    "8 MB of commas": b"{" + b"," * (8 * MB - 10),
    "8 MB of white space": b" " * (8 * MB - 10) + b"{}",
    "8 MB of backslashes": b'{"a":"' + b"\\" * (8 * MB - 10),
    "8 MB of quotes": b'{"a":"' + b'\\"' * (4 * MB - 10),
    "8 MB of empty arrays": b"\x81\xa1a\xdd\0\x7f\xff\xff" + b"\x90" * 0x7FFFFF,
    "8 MB of empty maps": b"\x81\xa1a\xdd\0\x7f\xff\xff" + b"\x80" * 0x7FFFFF,
    "200 000 keys in JSON": json.dumps({**JOB, "k": dict.fromkeys(map(str, range(200_000)))}).encode(),
    "200 000 keys in MessagePack": packed({**JOB, "k": dict.fromkeys(map(str, range(200_000)))}),
    "9 MB": json.dumps({**JOB, "a": ["x" * 9 * MB]}).encode(),
}


def test_what_is_no_body_is_refused_at_once_within_little_memory_and_without_quoting_it() -> None:
    answer = in_another_process(
        """
def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
answer = []
for body in bodies:
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before, took = memory("VmRSS"), []
    for _ in range(2):
        started = time.process_time()
        outcome = wire.decode_call(body)
        took.append(time.process_time() - started)
    megabytes = (memory("VmHWM") - before) / 1024
    answer.append([type(outcome).__name__, getattr(outcome, "reason", ""), min(took), megabytes])
print(json.dumps(answer))
""",
        [body for body in NO_BODIES.values() if body],
    )
    names = [name for name, body in NO_BODIES.items() if body]
    for name, (kind, reason, seconds, megabytes) in zip(names, answer, strict=True):
        assert kind == "Unreadable", name
        assert 10 < len(str(reason)) < 120, (name, reason)
        assert seconds < 1.0, (name, seconds, reason)
        assert megabytes < 64, (name, megabytes, reason)
    assert isinstance(wire.decode_call(b""), Unreadable)


@pytest.mark.parametrize("name", ["an array as a key", "a map as a key", "a timestamp as a key"])
def test_keys_whose_hash_values_can_be_chosen_are_refused_before_they_are_hashed(name: str) -> None:
    with pytest.raises(Undecodable, match="has a key"):
        loads_msgpack(NO_BODIES[name])


def test_large_bodies_of_few_values_are_read() -> None:
    text = 'a,b:[{}]\\"' * 400_000
    for body in (json.dumps({**JOB, "a": [text]}).encode(), packed({**JOB, "a": [text]})):
        call = wire.decode_call(body)
        assert isinstance(call, Call)
        assert call.args == (text,)
    rows = [{"id": i, "tags": ["x", "y"]} for i in range(20_000)]
    for body in (json.dumps({**JOB, "a": [rows]}, indent=2).encode(), packed({**JOB, "a": [rows]})):
        call = wire.decode_call(body)
        assert isinstance(call, Call)
        assert call.args == (rows,)


def test_of_two_equal_keys_the_last_one_counts() -> None:
    twice = wire.decode_call(b'{"f":"bad","t":null,"a":[],"k":{},"et":1,"f":"good"}')
    assert isinstance(twice, Call)
    assert twice.handler == "good"


def all_samples() -> list[bytes]:
    bodies = [body for body, _ in WRITTEN.values()] * 4
    bodies += [json.dumps({**JOB, "a": [math.nan, "\ud800"]}).encode(), packed({**JOB, "a": [datetime.now(UTC), b"x"]})]
    return [*bodies, squeezed(BODY), *samples()]


def test_20_000_mutated_bodies_are_calls_or_refusals_and_reading_them_runs_nothing() -> None:
    bodies = [body for body in mutations(all_samples(), seed=20261122, count=20_000) if body]
    answer = in_another_process(
        """
import zlib, fractions, zoneinfo
from contextlib import suppress
from runtime.adapters.redis.codecs import Serializer
with suppress(Exception):
    zoneinfo.ZoneInfo("No/Where")  # it looks for the package of zones, once
def note(event, args):
    if recording and not (event == "open" and str(args[0]).startswith(zoneinfo.TZPATH)):
        seen.add(event)
squeezed = Serializer("squeezed", None, lambda data: json.loads(zlib.decompress(data)))
seen, recording, kinds = set(), False, {}
sys.addaudithook(note)
modules = set(sys.modules)
started = time.process_time()
for body in bodies:
    for serializer in (None, squeezed):
        recording = True
        outcome = wire.decode_call(body, serializer)
        recording = False
        kind = getattr(outcome, "codec", type(outcome).__name__)
        kinds[kind] = kinds.get(kind, 0) + 1
print(json.dumps([sorted(seen), kinds, [time.process_time() - started, set(sys.modules) == modules]]))
""",
        bodies,
    )
    events, kinds, (seconds, same_modules) = answer
    assert set(map(str, events)) <= {"builtins.id"}
    assert same_modules
    assert min(kinds[kind] for kind in ("pickle", "json", "msgpack", "Unreadable")) > 200, kinds
    assert seconds < 40


@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_a_refusal(data: bytes) -> None:
    for head in (b"", b"{", b'{"a":', b"\x85", b"\x81\xa1a", b"\xde\0\1\xa1a"):
        assert isinstance(wire.decode_call(head + data), Call | Unreadable)


tokens = st.sampled_from([bytes([code]) for code in (*range(0x80, 0x95), *range(0xC0, 0x100))]) | st.sampled_from(
    [b"\x01", b"\xa1a", b"\xa1f", b"\xd6\xff\0\0\0\1", b"\xd9\1x", b"\xdc\0\2", b"\xde\0\1", b"\xc4\1x", b"\xa0"]
)


@given(st.lists(tokens, max_size=40).map(b"".join))
def test_what_passes_our_look_at_messagepack_is_read_alike_by_another_eye(data: bytes) -> None:
    try:
        value = loads_msgpack(data)
    except Exception:
        return
    assert repr(msgspec.msgpack.decode(data)) == repr(value)


@given(
    st.lists(
        st.sampled_from(
            ["{", "}", "[", "]", ":", ",", '""', "\\", '"a":', "NaN", "1e9", '"\\ud800"', "null", "\\u12", '\\"', "\n"]
        ),
        max_size=40,
    ).map("".join)
)
def test_any_stream_of_json_is_a_call_or_a_refusal(text: str) -> None:
    assert isinstance(wire.decode_call(b"{" + text.encode()), Call | Unreadable)


# Results


def settlement(codec: Codec | None, outcome: Done | Dead | Cancelled, body: bytes = b"") -> Settlement:
    call = Call("work", (1, [2]), {"a": "b"}, 1795000000000, codec=codec) if codec else Unreadable("it is odd")
    claim = Claim("id", "q", "token", "0", 1, 2, call, body, 0)
    return Settlement(claim, outcome, 1795000000001, 1795000000002)


READERS: dict[Codec, Any] = {
    "pickle": pickle.loads,
    "json": json.loads,
    "msgpack": msgspec.msgpack.decode,
    "custom": SQUEEZED.loads,
}
FAILED = Dead("permanent", Failure("ValueError", "boom: 7", "transient", builtin=True))
FOREIGN = Dead("permanent", Failure("httpx.ReadTimeout", "", "transient"))


@pytest.mark.parametrize("codec", READERS)
def test_a_result_is_written_in_the_codec_of_its_body(codec: Codec) -> None:
    data = wire.encode_result(settlement(codec, Done({"rows": [1, None, "é"]})), SQUEEZED)
    fields = READERS[codec](data)
    assert (fields["s"], fields["r"], fields["k"]) == (True, {"rows": [1, None, "é"]}, {"a": "b"})
    assert {key: fields[key] for key in ("t", "f", "et", "st", "ft", "q", "id")} == {
        "t": 2, "f": "work", "et": 1795000000000, "st": 1795000000001, "ft": 1795000000002, "q": "q", "id": "id",
    }  # fmt: skip
    found = wire.decode_result(data, SQUEEZED)
    assert (found.ok, found.value, found.attempt) == (True, {"rows": [1, None, "é"]}, 2)


@pytest.mark.parametrize("codec", READERS)
@pytest.mark.parametrize(
    ("outcome", "error", "text"),
    [
        (FAILED, "ValueError", "boom: 7"),
        (replace(FAILED, failure=replace(FAILED.failure, text="two\nlines")), "ValueError", "two\nlines"),
        (replace(FAILED, failure=replace(FAILED.failure, text="")), "ValueError", ""),
        (replace(FOREIGN, failure=replace(FOREIGN.failure, text="slow")), "httpx.ReadTimeout", "slow"),
        (Cancelled(), "asyncio.exceptions.CancelledError", ""),
    ],
    ids=["builtin", "lines", "no text", "foreign", "cancelled"],
)
def test_a_failure_comes_back_with_its_name_and_text(
    codec: Codec, outcome: Dead | Cancelled, error: str, text: str
) -> None:
    data = wire.encode_result(settlement(codec, outcome), SQUEEZED)
    found = wire.decode_result(data, SQUEEZED)
    assert (found.ok, found.error, found.text, found.cancelled) == (False, error, text, outcome == Cancelled())
    if codec != "pickle":
        assert READERS[codec](data)["r"] == (f"{error}: {text}" if text else error)


@pytest.mark.parametrize("codec", READERS)
def test_a_waiting_job_that_is_cancelled_is_answered_in_the_codec_of_its_body(codec: Codec) -> None:
    body = codecs.dumps(JOB, codec, SQUEEZED)
    data = wire.encode_cancelled("id", "q", body, 1, SQUEEZED)
    assert codecs.loads(data, SQUEEZED, any_error=True)[1] == codec
    assert wire.decode_result(data, SQUEEZED).cancelled


def endless() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize("codec", READERS)
@pytest.mark.parametrize(
    "value", [object(), {(1, 2): 3}, endless(), "x" * (8 * MB), json.loads("[" * 70 + "]" * 70), 1j, {"a": sys}]
)
def test_a_value_that_the_codec_cannot_hold_is_a_success_with_a_marker(codec: Codec, value: object) -> None:
    if codec == "pickle" and isinstance(value, dict | complex) and value != {"a": sys}:
        return  # pickles hold these
    if codec == "custom" and isinstance(value, str):
        return  # it is small once compressed
    found = wire.decode_result(wire.encode_result(settlement(codec, Done(value)), SQUEEZED), SQUEEZED)
    assert found.ok
    assert str(found.value) == f"{wire.NO_RESULT}: {type(value).__name__}"


def test_a_body_that_could_not_be_read_is_answered_in_the_codec_that_it_seems_to_be() -> None:
    for body, codec in ((b'{"a":', "json"), (b"\x81\xa1", "msgpack"), (b"\x80\x04", "pickle"), (b"", "pickle")):
        data = wire.encode_result(settlement(None, FAILED, body))
        assert codecs.recognise(data) == codec
        assert wire.decode_result(data).text == "boom: 7"
    assert READERS["custom"](wire.encode_result(settlement(None, FAILED, b"?"), SQUEEZED))["s"] is False


def test_names_that_are_no_unicode_do_not_keep_a_result_from_being_written() -> None:
    for codec in READERS:
        odd = settlement(codec, FAILED)
        odd = replace(odd, claim=replace(odd.claim, id="\udcff", call=Call("\ud800", (), {}, 10**400, codec=codec)))
        assert wire.decode_result(wire.encode_result(odd, SQUEEZED), SQUEEZED).text == "boom: 7"


@pytest.mark.parametrize("codec", READERS)
def test_results_that_are_none_are_refused(codec: Codec) -> None:
    good = {"t": 1, "f": "x", "a": [], "k": {}, "et": 1, "s": True, "r": 1, "st": 1, "ft": 1}
    bad: list[dict[str, object]] = [{"s": True}, {**good, "st": "x"}, {**good, "t": []}, {**good, "ft": 10.5}]
    for fields in bad:
        with pytest.raises(Undecodable):
            wire.decode_result(codecs.dumps(fields, codec, SQUEEZED), SQUEEZED)


def test_stock_arqs_own_text_for_an_unserializable_result_is_read_as_a_failure() -> None:
    fields = {"t": 1, "f": "x", "a": [], "k": {}, "et": 1, "s": False, "r": "unable to serialize result", "st": 1}
    found = wire.decode_result(json.dumps({**fields, "ft": 1}).encode())
    assert (found.ok, found.error, found.text) == (False, "error", "unable to serialize result")


# Serializers of the user's own


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    made = sys.modules["squeezed_app"] = types.ModuleType("squeezed_app")
    made.codec = types.SimpleNamespace(dumps=squeezed, loads=SQUEEZED.loads)  # type: ignore[attr-defined]
    made.half = types.SimpleNamespace(dumps=squeezed, loads=5)  # type: ignore[attr-defined]
    yield made
    del sys.modules["squeezed_app"]


def test_a_serializer_is_found_by_its_dotted_name(module: types.ModuleType) -> None:
    assert codecs.named(None) is None
    for name in ("json", "pickle", "squeezed_app.codec"):
        found = codecs.named(name)
        assert found is not None
        body = wire.encode_call("work", (1,), {}, expires_ms=5, priority=0, serializer=found)
        call = wire.decode_call(body, found)
        assert isinstance(call, Call)
        assert (call.handler, call.args, call.expires_ms, call.foreign) == ("work", (1,), 5, False)
        assert found.runs_code is (name == "pickle")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_at_all", "cannot be imported"),
        ("json.nothing", "cannot be imported"),
        ("squeezed_app", "has no dumps and no loads"),
        ("squeezed_app.half", "has no loads"),
        ("math", "has no dumps and no loads"),
    ],
)
def test_what_is_no_serializer_is_refused_by_name(module: types.ModuleType, name: str, words: str) -> None:
    with pytest.raises(SettingsInvalid, match=words) as refusal:
        codecs.named(name)
    assert f"RUNTIME_SERIALIZER={name} " in str(refusal.value)


def test_pickle_under_another_name_is_still_known_to_run_code(module: types.ModuleType) -> None:
    module.sly = types.SimpleNamespace(dumps=pickle.dumps, loads=pickle.loads)  # type: ignore[attr-defined]
    found = codecs.named("squeezed_app.sly")
    assert found is not None
    assert found.runs_code


def test_other_bodies_are_read_too_and_answered_in_kind() -> None:
    for body, codec in WRITTEN.values():
        call = wire.decode_call(body, SQUEEZED)
        assert isinstance(call, Call)
        assert call.codec == codec
    own = wire.decode_call(squeezed(BODY), SQUEEZED)
    assert isinstance(own, Call)
    assert own.codec == "custom"


@pytest.mark.parametrize(
    "value",
    [endless(), json.loads("[" * 70 + "]" * 70), [0] * 200_001, [object()], 5, [1], RecursionError, MemoryError],
)
def test_what_a_serializer_makes_of_a_body_is_looked_over(value: object) -> None:
    def load(data: bytes) -> object:
        if isinstance(value, type) and issubclass(value, Exception):
            raise value("secret")
        return value if isinstance(value, int) or value == [1] else {**BODY, "a": value}

    refused = wire.decode_call(b"?", Serializer("mine", squeezed, load))
    assert isinstance(refused, Unreadable)
    assert refused.reason.startswith("mine cannot read it: ")
    assert "secret" not in refused.reason


def test_what_a_serializer_cannot_write_is_a_type_error_that_quotes_nothing() -> None:
    def fail(fields: object) -> bytes:
        raise RuntimeError("secret")

    for dumps in (fail, lambda fields: 5 * ["x"], lambda fields: b"?", lambda fields: None):
        broken = Serializer("mine", dumps, SQUEEZED.loads)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="mine cannot hold it") as refusal:
            wire.encode_call("work", (), {}, expires_ms=None, priority=0, serializer=broken)
        assert "secret" not in str(refusal.value)
        assert wire.decode_result(wire.encode_result(settlement("custom", FAILED), broken), broken).text == "boom: 7"
