"""Bodies of requests and answers, which may hold anything. Nothing here raises."""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from runtime.core.text import one_line

LARGEST = 2 * 2**20
"""Bytes of an answer that are parsed. A larger one (many embeddings) would keep everybody else waiting."""
LONGEST_TEXT = 500
LONGEST_CODE = 100

MEDIA = frozenset({"image_url", "input_image", "image", "input_audio", "file", "input_file", "document"})
MEDIA_TOKENS = 1_000
"""For a picture, a sound, a file: their tokens do not show in a request. About a picture in high detail."""
_MOST_VALUES = 300_000
"""Values of a request that are looked at: as many tokens as OpenAI takes in one request for embeddings."""


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers` by their names in small letters. Of one that comes several times, the first."""
    fields: dict[str, str] = {}
    for name, value in headers.items():
        fields.setdefault(name.lower(), value)
    return fields


def json_object(body: bytes) -> Mapping[str, Any]:
    """The JSON object that `body` is; empty for anything else, and for more than `LARGEST` bytes."""
    if len(body) > LARGEST:
        return {}
    try:
        return mapping(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def error_in(body: bytes) -> Mapping[str, Any]:
    """The error that an answer tells: `{"error": {…}}`, `{"error": "message"}`, or its own fields."""
    answer = json_object(body)
    error = answer.get("error")
    return {"message": error} if isinstance(error, str) else mapping(error) or answer


def code(value: object) -> str:
    """The name of an error, one line; empty for what is none."""
    is_code = isinstance(value, str | int) and not isinstance(value, bool)
    # Nobody's code has more digits, and Python refuses to spell out a number of thousands.
    if not is_code or (isinstance(value, int) and abs(value) > 10**9):
        return ""
    return one_line(str(value), LONGEST_CODE - 1)


def text(*values: object) -> str:
    """Those of `values` that are text, in one line of at most `LONGEST_TEXT` characters."""
    texts = [value[: 2 * LONGEST_TEXT] for value in values if isinstance(value, str)]
    return one_line(" ".join(" ".join(texts).split()), LONGEST_TEXT - 1)


def tokens(value: object, bytes_a_token: float = 4.0) -> int:
    """About how many tokens `value`, a part of a request, is: rather too many than too few for prose.

    Bytes of UTF-8 rather than characters, because other scripts take more tokens a character. Names of fields count
    as well: so a message comes to about the four tokens by which OpenAI says it is longer than its text.
    """
    found = 0
    rest = [value]
    for _ in range(_MOST_VALUES):
        if not rest:
            break
        value = rest.pop()
        if isinstance(value, str):
            size = len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
            found += math.ceil(size / bytes_a_token)
        elif isinstance(value, Mapping):
            fields = cast("Mapping[object, object]", value)
            kind = fields.get("type")
            if isinstance(kind, str) and kind in MEDIA:
                found += MEDIA_TOKENS
            else:
                rest += fields.keys()
                rest += fields.values()
        elif isinstance(value, list | tuple):
            rest += cast("list[object]", value)
        elif value is not None:
            found += 1  # a number; a token itself in a request for embeddings
    return found
