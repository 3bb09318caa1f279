"""How outcomes reach the store: by the batch, in order, once, however long the store is away."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from runtime.core.job import NEW, Call, Claim, Done, Settlement, Verdict
from runtime.engine.settler import BATCH, Settler
from tests.engine.world import World

HOUR_S = 3600.0


class Desk:
    """A settler at work, and what it was told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.verdicts: list[tuple[str, Verdict]] = []
        self.settler = Settler(world.store, world.diary, lambda s, verdict: self.verdicts.append((s.claim.id, verdict)))

    def start(self) -> None:
        self.world.nursery.start_soon(self.settler.run)

    async def put(self, *queues: str) -> list[str]:
        """An outcome for each of these queues; the jobs' ids."""
        ids = []
        for queue in queues:
            row = self.world.store.add(queue=queue)
            pulled = await self.world.store.claim(queue, 1)
            self.settler.put(Settlement(pulled.claims[0], Done(row.id), 0, 0))
            ids.append(row.id)
        return ids

    @property
    def sizes(self) -> list[int]:
        return [asked.size for asked in self.world.store.asked if asked.what == "settle"]


async def test_an_outcome_is_sent_at_once(world: World) -> None:
    desk = Desk(world)
    desk.start()
    await world.at(10)
    [job] = await desk.put("q")
    await world.rest()
    assert world.store.times("settle") == [10]
    assert desk.verdicts == [(job, "settled")]
    assert desk.settler.backlog == 0


async def test_while_one_call_is_in_flight_the_next_batch_gathers(world: World) -> None:
    desk = Desk(world)
    world.store.slow_s["settle"] = 1.0
    desk.start()
    first = await desk.put("q")
    await world.at(0.5)
    rest = await desk.put(*["q"] * 50)
    await world.at(5)
    assert desk.sizes == [1, 50]
    assert desk.verdicts == [(job, "settled") for job in first + rest]


async def test_a_batch_has_a_hundred_outcomes_at_most(world: World) -> None:
    desk = Desk(world)
    ids = await desk.put(*["q"] * 250)
    assert desk.settler.backlog == 250
    desk.start()
    await world.until(lambda: desk.settler.backlog == 0)
    assert desk.sizes == [BATCH, BATCH, 50]
    assert [job for job, _ in desk.verdicts] == ids


async def test_a_batch_goes_to_one_queue(world: World) -> None:
    desk = Desk(world)
    await desk.put("a", "a", "b", "b", "b", "a")
    desk.start()
    await world.until(lambda: desk.settler.backlog == 0)
    assert all(len({settlement.claim.queue for settlement in batch}) == 1 for batch in world.store.batches)
    assert len(desk.verdicts) == 6


async def test_outcomes_of_two_queues_in_turns_make_a_batch_for_each(world: World) -> None:
    desk = Desk(world)
    await desk.put(*["a", "b"] * 50)
    desk.start()
    await world.until(lambda: desk.settler.backlog == 0)
    assert desk.sizes == [50, 50]


@pytest.mark.parametrize("length_s", [0.05, 1.0, HOUR_S])
async def test_outcomes_survive_a_store_that_is_away_and_are_settled_once(world: World, length_s: float) -> None:
    desk = Desk(world)
    ids = await desk.put("a", "a", "b")
    world.store.go_away()
    desk.start()
    await world.at(length_s)
    assert desk.verdicts == []
    assert desk.settler.backlog == 3
    world.store.come_back()
    await world.until(lambda: desk.settler.backlog == 0)
    assert sorted(desk.verdicts) == [(job, "settled") for job in sorted(ids)]
    assert [len(world.store.outcomes(job)) for job in ids] == [1, 1, 1]


