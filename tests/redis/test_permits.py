"""permits.lua, acquire.lua and release.lua: so many at once, in order, handed on, and lost with their lease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from runtime.adapters.redis import keys
from runtime.adapters.redis.scripts import Leased, script
from tests.processes import wait_until
from tests.redis.store import LEASE_MS, Store, done

HELD, WAITING = keys.held("exports"), keys.waiting("exports")
GRACE_MS = 1000


class Jobs:
    """Jobs that are leased, and the permits they ask for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._numbers = 0

    def lease(self, count: int = 1, *, incarnation: str = "a-1", lease_ms: int = LEASE_MS) -> list[Leased]:
        ids = [f"{incarnation}.{self._numbers + n}" for n in range(count)]
        self._numbers += count
        self.store.enqueue(*ids)
        return self.store.worker(incarnation, lease_ms=lease_ms).take(*ids)

    def permit(self, job: Leased, *, most: int = 1, incarnation: str = "a-1") -> str:
        self._numbers += 1
        return f"{self._numbers}|{incarnation}|{most}|{job.token}|{job.id.decode()}"

    def permits(self, count: int, *, most: int = 1, incarnation: str = "a-1") -> list[str]:
        return [
            self.permit(job, most=most, incarnation=incarnation) for job in self.lease(count, incarnation=incarnation)
        ]

    def ask(self, *permits: str) -> list[str]:
        return self._ask(*permits)[1]

    def ask_until_held(self, permit: str) -> None:
        wait_until(lambda: self.ask(permit) == ["held"], 10)

    def look_ms(self, *permits: str) -> int:
        return self._ask(*permits)[0]

    def _ask(self, *permits: str) -> tuple[int, list[str]]:
        reply = self.store.run(script("acquire", "permits")(self.store.scripts, [HELD, WAITING], permits))
        return reply[0], [state.decode() for state in reply[1:]]

    def give_back(self, *permits: str, label: str = "exports") -> list[str]:
        return self.give_back_all([(label, permit) for permit in permits])

    def give_back_all(self, what: Sequence[tuple[str, str]]) -> list[str]:
        names = [name for label, _ in what for name in (keys.held(label), keys.waiting(label))]
        trouble = self.store.run(
            script("release", "permits")(self.store.scripts, names, [permit for _, permit in what])
        )
        return [text.decode() for text in trouble]

    def lapse(self, permit: str) -> None:
        self.store.redis.delete(lease_of(permit))

    def retake(self, permit: str) -> None:
        """Another worker has its job."""
        self.store.redis.set(lease_of(permit), "another", px=LEASE_MS)

    def held(self) -> list[str]:
        return list(self.store.redis.zrange(HELD, 0, -1))

    def waiting(self) -> list[str]:
        return list(self.store.redis.zrange(WAITING, 0, -1))

    def messages(self, incarnation: str = "a-1") -> list[str]:
        return list(self.store.redis.lrange(keys.handed(incarnation), 0, -1))


def lease_of(permit: str) -> str:
    return keys.IN_PROGRESS + permit.split("|", 4)[4]


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store)


def test_as_many_hold_as_may_and_the_others_wait(jobs: Jobs) -> None:
    a, b, c, d = jobs.permits(4, most=2)
    assert [jobs.ask(one)[0] for one in (a, b, c, d)] == ["held", "held", "waiting", "waiting"]
    assert set(jobs.held()) == {a, b}
    assert jobs.waiting() == [c, d]
    assert 29 * 86400 < jobs.store.redis.ttl(HELD) <= 30 * 86400
    assert 0 < jobs.store.redis.ttl(WAITING) <= 300


def test_what_is_given_back_is_handed_to_the_first_in_line_whose_process_is_told(jobs: Jobs) -> None:
    (a,) = jobs.permits(1)
    b, c = jobs.permits(2, incarnation="b-2")
    jobs.ask(a), jobs.ask(b), jobs.ask(c)
    assert jobs.give_back(a) == []
    assert (jobs.held(), jobs.waiting()) == ([b], [c])
    assert jobs.messages("b-2") == [b]
    assert jobs.messages("a-1") == []
    assert 0 < jobs.store.redis.ttl(keys.handed("b-2")) <= 60
    jobs.give_back(b)
    assert (jobs.held(), jobs.waiting()) == ([c], [])
    assert jobs.messages("b-2") == [b, c]
    assert 29 * 86400 < jobs.store.redis.ttl(HELD) <= 30 * 86400
    jobs.give_back(c)
    assert not jobs.store.redis.exists(HELD, WAITING)


