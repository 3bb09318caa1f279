"""Going quiet and being called, on the virtual clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import get_args

import pytest
import trio

from runtime.core.lifecycle import TABLE, Due, Event, Reason, Standing, State, after, held_by, reasons
from runtime.engine import supervisor as supervisors
from runtime.engine.context import Context
from runtime.engine.governor import HISTORY, Governor
from runtime.engine.supervisor import Supervisor
from runtime.ports import Away
from tests.engine.world import World

STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)
CHANGES = {
    "starting": {"turned": "awake", "stop": "stopping"},
    "awake": {"idle": "drowsy", "stop": "stopping"},
    "drowsy": {"clear": "quiet", "held": "awake", "called": "awake", "stop": "stopping"},
    "quiet": {"called": "waking", "stop": "stopping"},
    "waking": {"turned": "awake", "stop": "stopping"},
    "stopping": {},
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)), ids="-".join)
def test_every_cell_of_the_table(state: State, event: Event) -> None:
    assert after(state, event) == CHANGES[state].get(event, state)
    assert all(pair in TABLE for pair in [(state, event)] if event in CHANGES[state])


@pytest.mark.parametrize(
    ("due_in_s", "alarm_s", "held"),
    [
        (None, None, None),
        (None, 300.0, None),
        (-5.0, 300.0, "a job is due"),
        (0.0, None, "a job is due"),
        (30.0, None, "RUNTIME_ALARM is not set"),
        (86_400.0, None, "RUNTIME_ALARM is not set"),
        (299.9, 300.0, "before the alarm"),
        (300.0, 300.0, None),
        (86_400.0, 300.0, None),
    ],
)
def test_what_lies_in_the_queues_keeps_it_awake_unless_an_alarm_is_sure_to_ring(
    due_in_s: float | None, alarm_s: float | None, held: str | None
) -> None:
    found = held_by(None if due_in_s is None else Due(due_in_s), alarm_s)
    assert (found is None) == (held is None)
    assert found is None or (held or "") in found.text


def test_what_goes_on_in_the_process_keeps_it_awake() -> None:
    assert reasons(Standing()) == []
    assert len(reasons(Standing(running=1, unsettled=2, away="connection refused", quiet_in_s=3))) == 3
    assert reasons(Standing(quiet_in_s=3)) == [Reason("lately", "it worked lately: quiet in 3 s")]


class Broken(Exception):
    """A bug of ours."""


class Still:
    """`ports.Stillness` over the store in memory."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: list[tuple[str, float]] = []
        self.counted = True
        self.silent = False
        self.between: Callable[[], object] = bool
        """What happens between leaving and the last look."""
        self.after_look: Callable[[], object] = bool
        self.away: str | None = None
        self.breaks: str | None = None
        """What has a bug."""
        self.loses: str | None = None
        """What finds that the store is away."""

    async def _do(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        if what == self.breaks:
            raise Broken(what)
        if what == self.loses:
            raise Away("connection refused", what)

    async def leave(self) -> None:
        await self._do("leave")
        if self.away:
            raise Away(self.away, "leave")
        self.counted = False
        self.between()

    async def due_in(self) -> Due | None:
        await self._do("due_in")
        found = await self.world.store.due_in("q")
        self.after_look()
        return None if found is None else Due(found)

    async def fall_silent(self) -> None:
        await self._do("fall_silent")
        self.silent = True

    async def speak(self) -> None:
        await self._do("speak")
        self.counted, self.silent = True, False


class Sleeper:
    """A worker that goes quiet after 60 s."""

    def __init__(self, world: World, *, sleep_after_s: float | None = 60.0, alarm_s: float | None = None) -> None:
        self.world = world
        self.still = Still(world)
        self.states: list[tuple[State, float]] = []
        self.told: list[tuple[State, str]] = []
        self.away: str | None = None
        self.supervisor = supervisor = Supervisor([world.actor], world.diary)
        self.serving = world.serve(supervisor)
        self.governor = Governor(
            supervisor,
            self.still,
            world.statistics,
            lambda: self.away,
            sleep_after_s=sleep_after_s,
            alarm_s=alarm_s,
            told=self._hear,
        )
        world.nursery.start_soon(self._govern)

    def _hear(self, state: State, why: str) -> None:
        self.states.append((state, self.world.now))
        self.told.append((state, why))

    async def _govern(self) -> None:
        with suppress(Broken):
            await self.governor.run()

    @property
    def quiet(self) -> bool:
        return self.governor.state == "quiet"


async def test_idle_it_goes_quiet_and_sends_nothing_more(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    await world.at(59)
    assert sleeper.governor.state == "awake"
    await world.at(61)
    assert sleeper.quiet
    assert sleeper.still.silent
    assert not sleeper.still.counted
    asked = len(world.store.asked)
    await world.at(86_400)
    assert len(world.store.asked) == asked
    assert sleeper.governor.why == []


async def test_without_the_setting_it_never_does(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world, sleep_after_s=None)
    await world.at(7200)
    assert sleeper.governor.state == "awake"
    assert "RUNTIME_SLEEP_AFTER" in sleeper.governor.why[0]


async def test_a_job_that_took_no_time_counts_as_activity(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    await world.at(50)
    row = world.store.add()
    await world.until(lambda: row.outcome)
    await world.at(105)
    assert not sleeper.quiet
    await world.at(112)
    assert sleeper.quiet


async def test_a_job_that_runs_keeps_it_awake(world: World) -> None:
    world.handle_taking(200)
    sleeper = Sleeper(world)
    row = world.store.add()
    await world.at(190)
    assert sleeper.governor.state == "awake"
    assert sleeper.governor.why == ["1 jobs run"]
    await world.until(lambda: row.outcome)
    await world.at(265)
    assert sleeper.quiet


async def test_a_deferred_job_keeps_it_awake_where_nobody_would_ring(world: World) -> None:
    world.handle_taking(0)
    row = world.store.add(delay_s=500)
    sleeper = Sleeper(world)
    await world.at(400)
    assert sleeper.governor.state == "awake"
    assert "RUNTIME_ALARM" in sleeper.governor.why[0]
    assert sleeper.still.counted
    await world.until(lambda: row.outcome)
    assert world.now == pytest.approx(500, abs=1)
    await world.at(600)
    assert sleeper.quiet


async def test_with_an_alarm_it_sleeps_though_a_job_is_deferred(world: World) -> None:
    world.handle_taking(0)
    row = world.store.add(delay_s=500)
    sleeper = Sleeper(world, alarm_s=300)
    await world.at(70)
    assert sleeper.quiet
    await world.at(510)
    sleeper.governor.call()
    await world.until(lambda: row.outcome)
    assert sleeper.governor.state in ("waking", "awake")
    assert world.now < 511


async def test_called_it_works_at_once_and_sleeps_again(world: World) -> None:
    world.handle_taking(1)
    sleeper = Sleeper(world)
    await world.at(100)
    row = world.store.add()
    sleeper.governor.call()
    await world.until(lambda: row.outcome)
    assert world.now == pytest.approx(101, abs=0.1)
    assert sleeper.still.counted
    await world.at(170)
    assert sleeper.quiet
    assert [state for state, _ in sleeper.states] == ["quiet", "waking", "awake", "quiet"]


async def test_a_job_that_comes_between_leaving_and_the_look_is_found(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    rows: list[object] = []
    sleeper.still.between = lambda: rows.append(world.store.add()) if not rows else None
    await world.at(62)
    assert world.store.settlements
    assert sleeper.governor.state == "awake"


async def test_whoever_comes_after_the_look_rings_and_is_heard_although_it_is_on_its_way_down(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    rows: list[object] = []

    def ring() -> None:
        if not rows:
            assert not sleeper.still.counted, "it must ring: nobody is counted"
            rows.append(world.store.add())
            sleeper.governor.call()

    sleeper.still.after_look = ring
    await world.at(62)
    assert world.store.settlements


async def test_a_call_in_every_moment_of_going_quiet_is_heard(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    for n in range(200):
        await world.until(lambda: True)
        await trio.sleep(60.0 + n * 0.005)
        row = world.store.add()
        sleeper.governor.call()
        began = world.now
        await world.until(lambda row=row: row.outcome)  # type: ignore[misc]  # a closure of this turn
        assert world.now - began < 1


async def test_a_store_that_is_away_keeps_it_awake(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    sleeper.still.away = "connection refused"
    await world.at(300)
    assert sleeper.governor.state == "awake"
    sleeper.still.away = None
    await world.at(420)
    assert sleeper.quiet


@pytest.mark.parametrize("what", ["leave", "due_in", "fall_silent"])
async def test_a_store_that_is_lost_as_it_goes_down_wakes_it_and_it_tries_again(world: World, what: str) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    sleeper.still.loses = what
    await world.at(65)
    assert sleeper.governor.state == "awake"
    assert sleeper.still.counted
    assert "connection refused" in [*sleeper.governor.why, ""][0]
    row = world.store.add()
    await world.until(lambda: row.outcome)
    assert world.now < 66
    sleeper.still.loses = None
    await world.at(200)
    assert sleeper.quiet


async def test_told_to_stop_while_quiet_it_stops(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    await world.at(100)
    sleeper.governor.stop()
    sleeper.serving.drain()
    assert await sleeper.serving.end() < 101
    assert sleeper.governor.state == "stopping"


@pytest.mark.parametrize("moment", ["leaving", "looking"])
async def test_told_to_stop_as_it_goes_down_it_does_not_close_what_the_drain_needs(world: World, moment: str) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)

    def stop() -> None:
        sleeper.governor.stop()
        sleeper.serving.drain()

    if moment == "leaving":
        sleeper.still.between = stop
    else:
        sleeper.still.after_look = stop
    assert await sleeper.serving.end() == pytest.approx(60, abs=1)
    await world.at(200)
    assert not sleeper.still.silent
    assert sleeper.governor.state == "stopping"


async def with_an_actor_that_dies_at_59(world: World, monkeypatch: pytest.MonkeyPatch) -> Sleeper:
    monkeypatch.setattr(supervisors, "RESTART_S", (40.0, 40.0))
    world.handle_taking(0)
    sleeper = Sleeper(world)
    await world.at(59)
    world.store.bugs["claim"] = Broken("claim")
    sleeper.supervisor.wake()
    return sleeper


async def test_an_actor_that_died_is_not_started_again_while_quiet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = await with_an_actor_that_dies_at_59(world, monkeypatch)
    await world.at(62)
    assert sleeper.quiet
    asked = len(world.store.asked)
    await world.at(600)
    assert len(world.store.asked) == asked
    row = world.store.add()
    sleeper.governor.call()
    await world.until(lambda: row.outcome)
    assert world.now == pytest.approx(600, abs=1)


async def test_drained_while_quiet_an_actor_that_died_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = await with_an_actor_that_dies_at_59(world, monkeypatch)
    await world.at(300)
    assert sleeper.quiet
    sleeper.governor.stop()
    sleeper.serving.drain()
    assert await sleeper.serving.end() < 301


@pytest.mark.parametrize("what", ["leave", "due_in", "fall_silent", "speak"])
async def test_a_bug_as_it_goes_down_or_up_leaves_it_awake(world: World, what: str) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    sleeper.still.breaks = what
    await world.at(70)
    if what == "speak":
        sleeper.governor.call()
    row = world.store.add()
    await world.until(lambda: row.outcome)
    assert world.now < 71
    assert sleeper.governor.state == "awake"
    assert sleeper.still.counted or what == "speak"
    await world.at(600)
    assert sleeper.governor.state == "awake"
    assert sleeper.governor.why == ["going quiet has failed"]


async def test_after_a_bug_as_it_goes_down_nothing_runs_before_it_speaks_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent: list[bool] = []

    async def speak() -> None:
        await trio.sleep(3)
        sleeper.still.silent = False

    async def work(ctx: Context) -> None:
        silent.append(sleeper.still.silent)

    world.handle(work)
    sleeper = Sleeper(world)
    sleeper.still.breaks = "fall_silent"
    monkeypatch.setattr(sleeper.still, "speak", speak)

    def come() -> None:
        sleeper.still.silent = True  # what is closed by then, handlers need
        world.store.add()

    sleeper.still.after_look = come
    await world.until(lambda: silent)
    assert silent == [False]


async def test_a_pause_ends_a_wait_and_a_resume_looks_at_once(world: World) -> None:
    async def work(ctx: Context) -> float:
        return world.now

    world.handle(work)
    actor = world.actor()
    world.serve(actor)
    await world.at(1)
    await actor.pause()
    row = world.store.add()
    await world.at(500)
    assert row.starts_at == []
    actor.resume()
    await world.until(lambda: row.outcome)
    assert world.now == pytest.approx(500, abs=0.1)


async def test_what_holds_it_awake_is_told_once_however_often_it_tries(world: World) -> None:
    world.handle_taking(0)
    row = world.store.add(delay_s=3600)
    sleeper = Sleeper(world)
    await world.at(1000)
    assert [state for state, _ in sleeper.told] == ["awake"]
    assert "RUNTIME_ALARM" in sleeper.told[0][1]
    (hold,) = sleeper.governor.holds
    assert hold.reason.kind == "due"
    assert trio.current_time() - hold.since == pytest.approx(940, abs=2)
    assert [(change.state, change.why) for change in sleeper.governor.history] == [
        ("awake", "the first claim was made"),
        *sleeper.told,
    ]
    await world.until(lambda: row.outcome)
    await world.at(3615)
    assert sleeper.told[1:] == [("awake", "it worked lately: quiet in 50 s")], "what held it is over"
    await world.at(3665)
    assert [state for state, _ in sleeper.told] == ["awake", "awake", "quiet"]
    assert sleeper.governor.holds == []


async def test_a_new_reason_is_told_when_it_lasts_and_short_jobs_are_not(world: World) -> None:
    world.handle_taking(3)
    sleeper = Sleeper(world)
    for n in range(20):
        await world.at(1 + 7 * n)
        world.store.add()
    await world.at(140)
    assert sleeper.told == []
    world.handle_taking(40)
    world.store.add()
    await world.at(165)
    assert sleeper.told == [("awake", "1 jobs run")]
    (hold,) = sleeper.governor.holds
    assert (hold.reason.kind, trio.current_time() - hold.since > 10) == ("running", True)


async def test_reasons_that_come_and_go_are_told_every_ten_seconds_at_most(world: World) -> None:
    world.handle_taking(10_000)
    sleeper = Sleeper(world)
    world.store.add()
    for n in range(100):
        await world.at(10 + 3 * n)
        sleeper.away = "connection refused" if n % 7 < 5 else None
    moments = [at for _, at in sleeper.states]
    assert {why for _, why in sleeper.told} == {"1 jobs run", "1 jobs run; Redis is away (connection refused)"}
    assert min(after - before for before, after in itertools.pairwise(moments)) >= 9.99
    assert len(sleeper.governor.history) == HISTORY


async def test_what_held_it_before_it_slept_does_not_hold_it_since_then(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world)
    await world.at(100)
    assert sleeper.quiet
    sleeper.governor.call()
    await world.at(130)
    (hold,) = sleeper.governor.holds
    assert hold.reason.kind == "lately"
    assert trio.current_time() - hold.since == pytest.approx(30, abs=1)


async def test_without_the_setting_nothing_is_told_and_the_reason_holds_since_the_start(world: World) -> None:
    world.handle_taking(0)
    sleeper = Sleeper(world, sleep_after_s=None)
    await world.at(500)
    assert sleeper.told == []
    (hold,) = sleeper.governor.holds
    assert trio.current_time() - hold.since == pytest.approx(500, abs=2)