async def test_a_store_that_is_away_is_asked_ever_less_often(world: World) -> None:
    desk = Desk(world)
    await desk.put("q")
    world.store.go_away("gone")
    desk.start()
    await world.at(HOUR_S)
    gaps = [round(second - first, 6) for first, second in pairwise(world.store.times("settle"))]
    assert gaps[:5] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert set(gaps[4:]) == {1.0}
    assert {cause for _, cause in world.diary.weathers} == {"settle: gone"}
    assert len(world.diary.weathers) == len(gaps) + 1


async def test_the_backoff_is_over_once_the_store_has_answered(world: World) -> None:
    desk = Desk(world)
    desk.start()
    for outage in (100, 200):
        await world.at(outage)
        await desk.put("q")
        world.store.go_away()
        await world.at(outage + 60)
        world.store.come_back()
        await world.until(lambda: desk.settler.backlog == 0)
        first, second = [when for when in world.store.times("settle") if when >= outage][:2]
        assert round(second - first, 6) == 0.1


async def test_a_batch_whose_reply_was_lost_is_sent_again_as_it_was(world: World) -> None:
    desk = Desk(world)
    world.store.lost_replies.add("settle")
    [first] = await desk.put("q")
    desk.start()
    await world.rest()
    [second] = await desk.put("q")
    await world.until(lambda: desk.settler.backlog == 0)
    assert world.store.batches[0] is world.store.batches[1]
    assert desk.verdicts == [(first, "settled"), (second, "settled")]
    assert [len(world.store.outcomes(job)) for job in (first, second)] == [1, 1]


async def test_a_batch_whose_sending_was_cut_short_is_the_first_to_be_sent_again_as_it_was(world: World) -> None:
    desk = Desk(world)
    ids = await desk.put("q", "q")
    world.store.slow_s["settle"] = 5
    with trio.move_on_after(1):
        await desk.settler.run()
    ids += await desk.put("q")
    assert desk.settler.backlog == 3
    desk.settler.close()
    await desk.settler.run()
    assert world.store.batches[0] is world.store.batches[1]
    assert desk.sizes == [2, 2, 1]
    assert [job for job, _ in desk.verdicts] == ids


async def test_a_refused_outcome_is_told_and_forgotten(world: World) -> None:
    desk = Desk(world)
    [job] = await desk.put("q")
    world.store.take_from(world.store.rows[job])
    desk.start()
    await world.rest()
    assert desk.verdicts == [(job, "refused")]
    assert desk.settler.backlog == 0


async def test_a_closed_settler_ends_when_all_is_settled(world: World) -> None:
    desk = Desk(world)
    world.store.slow_s["settle"] = 2
    await desk.put("a", "b")
    desk.settler.close()
    desk.start()
    await world.at(3.9)
    assert not desk.settler.finished.is_set()
    await desk.settler.finished.wait()
    assert world.now == 4
    assert len(desk.verdicts) == 2


async def test_a_settler_that_is_closed_while_it_has_nothing_to_do_ends_at_once(world: World) -> None:
    desk = Desk(world)
    desk.start()
    await world.at(10)
    desk.settler.close()
    await desk.settler.finished.wait()
    assert world.now == 10


async def test_what_is_put_while_closing_is_still_settled(world: World) -> None:
    desk = Desk(world)
    world.store.slow_s["settle"] = 2
    await desk.put("q")
    desk.start()
    await world.at(1)
    desk.settler.close()
    await desk.put("q")
    await desk.settler.finished.wait()
    assert len(desk.verdicts) == 2


async def test_an_answer_of_the_wrong_length_is_a_bug_not_an_outcome(world: World) -> None:
    desk = Desk(world)
    claim = Claim("id", "q", "token", "0", 1, 1, Call("work", (), {}, 0), b"", 0, NEW)
    settle = world.store.settle

    async def settle_short(queue: str, batch: list[Settlement]) -> list[Verdict]:
        await settle(queue, [])
        return []

    world.store.settle = settle_short  # type: ignore[method-assign, assignment]
    desk.settler.put(Settlement(claim, Done(None), 0, 0))
    with pytest.raises(ValueError, match="zip"):
        await desk.settler.run()
    assert desk.verdicts == []