def test_the_line_is_as_they_came_also_within_one_call(jobs: Jobs) -> None:
    first, *others = jobs.permits(8)
    jobs.ask(first)
    order = others[3:] + others[2::-1]
    jobs.ask(*order[:4])
    jobs.ask(*order[4:])
    assert jobs.waiting() == order
    held = []
    for _ in order:
        jobs.give_back(*jobs.held())
        held += jobs.held()
    assert held == order


def test_a_clock_that_was_turned_back_puts_nobody_before_others(jobs: Jobs) -> None:
    a, b, c = jobs.permits(3)
    jobs.ask(a), jobs.ask(b)
    jobs.store.redis.zadd(WAITING, {b: 1000 * jobs.store.now_ms() + 3_600_000_000})
    jobs.ask(c)
    assert jobs.waiting() == [b, c]


def test_nobody_passes_who_waits_though_there_is_room(jobs: Jobs) -> None:
    """The room is found by who comes next; it goes to the first in line."""
    (a,) = jobs.permits(1)
    b, c = jobs.permits(2, incarnation="b-2")
    jobs.ask(a), jobs.ask(b)
    jobs.store.redis.zrem(HELD, a)
    assert jobs.ask(c) == ["waiting"]
    assert (jobs.held(), jobs.messages("b-2")) == ([b], [b])


def test_several_that_ask_at_once_get_what_there_is_without_a_message(jobs: Jobs) -> None:
    a, b, c = jobs.permits(3, most=2)
    assert jobs.ask(a, b, c) == ["held", "held", "waiting"]
    assert jobs.messages() == []


def test_asking_again_after_a_lost_reply_changes_nothing(jobs: Jobs) -> None:
    a, b, c = jobs.permits(3)
    assert jobs.ask(a) == jobs.ask(a) == ["held"]
    jobs.ask(b), jobs.ask(c)
    assert jobs.ask(b) == ["waiting"]
    assert jobs.waiting() == [b, c]
    assert jobs.ask(c, b, a) == ["waiting", "waiting", "held"]
    assert jobs.waiting() == [b, c]
    assert jobs.held() == [a]


def test_giving_back_twice_is_giving_back_once(jobs: Jobs) -> None:
    a, b, c = jobs.permits(3)
    jobs.ask(a), jobs.ask(b), jobs.ask(c)
    jobs.give_back(a), jobs.give_back(a)
    assert (jobs.held(), jobs.waiting()) == ([b], [c])


def test_who_leaves_the_line_is_handed_nothing(jobs: Jobs) -> None:
    a, b, c = jobs.permits(3)
    jobs.ask(a), jobs.ask(b), jobs.ask(c)
    jobs.give_back(b)
    assert jobs.held() == [a]
    jobs.give_back(a)
    assert jobs.held() == [c]


def test_who_leaves_just_after_it_was_handed_the_permit_hands_it_on(jobs: Jobs) -> None:
    a, b, c = jobs.permits(3)
    jobs.ask(a), jobs.ask(b), jobs.ask(c)
    jobs.give_back(a)
    jobs.give_back(b)
    assert jobs.held() == [c]


def test_who_waits_and_has_died_is_passed_over(jobs: Jobs) -> None:
    a, b, c, d = jobs.permits(4)
    jobs.ask(a), jobs.ask(b), jobs.ask(c), jobs.ask(d)
    jobs.lapse(b)
    jobs.retake(c)
    jobs.give_back(a)
    assert (jobs.held(), jobs.waiting(), jobs.messages()) == ([d], [], [d])


def test_who_does_not_hold_its_job_gets_nothing(jobs: Jobs) -> None:
    lapsed, taken, fine = jobs.permits(3, most=3)
    jobs.lapse(lapsed)
    jobs.retake(taken)
    assert jobs.ask(lapsed) == ["lapsed"]
    assert jobs.ask(taken) == ["lost"]
    assert jobs.ask(lapsed, fine, taken) == ["lapsed", "held", "lost"]
    assert (jobs.held(), jobs.waiting()) == ([fine], [])
    (full,) = jobs.permits(1)
    assert jobs.ask(full) == ["waiting"]
    assert jobs.ask(lapsed, taken) == ["lapsed", "lost"]
    assert jobs.waiting() == [full]


