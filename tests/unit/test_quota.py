"""How a quota is declared, and how a job counts."""

from __future__ import annotations

import enum
from typing import Any
from uuid import UUID

import pytest

from runtime import Allowance, Context, HandlerInvalid, PayloadInvalid, Quota, handler
from runtime.core.quota import LONGEST_USER, PENDING_AGAIN_S, Counted

FREE, PAYING = Allowance(hourly=10, pending=5), Allowance(hourly=50, pending=20)
TIERS = {"free": FREE, "paying": PAYING, "staff": Allowance()}
QUOTA = Quota("exports", by="user_id", tier="tier", tiers=TIERS)


class Tier(enum.Enum):
    FREE = "free"
    GOLD = "gold"


@handler(quota=QUOTA)
async def export(ctx: Context, menu: int, user_id: str | None, *, tier: str = "free") -> None: ...


@handler(quota=Quota("plain", by="who", allow=FREE))
async def simple(ctx: Context, who: Any) -> None: ...


def who(user: Any) -> str:
    counted = simple.request(user).counted
    assert counted is not None
    return counted.user


# Where it is declared.


@pytest.mark.parametrize("limit", [-1, 1001, 1.0, "10", True])
@pytest.mark.parametrize("name", ["hourly", "pending"])
def test_a_limit_is_a_whole_number_from_0_to_1000(name: str, limit: Any) -> None:
    with pytest.raises(HandlerInvalid, match=rf"Allowance\({name}=.*whole number from 0 to 1000.*0 forbids"):
        Allowance(**{name: limit})


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"by": "user"}, "one of allow and tiers"),
        ({"by": "user", "allow": FREE, "tier": "tier", "tiers": TIERS}, "one of allow and tiers"),
        ({"by": "user", "tiers": TIERS}, "tier and tiers go together"),
        ({"by": "user", "allow": FREE, "tier": "tier"}, "tier and tiers go together"),
        ({"by": "user", "tier": "tier", "tiers": {}}, "at least one"),
        ({"by": "user", "tier": "tier", "tiers": [FREE]}, "at least one"),
        ({"by": "user", "tier": "tier", "tiers": {"free": 10}}, "every allowance is an Allowance"),
        ({"by": "user", "tier": "tier", "tiers": {1: FREE}}, "a tier's name is a text"),
        ({"by": "user", "allow": 10}, "every allowance is an Allowance"),
        ({"by": 7, "allow": FREE}, "name parameters"),
        ({"by": "user", "tier": 7, "tiers": TIERS}, "name parameters"),
    ],
)
def test_a_quota_that_breaks_a_rule_is_refused_where_it_stands(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(HandlerInvalid, match=rule) as caught:
        Quota("exports", **options)
    assert "Quota('exports')" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "a:b", "a b", "é", "{a}", "x" * 65, 7, None])
def test_a_name_is_part_of_a_key(name: Any) -> None:
    with pytest.raises(HandlerInvalid, match="1 to 64 letters"):
        Quota(name, by="user", allow=FREE)


@pytest.mark.parametrize(
    ("quota", "rule"),
    [
        (Quota("q", by="user", allow=FREE), "by='user'.*its parameters are user_id, tier"),
        (Quota("q", by="ctx", allow=FREE), "by='ctx'"),
        (Quota("q", by="rest", allow=FREE), "by='rest'"),
        (Quota("q", by="user_id", tier="level", tiers=TIERS), "tier='level'"),
        (Quota("q", by="user_id", tier="tier", tiers={"paying": PAYING}), "the default of 'tier'.*are paying"),
    ],
)
def test_a_quota_fits_the_handler_it_is_declared_for(quota: Quota, rule: str) -> None:
    with pytest.raises(HandlerInvalid, match=rule) as caught:

        @handler(quota=quota)
        async def export(ctx: Context, user_id: str, *rest: str, tier: str = "free") -> None: ...

    assert "the handler 'export' at " in str(caught.value)


def test_a_quota_is_one() -> None:
    with pytest.raises(HandlerInvalid, match="it is a Quota"):
        handler(quota=FREE)  # type: ignore[call-overload]


