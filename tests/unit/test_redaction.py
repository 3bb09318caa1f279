"""What the redactor finds: a secret in any spelling and nesting, by its value, its field's name or its shape."""

from __future__ import annotations

import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core.redaction import BY_SHAPE, LEAST, LIMIT, REDACTED, Redactor
from runtime.settings import secrets

SECRET = 'Tr0ub4dor&3/+ü"x\\y'

ESCAPES: dict[str, Callable[[str], str]] = {
    "json": json.dumps,
    "json as it is": lambda text: json.dumps(text, ensure_ascii=False),
    "repr": repr,
    "repr of bytes": lambda text: repr(text.encode()),
    "percent": lambda text: quote(text, safe=""),
    "path": quote,
    "query": quote_plus,
}
BASE64: dict[str, Callable[[str], str]] = {
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64url": lambda text: urlsafe_b64encode(text.encode()).decode(),
}
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
any_secret = st.text(st.characters(exclude_categories=["Cs"]), min_size=LEAST, max_size=30).filter(
    lambda text: text.strip() == text and len(text.splitlines()) == 1
)


@settings(deadline=None)
@given(any_secret, st.lists(st.sampled_from(sorted(ESCAPES)), max_size=3), any_text, any_text)
def test_no_secret_survives_any_nesting_of_escapes(secret: str, escapes: list[str], before: str, after: str) -> None:
    text = before + secret + after
    for name in escapes:
        text = ESCAPES[name](text)
    found = Redactor([secret]).text(text)
    assert REDACTED in found
    escaped = secret
    for name in escapes:
        escaped = ESCAPES[name](escaped).strip("b'\"")
    assert escaped not in found.replace(REDACTED, "")


@settings(deadline=None)
@given(any_secret, st.sampled_from(sorted(BASE64)), any_text, any_text)
def test_no_secret_survives_base64_wherever_it_begins(secret: str, how: str, before: str, after: str) -> None:
    encoded = BASE64[how](before + secret + after)
    found = Redactor([secret]).text(encoded)
    assert REDACTED in found
    # What is left at the edges are the neighbours, and less than two characters' bits of the secret on either side.
    assert len(found) - len(REDACTED) <= 4 * (len((before + after).encode()) // 3 + 4)


leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text, st.just(SECRET), st.binary(max_size=4))
nested = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(any_text | st.just(SECRET), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(any_text, nested, max_size=4))
def test_no_secret_survives_in_a_structure(fields: dict[str, Any]) -> None:
    assert SECRET not in repr(Redactor([SECRET]).fields(fields))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key sk-proj-abcDEF0123456789_xyz refused", "key [redacted] refused"),
        ("Authorization: Bearer abc.DEF-123_456", "Authorization: Bearer [redacted]"),
        ("authorization: Basic dXNlcjpwYXNzd29yZA==", "authorization: Basic [redacted]"),
        ("a token eyJhbGciOi.eyJzdWIiOiIx.c2lnbmF0dXJl here", "a token [redacted] here"),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
        ("redis://user:pa55@host:6379/0", "redis://[redacted]@host:6379/0"),
        ("rediss://:p%40ss@host", "rediss://[redacted]@host"),
        ("postgres://u:a/b@host/db", "postgres://[redacted]@host/db"),
    ],
)
def test_what_looks_like_a_secret_is_one(text: str, expected: str) -> None:
    assert BY_SHAPE.text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Job completed: 0123456789abcdef0123456789abcdef in 12 ms. Currently processing: 3 jobs",
        "the disk-usage of task-force sk-learn",
        "a bearer certificate and a basic understanding",
        "ana@example.com asked redis://host:6379/0 and unix:///run/s",
        "https://example.com/a?b=c:d",
        "",
    ],
)
def test_prose_is_left_alone(text: str) -> None:
    assert BY_SHAPE.text(text) is text or BY_SHAPE.text(text) == text


@pytest.mark.parametrize(
    "name",
    ["authorization", "Authorization", "password", "db_password", "access_token", "api_key", "apiKey", "x-api-key",
     "client_secret", "Set-Cookie", "SENTRY_DSN", "credentials"],
)  # fmt: skip
def test_a_field_of_a_secrets_name_goes_whatever_its_value(name: str) -> None:
    for value in ("short", 7, None, ["a"], {"b": 1}):
        assert BY_SHAPE.fields({name: value, "x": {name: value}}) == {name: REDACTED, "x": {name: REDACTED}}