def test_one_that_is_held_is_told_to_be_lost_with_its_lease(jobs: Jobs) -> None:
    (a,) = jobs.permits(1)
    jobs.ask(a)
    jobs.retake(a)
    assert jobs.ask(a) == ["lost"]


def test_it_is_worth_asking_again_when_the_first_lease_would_lapse(jobs: Jobs) -> None:
    short, long, other = (jobs.lease(lease_ms=ms)[0] for ms in (4_000, 9_000, 30_000))
    held = [jobs.permit(job, most=2) for job in (long, short)]
    jobs.ask(*held)
    assert 3_000 < jobs.look_ms(jobs.permit(other, most=2)) <= 4_001
    assert jobs.store.redis.pttl(keys.IN_PROGRESS + short.id.decode()) > 0


def test_and_not_much_later_whatever_the_leases_are(jobs: Jobs) -> None:
    a, b = (jobs.permit(job) for job in jobs.lease(2, lease_ms=60_000))
    jobs.ask(a)
    assert jobs.look_ms(b) == 15_000
    jobs.store.redis.persist(lease_of(a))
    assert jobs.look_ms(b) == 15_000
    jobs.lapse(a)


def test_a_dead_holders_permit_goes_on_a_second_after_its_lease(jobs: Jobs) -> None:
    (dead,) = jobs.lease(lease_ms=1)
    (waiting,) = jobs.permits(1)
    permit = jobs.permit(dead)
    jobs.store.redis.zadd(HELD, {permit: 0})
    jobs.store.redis.pexpire(HELD, 60_000)
    jobs.store.lapse(dead)
    since = jobs.store.now_ms()
    assert jobs.look_ms(waiting) == GRACE_MS
    assert jobs.ask(waiting) == ["waiting"]
    assert 0 < jobs.look_ms(waiting) <= GRACE_MS
    jobs.ask_until_held(waiting)
    assert GRACE_MS - 2 <= jobs.store.now_ms() - since < GRACE_MS + 2_000
    assert jobs.held() == [waiting]


def test_a_holder_whose_keeper_takes_its_lease_again_keeps_the_permit(jobs: Jobs) -> None:
    store = jobs.store
    worker = store.worker(lease_ms=1)
    store.enqueue("a")
    job = worker.one("a")
    permit, (waiting,) = jobs.permit(job), jobs.permits(1)
    store.redis.zadd(HELD, {permit: 0})
    store.lapse(job)
    jobs.ask(waiting)
    assert store.redis.zscore(HELD, permit) > 0
    worker.lease_ms = LEASE_MS
    assert worker.keeps(job)
    assert LEASE_MS - 1000 < jobs.look_ms(waiting) <= LEASE_MS + 1
    assert store.redis.zscore(HELD, permit) == 0
    store.redis.zadd(HELD, {permit: store.now_ms() - 5_000})  # as if nobody had looked meanwhile
    assert jobs.ask(waiting) == ["waiting"]
    jobs.give_back(permit, waiting)


def test_a_clock_that_was_turned_back_frees_no_permit_too_late(jobs: Jobs) -> None:
    (gone,), (waiting,) = jobs.permits(1), jobs.permits(1)
    jobs.lapse(gone)
    jobs.store.redis.zadd(HELD, {gone: jobs.store.now_ms() + 3_600_000})
    assert jobs.look_ms(waiting) == GRACE_MS
    jobs.give_back(gone, waiting)


def test_the_permit_of_a_job_that_another_runs_is_free_at_once(jobs: Jobs) -> None:
    a, b = jobs.permits(2)
    jobs.ask(a)
    jobs.retake(a)
    assert jobs.ask(b) == ["held"]
    assert jobs.held() == [b]


def test_the_permit_of_a_job_that_has_ended_is_free_though_nobody_gave_it_back(jobs: Jobs) -> None:
    store = jobs.store
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    a, (b,) = jobs.permit(job), jobs.permits(1)
    jobs.ask(a)
    worker.settle(done(job))
    assert jobs.ask(b) == ["waiting"]
    jobs.ask_until_held(b)


