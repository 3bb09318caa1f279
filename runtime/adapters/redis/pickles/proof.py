"""The proof that the C unpickler may have a body, by the opcodes in it."""

from __future__ import annotations

import pickle
import re
from functools import cache
from typing import Final, Literal


def _counted(longest: int) -> bytes:
    """A pattern for a length byte and as many bytes as it says."""
    return b"(?:" + b"|".join(re.escape(bytes([size])) + b".{%d}" % size for size in range(longest + 1)) + b")"


# What shares nothing, hashes nothing of size and imports nothing. Integers have at most 64 bits, as only wider ones can
# be made to share a hash value. The memo is written (MEMOIZE, BINPUT) for nobody.
_LEAF: Final = (
    rb"[\x8cC]" + _counted(63) + rb"\x94?"  # SHORT_BINUNICODE, SHORT_BINBYTES
    rb"|[N\x88\x89)(usea\x90\x94]+"  # None, bools, (), MARK, what fills containers, MEMOIZE
    rb"|K.(?:K.)*|M..|J.{4}|G.{8}|\x8a" + _counted(8) + rb"|q.|\x95.{8}"  # BININT1…, BINFLOAT, LONG1, BINPUT, FRAME
)
_CONTAINER: Final = rb"[}\]\x8fld]"  # dict, list, set; what cannot be a key
# Greedy on purpose: possessive repeats were wrong before Python 3.11.5 (python/cpython#106052).
_PLAIN: Final = re.compile(rb"(?s:(?:(?:" + _LEAF + rb")*" + _CONTAINER + rb"?){0,5})")


@cache
def _sharing() -> re.Pattern[bytes]:
    """The same where something may be used twice. Few bodies have that, and compiling it takes a millisecond or two."""
    return re.compile(rb"(?s:(?:" + _LEAF + rb"|" + _CONTAINER + rb"|h.|j.{4})*)")


# Ten runs, with five containers each and a tuple between any two, make fewer than MAX_DEPTH containers, so that depth
# needs no check. All runs together leave no room for more nodes than memory can take.
_RUNS: Final = 32
_RUNS_OF_A_TREE: Final = 10
_RUN_BYTES: Final = 2**13

PROTO: Final = pickle.PROTO[0]
STOP: Final = pickle.STOP[0]
MEMOIZE: Final = pickle.MEMOIZE[0]
SHORT_BINUNICODE: Final = pickle.SHORT_BINUNICODE[0]
_LENGTH_WIDTHS: Final = {
    pickle.SHORT_BINUNICODE[0]: 1,
    pickle.SHORT_BINBYTES[0]: 1,
    pickle.BINUNICODE[0]: 4,
    pickle.BINBYTES[0]: 4,
}
_SMALL_TUPLES: Final = {pickle.TUPLE1[0]: 2, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
_MARKED_TUPLES: Final = {pickle.TUPLE[0], pickle.FROZENSET[0]}
_MEMO_READS: Final = {pickle.BINGET[0], pickle.LONG_BINGET[0]}
# A tuple used twice inside a tuple used twice, and so on, is hashed over and over when it is a key: at most as often as
# the sizes of all tuples multiply to, for each key that the bytes have room for.
_MAX_HASHING: Final = 2**24


def proven(data: bytes) -> Literal["tree", "graph"] | None:
    """What is certain of these bytes: that the C unpickler loads them at a bounded cost and makes plain values only.

    Regular expressions swallow runs of opcodes, and the loop sees what stands between them. A "tree" is within
    MAX_NODES and MAX_DEPTH too; of a "graph" that is still to be checked. None means that nothing is known. Otherwise
    the last opcode is also the last byte, and every length lies within the data.
    """
    at, hashing, tree = 2, 1, True
    for runs in range(1, _RUNS + 1):
        match = (_PLAIN if tree else _sharing()).match(data, at, at + _RUN_BYTES)
        end = match.end() if match else at
        code = data[end] if end < len(data) else 0
        if code == STOP:
            if end != len(data) - 1 or (not tree and hashing * len(data) > _MAX_HASHING):
                return None
            return "tree" if tree else "graph"
        if code in _SMALL_TUPLES:
            hashing *= _SMALL_TUPLES[code]
            at = end + 1
        elif code in _MARKED_TUPLES:
            hashing *= len(data)
            at = end + 1
        elif code in _LENGTH_WIDTHS:
            at = after_string(data, end + 1, _LENGTH_WIDTHS[code])
        elif end > at or (code in _MEMO_READS and tree):
            at = end
        else:
            return None
        if code in _MEMO_READS or runs == _RUNS_OF_A_TREE:
            tree = False
    return None


def after_string(data: bytes, at: int, width: int) -> int:
    return at + width + int.from_bytes(data[at : at + width], "little")
