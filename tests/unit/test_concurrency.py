"""Limits on concurrency as they are declared and asked for."""

from __future__ import annotations

import pytest

from runtime import Bucket, Concurrency, LimitInvalid, handler
from runtime.core.limits import LONGEST_KEY, MOST_PERMITS, NOTHING, one_each, wanted

EXPORTS = Concurrency("exports", 5)
JUDIT = Bucket("judit", "180/m")


def test_it_has_a_name_a_number_and_perhaps_a_key() -> None:
    keyed = EXPORTS["tenant-42"]
    assert (EXPORTS.name, EXPORTS.key, EXPORTS.label, EXPORTS.most) == ("exports", None, "exports", 5)
    assert (keyed.name, keyed.key, keyed.label, keyed.most) == ("exports", "tenant-42", "exports[tenant-42]", 5)
    assert repr(keyed) == "<Concurrency exports[tenant-42]: 5>"
    assert EXPORTS.key is None


def test_equal_are_those_of_one_label_and_number() -> None:
    assert Concurrency("exports", 5) == EXPORTS
    assert len({EXPORTS, Concurrency("exports", 5), Concurrency("exports", 6), EXPORTS["a"], EXPORTS["a"]}) == 3
    assert Bucket("exports", "5/s") != EXPORTS


@pytest.mark.parametrize("most", [0, -1, MOST_PERMITS + 1, 1.0, "5", True, None])
def test_how_many_is_a_whole_number_within_bounds(most: int) -> None:
    with pytest.raises(LimitInvalid, match=r"Concurrency\('exports'\).*from 1 to 1000"):
        Concurrency("exports", most)


@pytest.mark.parametrize("name", ["", "a b", "-a", "é", "a" * 65, None, 7])
def test_a_name_is_as_a_buckets(name: str) -> None:
    with pytest.raises(LimitInvalid, match="no name of a limit"):
        Concurrency(name, 5)


@pytest.mark.parametrize("limit", [EXPORTS, JUDIT])
@pytest.mark.parametrize("key", ["", "a" * (LONGEST_KEY + 1), "\ud800", None, 7])
def test_a_key_is_a_text(limit: Concurrency | Bucket, key: str) -> None:
    with pytest.raises(LimitInvalid, match="a text of 1 to 256"):
        limit[key]


@pytest.mark.parametrize("limit", [EXPORTS, JUDIT])
def test_a_key_has_no_key(limit: Concurrency | Bucket) -> None:
    with pytest.raises(LimitInvalid, match="has a key already"):
        limit["a"]["b"]


def test_what_is_wanted_is_permits_by_label_and_tokens() -> None:
    others = Concurrency("others", 1), EXPORTS["b"], EXPORTS["a"]
    asked = wanted({JUDIT: 3, **dict.fromkeys(others, 1), EXPORTS: 0, Bucket("unused", "1/s"): 0})
    assert asked.permits == (EXPORTS["a"], EXPORTS["b"], others[0])
    assert asked.costs == {JUDIT: 3}
    assert one_each([JUDIT, EXPORTS, EXPORTS]).permits == (EXPORTS,)
    assert one_each(EXPORTS) == wanted({EXPORTS: 1})
    assert one_each(()) == NOTHING


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({EXPORTS: 2}, "2 permits are more than the one"),
        ({EXPORTS: -1}, "a whole number from 0"),
        ({EXPORTS: True}, "a whole number from 0"),
        ({EXPORTS: 1, Concurrency("exports", 6): 1}, "named twice"),
        ({"exports": 1}, "a limit is a Bucket or a Concurrency"),
        ([EXPORTS], "a limit is a Bucket or a Concurrency"),
    ],
)
def test_what_can_never_be_had_is_refused(what: dict[Concurrency, int], why: str) -> None:
    with pytest.raises(LimitInvalid, match=why):
        wanted(what)


def test_a_handler_has_it_in_its_declaration() -> None:
    @handler(limit=[JUDIT, EXPORTS])
    async def export(ctx: object) -> None: ...

    assert export.spec.limit == wanted({EXPORTS: 1, JUDIT: 1})