def test_where_most_was_lowered_the_holders_drain_and_each_gets_in_by_its_own(jobs: Jobs) -> None:
    old = jobs.permits(4, most=4)
    for one in old:
        jobs.ask(one)
    new, late = jobs.permits(1, most=2)[0], jobs.permits(1, most=4)[0]
    assert jobs.ask(new) == ["waiting"]
    jobs.give_back(old[0])
    assert jobs.ask(late) == ["waiting"]  # though it would find room by its own: it came later
    jobs.give_back(old[1])
    assert jobs.waiting() == [new, late]
    jobs.give_back(old[2])
    assert (set(jobs.held()), jobs.waiting()) == ({old[3], new, late}, [])


def test_where_the_first_in_line_leaves_that_had_no_room_the_next_is_let_in(jobs: Jobs) -> None:
    old = jobs.permits(3, most=3)
    for one in old:
        jobs.ask(one)
    low, high = jobs.permits(1, most=1)[0], jobs.permits(1, most=3)[0]
    jobs.ask(low), jobs.ask(high)
    jobs.give_back(old[0])
    assert high in jobs.waiting()
    jobs.give_back(low)
    assert high in jobs.held()


def test_an_id_may_have_any_sign_in_it(jobs: Jobs) -> None:
    store = jobs.store
    odd, (other,) = "a|b|3|\n{x}", jobs.permits(1)
    store.enqueue(odd)
    permit = jobs.permit(store.worker().one(odd))
    assert jobs.ask(permit) == ["held"]
    assert jobs.ask(other) == ["waiting"]
    jobs.give_back(other)
    jobs.give_back(permit)
    jobs.ask(other)
    assert jobs.ask(permit) == ["waiting"]
    jobs.give_back(other)
    assert jobs.held() == [permit]


@pytest.mark.parametrize("key", [HELD, WAITING])
def test_r19_a_key_of_a_wrong_type_is_an_error_and_not_overwritten(jobs: Jobs, key: str) -> None:
    jobs.store.spoil(key)
    a, b = jobs.permits(2)
    with pytest.raises(RedisError, match="WRONGTYPE"):
        jobs.ask(a)
    with pytest.raises(RedisError, match="WRONGTYPE"):
        jobs.ask(a, b)
    (trouble,) = jobs.give_back(a)
    assert "WRONGTYPE" in trouble
    assert trouble.endswith(f"\n{HELD}")
    assert jobs.store.is_spoiled(key)
    assert not jobs.store.redis.exists(*{HELD, WAITING} - {key})


def test_r19_a_key_of_a_wrong_type_keeps_no_other_permit_back(jobs: Jobs) -> None:
    a, b = jobs.permits(2)
    jobs.ask(b)
    jobs.store.spoil(keys.held("another"))
    assert len(jobs.give_back_all([("another", a), ("exports", b)])) == 1
    assert jobs.held() == []


def test_r19_a_message_that_cannot_be_left_stops_no_hand_over(jobs: Jobs) -> None:
    a, b = jobs.permits(2)
    jobs.ask(a), jobs.ask(b)
    jobs.store.redis.set(keys.handed("a-1"), "spoiled", ex=60)
    assert jobs.give_back(a) == []
    assert jobs.held() == [b]
    assert jobs.ask(b) == ["held"]


def test_r19_a_lease_of_a_wrong_type_is_nobodys(jobs: Jobs) -> None:
    a, b = jobs.permits(2)
    jobs.ask(a)
    jobs.store.spoil(lease_of(a))
    jobs.ask(b)
    jobs.ask_until_held(b)


def test_r19_without_memory_nothing_is_held_and_what_is_held_can_be_given_back(jobs: Jobs) -> None:
    a, b, c = jobs.permits(3)
    jobs.ask(a), jobs.ask(b)
    with jobs.store.out_of_memory():
        with pytest.raises(OutOfMemoryError):
            jobs.ask(c)
        assert jobs.waiting() == [b]
        assert jobs.give_back(a) == []
        assert jobs.held() == [b]
        jobs.give_back(b)
        with pytest.raises(OutOfMemoryError):
            jobs.ask(c)
        assert jobs.held() == []


@contextmanager
def taking_no_writes(store: Store) -> Iterator[None]:
    store.raw.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        store.raw.config_set("min-replicas-to-write", 0)


def test_a_server_that_takes_no_writes_is_no_wrong_type_and_keeps_what_is_given_back(jobs: Jobs) -> None:
    (a,) = jobs.permits(1)
    jobs.ask(a)
    with taking_no_writes(jobs.store), pytest.raises(ResponseError, match=r"(?i)noreplicas|good replicas"):
        jobs.give_back(a)
    assert jobs.held() == [a]
    jobs.give_back(a)
