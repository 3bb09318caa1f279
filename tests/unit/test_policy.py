"""From a claim to an outcome, and from an exception to an outcome."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from arq.worker import Retry as ArqRetry
from arq.worker import RetryJob
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.errors import (
    Invalid,
    LeaseLost,
    Permanent,
    ResourceExhausted,
    RetryLater,
    Snooze,
    Transient,
)
from runtime.core.job import (
    NEW,
    Call,
    Cancelled,
    Claim,
    Dead,
    Done,
    ErrorRecord,
    Failure,
    History,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Unreadable,
)
from runtime.core.policy import (
    CANCELLED_S,
    ERRORS_KEPT,
    MAX_CRASHES,
    STALE_ABORT_MS,
    TEXT_LIMIT,
    Ended,
    Final,
    Stop,
    after_crash,
    after_error,
    after_run,
    attempt_after,
    before_run,
    categorise,
    describe,
    ended,
    failed,
    kept_s,
    redacted,
    remember,
)
from runtime.core.redaction import BY_SHAPE, Redactor
from runtime.core.retry import Retry
from runtime.core.spec import Spec

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
SPEC = Spec("work")
A_FAILURE = Failure("ValueError", "no", "transient", True)


def claimed(
    attempt: int = 1,
    *,
    history: History = NEW,
    enqueued_ms: int = NOW_MS,
    expires_ms: int | None = None,
    abort_ms: int | None = None,
    now_ms: int = NOW_MS,
    call: Call | Unreadable | None = None,
) -> Claim:
    call = call or Call("work", (), {}, enqueued_ms, expires_ms=expires_ms)
    return Claim("id", "q", "token", "1000", attempt, attempt, call, b"", now_ms, history, abort_ms)


def reason_of(outcome: Outcome | None) -> str:
    assert isinstance(outcome, Dead), outcome
    return outcome.reason


def after(
    error: BaseException, *, claim: Claim | None = None, retry: Retry | None = None, now_ms: int = NOW_MS
) -> Outcome:
    return after_error(error, claim or claimed(), retry or Retry(), now_ms, 0.5)


# A process that has to end because of a handler.

BLOCKED = Failure("Blocked", "it blocked the event loop: app.py:7 in grind", "resource")


@pytest.mark.parametrize(("before", "delay_s"), [(0, 0.0), (1, 10.0)])
def test_making_an_end_of_the_process_is_a_crash_with_a_text(before: int, delay_s: float) -> None:
    claim = claimed(before + 1, history=History(crashes=before))
    outcome, history = after_crash(claim, BLOCKED, NOW_MS)
    assert isinstance(outcome, Retried)
    assert outcome.delay_s == delay_s
    assert history.crashes == before + 1
    assert history.errors[-1].error == "Blocked"
    assert "app.py:7 in grind" in history.errors[-1].text
    assert attempt_after(claim, outcome) - history.crashes == 0  # no failure of the job's


def test_the_third_end_makes_a_dead_letter() -> None:
    outcome, history = after_crash(claimed(3, history=History(crashes=2)), BLOCKED, NOW_MS)
    assert reason_of(outcome) == "crashed"
    assert history.crashes == 3


# Before a run.


def test_a_job_of_a_known_handler_is_run() -> None:
    assert before_run(claimed(), SPEC) is None


def test_a_body_that_is_no_call_is_dead_with_its_reason() -> None:
    outcome = before_run(claimed(call=Unreadable("the body is missing")), None)
    assert outcome == Dead("undecodable", Failure("Undecodable", "the body is missing", "validation"))


def test_an_aborted_job_is_cancelled_without_a_run() -> None:
    assert before_run(claimed(abort_ms=NOW_MS), SPEC) == Cancelled()


@pytest.mark.parametrize(
    ("before_ms", "outcome"), [(0, Cancelled()), (STALE_ABORT_MS, Cancelled()), (STALE_ABORT_MS + 1, None)]
)
def test_an_abort_that_is_older_than_the_job_was_meant_for_another(before_ms: int, outcome: Outcome | None) -> None:
    assert before_run(claimed(abort_ms=NOW_MS - before_ms, enqueued_ms=NOW_MS), SPEC) == outcome


def test_an_abort_that_took_the_job_for_deferred_is_meant_for_it_whatever_the_clock() -> None:
    """Stock arq has rewritten its score then: it would run hours before its time."""
    flagged = replace(claimed(abort_ms=NOW_MS - 10_000, enqueued_ms=NOW_MS), place="1")
    assert before_run(flagged, SPEC) == Cancelled()
    assert before_run(replace(flagged, abort_ms=None), SPEC) is None


@pytest.mark.parametrize("crashes", range(MAX_CRASHES))
def test_a_job_whose_workers_died_is_run_again(crashes: int) -> None:
    assert before_run(claimed(1 + crashes, history=History(crashes=crashes)), Spec("work", retry=Retry(1))) is None


def test_the_third_crash_makes_a_dead_letter() -> None:
    outcome = before_run(claimed(4, history=History(crashes=MAX_CRASHES)), SPEC)
    assert reason_of(outcome) == "crashed"
    assert isinstance(outcome, Dead)
    assert "3 times" in outcome.failure.text


@pytest.mark.parametrize(("late_ms", "runs"), [(-1, True), (0, True), (1, False)])
def test_a_job_is_not_started_after_its_expiry(late_ms: int, runs: bool) -> None:
    outcome = before_run(claimed(expires_ms=NOW_MS - late_ms), SPEC)
    assert outcome is None if runs else reason_of(outcome) == "expired"


def test_a_job_with_more_starts_than_attempts_is_dead() -> None:
    spec = Spec("work", retry=Retry(3))
    assert before_run(claimed(3), spec) is None
    assert reason_of(before_run(claimed(4), spec)) == "exhausted"


def test_crashes_are_no_attempts() -> None:
    spec = Spec("work", retry=Retry(3))
    assert before_run(claimed(5, history=History(crashes=2)), spec) is None
    assert reason_of(before_run(claimed(6, history=History(crashes=2)), spec)) == "exhausted"


# Unknown handlers.


def unknown_for(waited_s: float) -> Outcome | None:
    history = History(unknown_since_ms=NOW_MS - round(waited_s * 1000))
    return before_run(claimed(history=history), None)


def test_a_job_of_an_unknown_handler_is_given_back_for_a_second_first() -> None:
    assert before_run(claimed(), None) == Released("unknown-handler", 1.0)


@pytest.mark.parametrize(
    ("waited_s", "delay_s"), [(0.5, 1), (1, 1), (2, 2), (64, 64), (299, 299), (301, 300), (86399, 300)]
)
def test_it_waits_as_long_again_as_it_has_waited_from_a_second_to_five_minutes(waited_s: float, delay_s: float) -> None:
    assert unknown_for(waited_s) == Released("unknown-handler", delay_s)


def test_after_a_day_it_is_dead() -> None:
    outcome = unknown_for(86400)
    assert reason_of(outcome) == "unknown-handler"
    assert isinstance(outcome, Dead)
    assert outcome.failure.text == "for 1 d no worker has known the handler 'work'"


def test_its_delays_double() -> None:
    history, now_ms, delays = NEW, NOW_MS, []
    while isinstance(outcome := before_run(claimed(history=history, now_ms=now_ms), None), Released):
        assert outcome.delay_s is not None
        delays.append(outcome.delay_s)
        history = remember(claimed(history=history, now_ms=now_ms), outcome, now_ms)
        now_ms += round(outcome.delay_s * 1000)
    assert delays[:11] == [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert 86400 <= sum(delays) <= 86700


def test_an_unknown_handlers_crashes_expiry_and_abort_count_all_the_same() -> None:
    assert reason_of(before_run(claimed(history=History(crashes=3)), None)) == "crashed"
    assert reason_of(before_run(claimed(expires_ms=NOW_MS - 1), None)) == "expired"
    assert before_run(claimed(abort_ms=NOW_MS), None) == Cancelled()


def test_a_handler_that_was_known_in_between_is_unknown_anew() -> None:
    first = claimed()
    released = before_run(first, None)
    assert released is not None
    second = claimed(history=remember(first, released, NOW_MS), now_ms=NOW_MS + 1000)
    snoozed = remember(second, Snoozed(30 * 3600), NOW_MS + 1000)
    third = claimed(history=snoozed, now_ms=NOW_MS + 30 * HOUR_MS)
    assert isinstance(before_run(third, None), Released)


# After a run.


def test_a_run_that_returns_is_done() -> None:
    assert after_run(Ended(42), claimed(), Retry(), NOW_MS, 0.5) == Done(42)


@pytest.mark.parametrize("stop", ["timeout", "abort", "shutdown"])
def test_a_run_that_returns_although_it_was_asked_to_stop_is_done(stop: Stop) -> None:
    assert after_run(Ended(42, None, stop), claimed(), Retry(), NOW_MS, 0.5) == Done(42)


@pytest.mark.parametrize("error", [None, ValueError(), asyncio.CancelledError(), Snooze(1)])
def test_a_run_whose_lease_is_lost_has_no_outcome(error: BaseException | None) -> None:
    assert after_run(Ended(42, error, "lost"), claimed(), Retry(), NOW_MS, 0.5) is None
    assert after_run(Ended(None, LeaseLost(), None), claimed(), Retry(), NOW_MS, 0.5) is None


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("of the clean-up"), Snooze(1), Permanent()])
def test_a_run_that_was_cut_off_has_the_outcome_of_whoever_cut_it(error: BaseException) -> None:
    def outcome(stop: Stop) -> Outcome | None:
        return after_run(Ended(None, error, stop), claimed(9), Retry(1), NOW_MS, 0.5)

    assert outcome("shutdown") == Released("shutdown")
    assert outcome("abort") == Cancelled()


def test_a_timeout_is_a_failure_like_another() -> None:
    error = TimeoutError("it ran longer than its timeout of 5 m")
    outcome = after_run(Ended(None, error, "timeout"), claimed(), Retry(), NOW_MS, 0.5)
    assert outcome == Retried(1.0, Failure("TimeoutError", str(error), "transient", True))
    assert reason_of(after_run(Ended(None, error, "timeout"), claimed(3), Retry(3), NOW_MS, 0.5)) == "exhausted"


@pytest.mark.parametrize("error", [ValueError(), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_error_is_tried_again_until_the_attempts_are_used_up(error: BaseException) -> None:
    retry = Retry(3)
    assert isinstance(after(error, claim=claimed(1), retry=retry), Retried)
    assert isinstance(after(error, claim=claimed(2), retry=retry), Retried)
    assert reason_of(after(error, claim=claimed(3), retry=retry)) == "exhausted"
    assert isinstance(after(error, claim=claimed(4, history=History(crashes=2)), retry=retry), Retried)


def test_the_wait_doubles_with_the_failures_not_with_the_crashes() -> None:
    retry = Retry(9, base="2s")
    delays = [after(ValueError(), claim=claimed(n), retry=retry) for n in (1, 2, 3)]
    assert [delay.delay_s for delay in delays if isinstance(delay, Retried)] == [1, 2, 4]
    crashed = after(ValueError(), claim=claimed(3, history=History(crashes=2)), retry=retry)
    assert isinstance(crashed, Retried)
    assert crashed.delay_s == 1


@pytest.mark.parametrize("error", [Permanent("gone"), Invalid("bad")])
def test_what_will_never_work_is_dead_at_once(error: BaseException) -> None:
    assert reason_of(after(error)) == "permanent"


@pytest.mark.parametrize("error", [Transient("busy"), ResourceExhausted("disk full"), MemoryError()])
def test_what_may_work_next_time_is_tried_again(error: BaseException) -> None:
    assert isinstance(after(error), Retried)


def test_only_the_exceptions_of_the_policy_are_retried() -> None:
    retry = Retry(on=(ConnectionError, TimeoutError))
    assert isinstance(after(ConnectionResetError(), retry=retry), Retried)
    assert reason_of(after(ValueError(), retry=retry)) == "permanent"
    assert isinstance(after(RetryLater(1), retry=retry), Retried)


def test_a_handler_that_asks_for_a_time_gets_it() -> None:
    outcome = after(RetryLater("5m"))
    assert isinstance(outcome, Retried)
    assert outcome.delay_s == 300
    assert outcome.failure.error.endswith(".RetryLater")


def test_asking_for_a_time_does_not_add_attempts() -> None:
    assert reason_of(after(RetryLater("5m"), claim=claimed(3))) == "exhausted"


@pytest.mark.parametrize(
    ("error", "delay_s"), [(ArqRetry(), 0), (ArqRetry(5), 5), (ArqRetry(defer=0.25), 0.25), (RetryJob(), 0)]
)
def test_arqs_own_ways_to_ask_for_another_attempt_are_understood(error: Exception, delay_s: float) -> None:
    outcome = after(error, retry=Retry(on=ValueError))
    assert isinstance(outcome, Retried)
    assert outcome.delay_s == delay_s
    assert reason_of(after(error, claim=claimed(3))) == "exhausted"


def test_a_subclass_of_arqs_retry_is_understood_too() -> None:
    class Later(ArqRetry):
        pass

    outcome = after(Later(60))
    assert isinstance(outcome, Retried)
    assert outcome.delay_s == 60


# Snoozing.


def test_a_snoozed_job_comes_back_when_it_asked_to() -> None:
    assert after(Snooze("10m")) == Snoozed(600)
    assert after(Snooze("10m"), claim=claimed(99)) == Snoozed(600)


@pytest.mark.parametrize(("since_h", "gives_up"), [(1, False), (6, False), (6.001, True)])
def test_a_job_that_has_snoozed_for_too_long_is_dead(since_h: float, gives_up: bool) -> None:
    history = History(snoozed_since_ms=NOW_MS - round(since_h * HOUR_MS))
    outcome = after(Snooze("10m", give_up_after="6h"), claim=claimed(history=history))
    assert reason_of(outcome) == "gave-up" if gives_up else outcome == Snoozed(600)
    assert after(Snooze("10m"), claim=claimed(history=history)) == Snoozed(600)


def test_the_first_snooze_never_gives_up() -> None:
    assert after(Snooze("1h", give_up_after="1m")) == Snoozed(3600)


def test_the_time_of_the_first_snooze_is_remembered() -> None:
    first = remember(claimed(), Snoozed(600), NOW_MS)
    assert first.snoozed_since_ms == NOW_MS
    assert remember(claimed(history=first), Snoozed(600), NOW_MS + HOUR_MS).snoozed_since_ms == NOW_MS


# What is kept.


@pytest.mark.parametrize(
    ("outcome", "starts", "is_end", "is_failure"),
    [
        (Done(1), 4, True, False),
        (Dead("permanent", A_FAILURE), 4, True, True),
        (Cancelled(), 4, True, True),
        (Retried(1, A_FAILURE), 5, False, False),
        (Snoozed(1), 4, False, False),
        (Released("shutdown"), 4, False, False),
        (Released("unknown-handler", 1), 4, False, False),
    ],
)
def test_only_a_failure_uses_an_attempt(outcome: Outcome, starts: int, is_end: bool, is_failure: bool) -> None:
    assert ended(outcome) is is_end
    assert failed(outcome) is is_failure
    if not is_end:
        assert attempt_after(claimed(5), outcome) == starts


def test_failures_are_remembered_the_last_ten() -> None:
    history = NEW
    for attempt in range(1, ERRORS_KEPT + 3):
        history = remember(claimed(attempt, history=history), Retried(1, A_FAILURE), NOW_MS + attempt)
    assert len(history.errors) == ERRORS_KEPT
    assert history.errors[-1] == ErrorRecord(12, NOW_MS + 12, "ValueError", "no", "transient")
    assert [record.attempt for record in history.errors] == list(range(3, 13))
    letter = remember(claimed(13, history=history), Dead("exhausted", A_FAILURE), NOW_MS)
    assert letter.errors[-1].attempt == 13


@pytest.mark.parametrize("outcome", [Done(1), Cancelled(), Released("shutdown")])
def test_an_end_that_is_no_failure_changes_no_memory(outcome: Outcome) -> None:
    history = History(2, (), NOW_MS)
    assert remember(claimed(history=history), outcome, NOW_MS) is history


# Categories.


class OfHttp(Exception):
    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code

    def __repr__(self) -> str:
        return f"Answer({self.status_code})"


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (Transient(), "transient"),
        (Permanent(), "permanent"),
        (ResourceExhausted(), "resource"),
        (Invalid(), "validation"),
        (MemoryError(), "resource"),
        (ValueError(), "transient"),
        (TimeoutError(), "transient"),
        (OfHttp(status=404), "permanent"),
        (OfHttp(status_code=401), "permanent"),
        (OfHttp(response=Answer(422)), "permanent"),
        (OfHttp(status=500), "transient"),
        (OfHttp(status=302), "transient"),
        (OfHttp(status="404"), "transient"),
        (OfHttp(response=None), "transient"),
        *[(OfHttp(status=status), "transient") for status in (408, 409, 425, 429)],
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}{vars(value) or ''}",
)
def test_the_kind_of_a_failure_is_said_or_read_from_an_http_status(error: BaseException, category: str) -> None:
    assert categorise(error) == category
    assert describe(error).category == category


# What is told of an exception.


def test_builtin_exceptions_go_by_their_short_name() -> None:
    assert describe(ValueError("no")) == Failure("ValueError", "no", "transient", builtin=True)
    assert describe(OfHttp()) == Failure(f"{__name__}.OfHttp", "", "transient", builtin=False)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, RecursionError])
def test_an_exception_whose_text_cannot_be_read_is_told_nevertheless(raised: type[BaseException]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise raised

    assert describe(Mute()).text == "(its text cannot be read)"


def test_an_exception_whose_text_is_no_text_is_told_nevertheless() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            return 42  # type: ignore[return-value]

    assert describe(Odd()).text == "(its text cannot be read)"


@pytest.mark.parametrize("raised", [ValueError, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("name", ["response", "status", "status_code"])
def test_an_exception_whose_status_cannot_be_read_is_told_nevertheless(name: str, raised: type[BaseException]) -> None:

    def fail(self: object) -> int:
        raise raised

    kind = type("Shy", (Exception,), {name: property(fail)})
    assert describe(kind("x")).category == "transient"


def test_a_text_that_no_encoding_takes_is_escaped() -> None:
    text = describe(ValueError("a\ud800b\x00")).text
    assert text == "a\\ud800b\x00"
    text.encode()


def test_a_text_of_ten_megabytes_is_cut() -> None:
    failure = describe(ValueError("x" * 10_000_000))
    assert len(failure.text) < 10 * TEXT_LIMIT
    kept = redacted(Dead("permanent", failure), BY_SHAPE)
    assert isinstance(kept, Dead)
    assert kept.failure.text == "x" * (TEXT_LIMIT - 1) + "…"


def test_a_secret_at_the_cut_of_a_text_does_not_keep_its_first_half() -> None:
    failure = describe(ValueError("." * (TEXT_LIMIT - 5) + "canary-of-a-key"))
    kept = redacted(Retried(1.0, failure), Redactor(["canary-of-a-key"]))
    assert isinstance(kept, Retried)
    assert "cana" not in kept.failure.text


@pytest.mark.parametrize("text", ["fine", "it was canary-of-a-key", "x" * 3000])
def test_an_exception_that_tells_a_secret_is_not_kept_itself(text: str) -> None:
    error = ValueError(text)
    dead = after(Final(error))
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.failure.raised) == ("permanent", error)
    kept = redacted(dead, Redactor(["canary-of-a-key"]))
    assert isinstance(kept, Dead)
    assert (kept.failure.raised is None) == ("canary" in text)


def test_that_a_job_was_cancelled_is_kept_for_a_minute_at_least() -> None:
    assert [kept_s(Cancelled(), kept) for kept in (0, 3600)] == [CANCELLED_S, 3600]
    assert kept_s(Done(None), 0) == 0


@given(st.text(st.characters(), max_size=50))
def test_every_text_can_be_written(text: str) -> None:
    describe(ValueError(text)).text.encode()


class _Anything(Exception):
    pass


@given(
    st.sampled_from([ValueError(), RetryLater(1), Snooze(1, give_up_after=5), Permanent(), ArqRetry(1), _Anything()]),
    st.integers(1, 50),
    st.integers(0, 5),
    st.integers(1, 10),
    st.floats(0, 1, exclude_max=True),
)
def test_every_failed_run_has_an_outcome_and_none_is_tried_beyond_its_attempts(
    error: BaseException, attempt: int, crashes: int, attempts: int, chance: float
) -> None:
    claim = claimed(attempt, history=History(crashes=min(crashes, attempt - 1)))
    outcome = after_error(error, claim, Retry(attempts), NOW_MS, chance)
    assert isinstance(outcome, Retried | Snoozed | Dead)
    if isinstance(outcome, Retried):
        assert attempt - claim.history.crashes < attempts
        assert outcome.delay_s >= 0
