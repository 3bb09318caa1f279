"""JSON and MessagePack that strangers may have written: read within the limits that pickles have, and written.

Neither can name a class, so all that is left to fear is size. Whatever could grow beyond it is counted before a reader
makes objects of it: 8 MB of `[],` make 180 MB of lists, and five bytes of MessagePack may announce 2^32 values.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

from runtime.adapters.redis.pickles.values import MAX_DEPTH, MAX_NODES, check_tree, refuse, too_many_values


def loads_json(data: bytes) -> object:
    """The value in a JSON text, and in what else `json.dumps` writes: NaN, infinities, halves of surrogate pairs.

    Raises `Undecodable`, or some other `Exception` for what is malformed.
    """
    if len(data) > 2 * MAX_NODES:  # a value and what parts it from the next take two bytes
        _count_json(data)
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise
    except Exception:
        value = json.loads(data.decode())
    if len(data) > MAX_NODES or data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        check_tree(value)
    return value


def dumps_json(value: object) -> bytes:
    """`value` as JSON: dates, UUIDs and Decimals as text, bytes as base64, sets as lists, NaN as null.

    Raises some `Exception` for what has no such form.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, which `json` can write
        return json.dumps(value).encode()


def _count_json(data: bytes) -> None:
    # Without its escapes a string ends at the next quote; of each, one quote is left.
    bare = data.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 2 * MAX_NODES:
        too_many_values()
    outside = b'"'.join(bare.split(b'"')[::2]).translate(None, b" \t\r\n")
    nodes = 1 + sum(map(outside.count, (b",", b":", b"[", b"{"))) - sum(map(outside.count, (b"[]", b"{}")))
    if nodes > MAX_NODES:
        too_many_values()


def loads_msgpack(data: bytes) -> object:
    """The value in a MessagePack. Of the extension types only the timestamp is read, as a datetime.

    Raises `Undecodable`, or some other `Exception` for what is malformed.
    """
    _check_msgpack(data)
    return _MSGPACK.decode(data)


def dumps_msgpack(value: object) -> bytes:
    """`value` as MessagePack: datetimes with a zone as timestamps, other dates, UUIDs and Decimals as text.

    Raises some `Exception` for what has no such form.
    """
    return msgspec.msgpack.encode(value)


# The format: https://github.com/msgpack/msgpack/blob/master/spec.md

_MSGPACK: Final = msgspec.msgpack.Decoder()


def _sizes() -> list[int]:
    """How many bytes a value takes that begins with this one; 0 where that does not tell."""
    sizes = [0] * 256
    for code in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        sizes[code] = 1
    for code in range(0xA0, 0xC0):  # short strings
        sizes[code] = 1 + code - 0xA0
    for code, size in zip((0xCA, 0xCB, *range(0xCC, 0xD4)), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True):
        sizes[code] = 1 + size
    return sizes


_SIZES: Final = _sizes()
_COUNTED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes and text: width of the length
_ARRAYS: Final = {**dict.fromkeys(range(0x90, 0xA0), 0), 0xDC: 2, 0xDD: 4}  # width of the count; 0: in the byte itself
_MAPS: Final = {**dict.fromkeys(range(0x80, 0x90), 0), 0xDE: 2, 0xDF: 4}
_TIMESTAMPS: Final = {b"\xd6\xff": 6, b"\xd7\xff": 10, b"\xc7\x0c\xff": 15}


def _check_msgpack(data: bytes) -> None:
    """Refuse what announces too many values, is too deep, or has keys whose hash values a stranger can choose.

    Those are arrays: as a key one becomes a tuple, and 50 000 tuples of one hash value take a minute.
    """
    at, nodes = 0, 1
    left, in_map = 1, False  # values that are still to come in the innermost container
    outer: list[tuple[int, bool]] = []
    while True:
        while not left:
            if not outer:
                return
            left, in_map = outer.pop()
        if at >= len(data):
            refuse("it ends too early")
        left -= 1
        code = data[at]
        size = _SIZES[code]
        if size:
            at += size
            continue
        if code in _COUNTED:
            width = _COUNTED[code]
            at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width])
            continue
        if in_map and left % 2:
            refuse("it has a key that is no text, number or bytes")
        width = _ARRAYS.get(code, _MAPS.get(code, -1))
        if width < 0:
            at += _timestamp_size(data, at)
            continue
        outer.append((left, in_map))
        if len(outer) > MAX_DEPTH:
            refuse(f"it is nested more than {MAX_DEPTH} deep")
        in_map = code in _MAPS
        left = int.from_bytes(data[at + 1 : at + 1 + width]) if width else code & 15
        left *= 1 + in_map
        nodes += left
        if nodes > MAX_NODES:
            too_many_values()
        at += 1 + width


def _timestamp_size(data: bytes, at: int) -> int:
    size = next((size for head, size in _TIMESTAMPS.items() if data.startswith(head, at)), None)
    return size or refuse("it uses an extension type, or a byte that MessagePack never uses")
