"""All scenarios."""

from tests.campaign import (
    aborts,
    actors,
    death,
    handlers,
    inputs,
    killpoints,
    moments,
    network,
    occurrences,
    poison,
    port,
    rest,
    secrecy,
    signals,
    store,
)
from tests.campaign.scenario import Scenario

MODULES = (
    death, killpoints, signals, store, network, handlers, poison, aborts, actors, inputs, moments, occurrences,
    secrecy, rest, port,
)  # fmt: skip


def _place(scenario: Scenario) -> list[int]:
    return [int(part) for part in scenario.id.removeprefix("K").split(".") if part.isdecimal()]


SCENARIOS: tuple[Scenario, ...] = tuple(sorted((one for module in MODULES for one in module.SCENARIOS), key=_place))


def chosen(only: list[str], *, full: bool) -> list[Scenario]:
    """Those of these ids, `K1.2` meaning `K1.2.claim` too; all if none is named. Raises `SystemExit` for no such id."""
    for name in only:
        if not any(_is(scenario, name) for scenario in SCENARIOS):
            raise SystemExit(f"there is no scenario {name}; there are {', '.join(one.id for one in SCENARIOS)}")
    named = [one for one in SCENARIOS if not only or any(_is(one, name) for name in only)]
    return [one for one in named if full or only or one.quick]


def _is(scenario: Scenario, name: str) -> bool:
    return scenario.id == name or scenario.id.startswith(f"{name}.")
