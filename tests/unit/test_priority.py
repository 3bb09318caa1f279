"""Priorities that an argument decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest

from runtime import HandlerInvalid, OptionInvalid, by, handler

TIERS = {"vip": 100, "normal": 50, "free": 10}


class Tier(Enum):
    VIP = "vip"
    NEW = "new"


@handler(priority=by("tier", TIERS))
async def export(ctx: Any, menu: str, tier: str = "free") -> None: ...


@handler(priority=by("tier", TIERS, default=7))
async def typed(ctx: Any, tier: Tier, *, other: int = 0) -> None: ...


def test_the_value_of_the_argument_decides() -> None:
    assert export.request("m", "vip").priority == 100
    assert export.request("m", tier="normal").priority == 50
    assert export.request(menu="m", tier="vip").priority == 100


def test_its_default_counts_where_it_is_not_given() -> None:
    assert export.request("m").priority == 10


def test_a_value_that_is_not_in_the_table_has_the_default() -> None:
    assert export.request("m", "unheard of").priority == 0
    assert typed.request(Tier.NEW).priority == 7


def test_members_of_an_enum_stand_for_their_values() -> None:
    assert typed.request(Tier.VIP).priority == 100
    assert by("tier", {Tier.VIP: 5}).of("vip") == 5  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [None, 7, ["vip"], {"tier": "vip"}])
def test_whatever_is_no_text_has_the_default(value: object) -> None:
    assert by("tier", TIERS, default=3).of(value) == 3


def test_an_option_goes_before_it() -> None:
    assert export.options(priority=3).request("m", "vip").priority == 3
    assert export.options(priority=0).request("m", "vip").priority == 0


@dataclass
class Order:
    tier: str


def test_it_goes_by_parameters_alone() -> None:
    @handler(priority=by("order", TIERS))
    async def ship(ctx: Any, order: Order) -> None: ...

    assert ship.request(Order("vip")).priority == 0


def test_a_parameter_that_there_is_not_is_refused_where_it_stands() -> None:
    with pytest.raises(HandlerInvalid, match=r"'export'.*its priority goes by 'teir'.*its parameters are menu, tier"):

        @handler(priority=by("teir", TIERS))
        async def export(ctx: Any, menu: str, tier: str = "free") -> None: ...


@pytest.mark.parametrize("wrong", [{"a": -1}, {"a": 1001}, {"a": True}, {"a": "1"}])
def test_what_is_no_priority_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionInvalid, match="a priority is a whole number from 0 to 1000"):
        by("tier", wrong)
    with pytest.raises(OptionInvalid, match="a priority is a whole number from 0 to 1000"):
        by("tier", TIERS, default=wrong["a"])


@pytest.mark.parametrize(("parameter", "table"), [(3, TIERS), ("tier", {}), ("tier", [("vip", 1)])])
def test_what_is_no_table_or_no_name_is_refused(parameter: Any, table: Any) -> None:
    with pytest.raises(HandlerInvalid, match="by"):
        by(parameter, table)