# Where a job is enqueued.


def test_a_job_counts_for_its_user_by_his_tier() -> None:
    assert export.request(1, "ana").counted == Counted("exports", "ana", "free", FREE)
    assert export.request(1, user_id="ana", tier="paying").counted == Counted("exports", "ana", "paying", PAYING)
    assert export.options(priority=5).request(menu=1, user_id="bo").counted == Counted("exports", "bo", "free", FREE)


def test_who_has_no_limit_is_not_counted() -> None:
    assert export.request(1, "ana", tier="staff").counted is None


def test_a_handler_without_a_quota_counts_nothing() -> None:
    @handler
    async def free(ctx: Context, user_id: str) -> None: ...

    assert free.request("ana").counted is None


def test_a_tier_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        PayloadInvalid, match=r"^export: argument 'tier' names no tier of .*free, paying, staff"
    ) as caught:
        export.request(1, "ana", tier="golden")
    assert "golden" not in str(caught.value)


def test_a_tier_may_be_an_enum_given_or_default() -> None:
    @handler(quota=QUOTA)
    async def export(ctx: Context, user_id: str, tier: Tier = Tier.FREE) -> None: ...

    free = Counted("exports", "ana", "free", FREE)
    assert export.request("ana").counted == free
    assert export.request("ana", Tier.FREE).counted == free
    with pytest.raises(PayloadInvalid, match="names no tier"):
        export.request("ana", Tier.GOLD)
    with pytest.raises(HandlerInvalid, match="the default"):

        @handler(quota=QUOTA)
        async def other(ctx: Context, user_id: str, tier: Tier = Tier.GOLD) -> None: ...


@pytest.mark.parametrize("user", [None, "", True, 1.5, b"ana", ["ana"]])
def test_who_is_no_user_is_refused_and_not_shown(user: Any) -> None:
    with pytest.raises(PayloadInvalid, match=r"^simple: argument 'who' does not say whose job it is"):
        simple.request(user)


def test_a_user_is_a_text_a_number_or_a_uuid() -> None:
    text = "0b5ad0d5-0b3c-4f5e-8a38-6a1dd5b4e2f1"
    assert [who("ana"), who(7), who(UUID(text)), who(Tier.FREE)] == ["ana", "7", text, "free"]


def test_long_and_odd_names_are_hashed_and_no_other_user_has_that_key() -> None:
    longest = "x" * LONGEST_USER
    assert who(longest) == longest
    odd = [longest + "x", longest + "y", "a\nb", "\ud800", "\x00"]
    keys = [who(user) for user in odd]
    assert len(set(keys)) == len(odd)
    assert all(key.startswith("sha256:") and len(key) > LONGEST_USER and key.isascii() for key in keys)
    assert who(keys[0]) != keys[0]


# What is said.


def test_an_error_names_the_quota_the_limit_and_the_time_and_not_the_user() -> None:
    counted = Counted("exports", "ana@example.com", "free", FREE)
    error = counted.exceeded("hourly", used=10, wanted=1, wait_s=721)
    assert str(error) == (
        "exports: over the limit of 10 jobs an hour for the tier 'free': 10 enqueued in the last one; "
        "try again in 12 m 1 s"
    )
    assert (error.quota, error.which, error.limit, error.retry_after_s) == ("exports", "hourly", 10, 721)
    assert error.exit_code == 75
    pending = counted.exceeded("pending", used=4, wanted=2, wait_s=0)
    assert str(pending) == (
        "exports: over the limit of 5 jobs at a time for the tier 'free': 4 waiting or running, "
        "and 2 more are asked for; try again in 5 s"
    )
    assert pending.retry_after_s == PENDING_AGAIN_S
    one = Counted("exports", "ana", None, Allowance(hourly=1)).exceeded("hourly", used=1, wanted=2, wait_s=3600)
    assert str(one) == (
        "exports: over the limit of 1 job an hour: 1 enqueued in the last one, and 2 more are asked for; "
        "never more than 1 at once"
    )


def test_nothing_shows_the_user() -> None:
    request = simple.request("canary")
    assert "canary" not in repr(request) + repr(request.counted)
