"""What a handler may say of its progress, and what is read of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from runtime import ProgressInvalid
from runtime.adapters.redis import board
from runtime.core.policy import categorise
from runtime.core.progress import NOTE_LIMIT, Progress, check


@pytest.mark.parametrize(
    ("done", "total", "note"),
    [
        (0, None, ""),
        (3, 10, "rendering"),
        (0.5, 1.0, ""),
        (0, 0, ""),
        (12, 10, "more than it thought"),
        (2**53, None, ""),
    ],
)
def test_numbers_from_0_and_text_may_be_told(done: float, total: float | None, note: str) -> None:
    check(done, total, note)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ((-1, None, ""), "done is a number from 0 to 2^53"),
        ((float("nan"), None, ""), "done is a number from 0 to 2^53"),
        ((float("inf"), None, ""), "done is a number from 0 to 2^53"),
        ((10**5000, None, ""), "done is a number from 0 to 2^53"),
        ((1, -0.5, ""), "total is a number from 0 to 2^53"),
        ((1, 2**54, ""), "total is a number from 0 to 2^53"),
        (("s3cret", None, ""), "done is a number, not a str"),
        ((True, None, ""), "done is a number, not a bool"),
        ((None, None, ""), "done is a number, not a NoneType"),
        ((1, "s3cret", ""), "total is a number, not a str"),
        ((1, 2, b"s3cret"), "note is text, not a bytes"),
        ((1, 2, None), "note is text, not a NoneType"),
    ],
)
def test_anything_else_is_refused_by_the_name_of_what_is_wrong(told: tuple[Any, Any, Any], says: str) -> None:
    with pytest.raises(ProgressInvalid) as refusal:
        check(*told)
    assert str(refusal.value).startswith(f"progress: {says}")
    assert "s3cret" not in str(refusal.value)
    assert len(str(refusal.value)) < 150
    assert categorise(refusal.value) == "permanent"


AT = datetime(2026, 11, 22, 12, 0, 0, 250_000, UTC)
WRITTEN = b'7:a-1:3|1795348800250|{"done":3,"total":10,"note":"x"}'


def test_what_was_written_is_read_while_its_lease_is_held() -> None:
    found = board.read(WRITTEN, b"7:a-1:3")
    assert found == Progress(3, 10, "x", AT)
    assert found is not None
    assert board.shown(found) == {"done": 3, "total": 10, "note": "x", "at": "2026-11-22T12:00:00.250+00:00"}


@pytest.mark.parametrize("holder", [None, b"", b"1", b"8:a-1:4"])
def test_what_another_run_has_told_is_not_read(holder: bytes | None) -> None:
    assert board.read(WRITTEN, holder) is None


@pytest.mark.parametrize(
    "written",
    [
        None, b"", b"|", b"||", b"t", b"t|", b"t|1", b"t|1|", b"t|x|{}", b"t|1|{}", b'||{"done":1,"total":1,"note":""}',
        b't|1|{"done":"1","total":1,"note":""}', b't|1|{"done":1,"total":[],"note":""}', b't|1|{"done":1,"total":1}',
        b't|99999999999999999999|{"done":1,"total":1,"note":""}',
        b't|9007199254740991000|{"done":1,"total":1,"note":""}',
        b"t|" + b"9" * 5000 + b'|{"done":1,"total":1,"note":""}',
        b"t|1|" + b"[" * 10_000, b't|1|{"done":1,"total":1,"note":"\xff"}', "t|\u00b2|{}".encode(),
    ],
)  # fmt: skip
def test_what_is_not_as_we_write_it_is_nothing(written: bytes | None) -> None:
    assert board.read(written, b"t") is None
    assert board.read(written, b"") is None


def test_a_note_that_somebody_else_has_written_is_cut() -> None:
    found = board.read(b't|1|{"done":1,"total":null,"note":"%s"}' % (b"x" * 100_000), b"t")
    assert found is not None
    assert len(found.note) == NOTE_LIMIT