def test_other_fields_stay_as_they_are() -> None:
    fields = {"tokens": 3456, "max_tokens": 9, "job_id": "a", "ok": True, "none": None, "f": 0.5, "big": 2**62}
    assert BY_SHAPE.fields(fields) == fields


def test_what_is_no_plain_data_becomes_its_text() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    moment = datetime(2026, 11, 22, tzinfo=UTC)
    fields = Redactor([SECRET]).fields(
        {
            "at": moment,
            "odd": Odd(),
            "error": ValueError(f"no {SECRET}"),
            "bytes": SECRET.encode(),
            "set": {1},
            "b": 2**70,
        }
    )
    assert fields == {
        "at": str(moment),
        "odd": "(a Odd that cannot be shown)",
        "error": f"ValueError('no {REDACTED}')",
        "bytes": REDACTED,
        "set": [1],
        "b": str(2**70),
    }


def test_a_number_may_be_a_secret() -> None:
    assert Redactor(["1234567890"]).fields({"n": 1234567890, "m": 1234567891}) == {"n": REDACTED, "m": 1234567891}


def test_a_cyclic_structure_comes_to_an_end() -> None:
    loop: list[Any] = [SECRET]
    loop.append(loop)
    assert SECRET not in repr(Redactor([SECRET]).fields({"loop": loop}))


@pytest.mark.parametrize("shift", range(-len(SECRET) - 1, 2))
def test_a_secret_that_lies_across_the_cut_does_not_keep_its_first_half(shift: int) -> None:
    text = "." * (100 + shift) + SECRET + "." * 100
    found = Redactor([SECRET]).text(text, 100)
    assert SECRET[:2] not in found
    assert found.startswith("." * min(100, 100 + shift))
    assert found.endswith("…")


def test_a_long_text_is_cut() -> None:
    assert len(BY_SHAPE.text("x" * 10 * LIMIT)) == LIMIT + 1


def test_a_private_key_is_found_line_by_line_and_in_part() -> None:
    lines = [f"{n:02}" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7" for n in range(20)]
    key = "-----BEGIN PRIVATE KEY-----\n" + "\n".join(lines) + "\n-----END PRIVATE KEY-----\n"
    long = "z" * 2000 + "end-of-it"
    redact = Redactor([key, long])
    assert "MIIE" not in redact.text(key) + redact.text(json.dumps(key)) + redact.text(f"at {lines[3]}")
    assert "zzz" not in redact.text(f"all of {long}.")


@pytest.mark.parametrize(
    "hostile",
    ["\\" * LIMIT, "%5C" * (LIMIT // 3), "://:" * (LIMIT // 4), "eyJ" * (LIMIT // 3), "sk-" * (LIMIT // 3),
     "Bearer " * (LIMIT // 7), "@" + "://a" * (LIMIT // 4), "%25" * (LIMIT // 3)],
    ids=lambda text: text[:7],
)  # fmt: skip
def test_no_text_makes_it_slow(hostile: str) -> None:
    redact = Redactor([SECRET, '\\\\\\\\""""!!!!'])
    began = time.process_time()
    redact.text(hostile[:LIMIT] if "@" in hostile else hostile[: LIMIT - 1] + "@")
    assert time.process_time() - began < 10


def test_its_repr_shows_nothing() -> None:
    assert repr(Redactor([SECRET])) == "<Redactor>"


def test_the_environment_says_what_is_secret() -> None:
    found = secrets(
        {
            "OPENAI_API_KEY": "'quoted-key'",
            "RUNTIME_TOKEN": "a-token,another",
            "PGPASSWORD": "pg",
            "SENTRY_DSN": "https://abc@sentry.example/1",
            "REDIS_URL": "rediss://:p%40ss-word@host:6379/0",
            "OTHER": "amqp://user:of-amqp@host redis://host:6379",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=of-otel,x=%21y",
            "HOME": "/home/nobody",
            "EMPTY_SECRET": "",
        }
    )
    assert set(found) == {
        *(
            "quoted-key",
            "a-token,another",
            "a-token",
            "another",
            "pg",
            "https://abc@sentry.example/1",
            "p%40ss-word",
            "p@ss-word",
            "of-amqp",
        ),
        *("of-otel", "%21y", "!y"),
    }
