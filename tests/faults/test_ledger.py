"""The judge is tried with forged ledgers: what it would let pass in them, it would let pass in a campaign."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.ledger import SETTLE_S, Found, Ledger, Letter, Line, Terms, effective_kills, judge, recoveries

A, B = 11, 22
TERMS = Terms(reclaim_s=12, slots=2)

AGAIN = Line("start", "again", B, 7.0, attempt=2, crashes=1)
# One job that was done at once, one that was done after its worker was killed, one that died three times.
TRUE_LINES = [
    Line("acked", "plain"),
    Line("acked", "again"),
    Line("acked", "pill"),
    Line("start", "plain", A, 1.0, attempt=1),
    Line("end", "plain", A, 1.5),
    Line("start", "again", A, 4.0, attempt=1),
    Line("start", "pill", A, 4.1, attempt=1),
    Line("killed", "", A, 5.0),
    AGAIN,
    Line("end", "again", B, 7.5),
    Line("start", "pill", B, 7.1, attempt=2, crashes=1),
    Line("killed", "", B, 10.0),
    Line("start", "pill", 33, 22.0, attempt=3, crashes=2),
    Line("killed", "", 33, 23.0),
]
TRUE_FOUND = Found(
    results={"plain": True, "again": True, "pill": False},
    letters={"pill": Letter("crashed", 3)},
    completed=2,
    failed=1,
    told_completed={"plain": 1, "again": 1},
    told_started={"plain": 1, "again": 2, "pill": 3},
)


def test_a_true_ledger_breaks_no_promise() -> None:
    assert judge(TRUE_LINES, TRUE_FOUND, TERMS) == []
    assert effective_kills(TRUE_LINES) == 3
    assert sorted(round(took, 3) for took in recoveries(TRUE_LINES)) == [2.0, 2.1]


def test_a_run_whose_settlement_the_kill_may_have_cut_short_may_be_repeated() -> None:
    lines = [
        *TRUE_LINES,
        Line("acked", "late"),
        Line("start", "late", A, 4.5, attempt=1),
        Line("end", "late", A, 4.999),
        Line("start", "late", B, 7.0, attempt=2),
        Line("end", "late", B, 8.0),
    ]
    found = replace(
        TRUE_FOUND,
        results={**TRUE_FOUND.results, "late": True},
        completed=3,
        told_completed={"plain": 1, "again": 1, "late": 2},
    )
    assert judge(lines, found) == []


def test_a_run_that_began_while_its_killer_took_aim_was_killed() -> None:
    late = Line("start", "again", A, 5.001, attempt=1)
    lines = [late if line == Line("start", "again", A, 4.0, attempt=1) else line for line in TRUE_LINES]
    assert judge(lines, TRUE_FOUND) == []


def test_who_was_told_to_stop_before_he_was_killed_need_not_have_crashed() -> None:
    lines = [replace(line, attempt=1) for line in TRUE_LINES]
    told = [Line("told", "", pid, 0.5) for pid in {line.pid for line in lines if line.what == "killed"}]
    assert judge(lines, TRUE_FOUND) != []
    assert judge([*told, *lines], TRUE_FOUND) == []


def drained(*, attempt: int) -> list[Line]:
    """A job that one worker gave back as it stopped, and another one did."""
    return [
        Line("acked", "drained"),
        Line("start", "drained", A, 1.0, attempt=1),
        Line("cancelled", "drained", A, 1.2, attempt=1),
        Line("start", "drained", B, 1.3, attempt=attempt),
        Line("end", "drained", B, 1.4, attempt=attempt),
    ]


def test_a_job_that_was_given_back_may_run_again_at_the_cost_of_no_attempt() -> None:
    found = replace(TRUE_FOUND, results={**TRUE_FOUND.results, "drained": True}, completed=3)
    assert judge([*TRUE_LINES, *drained(attempt=1)], found, TERMS) == []


def test_who_was_away_for_longer_than_a_lease_explains_a_second_run() -> None:
    away = [
        Line("acked", "away"),
        Line("start", "away", A, 1.0),
        Line("lapsed", "", A, 1.5),
        Line("start", "away", B, 4.0, crashes=1, attempt=2),
        Line("end", "away", B, 5.0),
        Line("end", "away", A, 6.0),
    ]
    found = Found(
        results={"away": True}, values={"away": B}, completed=1, told_completed={"away": 2}, refused={"away": 1}
    )
    assert judge(away, found, TERMS) == []
    assert [breach.invariant for breach in judge(away, replace(found, refused={}), TERMS)] == ["I2"]
    assert [breach.invariant for breach in judge(away, replace(found, values={"away": A}), TERMS)] == ["I4"]


@pytest.mark.parametrize(
    ("lines", "found", "broken"),  # each as it is told, with the invariant's number
    [
        (
            [*TRUE_LINES, Line("acked", "gone")],
            TRUE_FOUND,
            "I1: gone: lost",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, results={"plain": True, "pill": False}, completed=1),
            "I1: again: lost",
        ),
        (
            [line for line in TRUE_LINES if line.pid != 33 and line != Line("killed", "", B, 10.0)],
            replace(TRUE_FOUND, told_started={}),
            "I10: pill: a dead letter of 3 crashes, 1 seen",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, letters={"pill": Letter("crashed", 2)}),
            "I10: pill: a dead letter of 2 crashes",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, letters={"pill": Letter("exhausted", 3)}),
            "I1: pill: a dead letter (exhausted)",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, results={**TRUE_FOUND.results, "pill": True}, completed=3),
            "I1: pill: done and a dead letter",
        ),
        (
            [line for line in TRUE_LINES if line.what != "end" or line.job != "again"],
            TRUE_FOUND,
            "I1: again: has a result, and no run of it ended",
        ),
        (
            [line for line in TRUE_LINES if line != Line("acked", "plain")],
            TRUE_FOUND,
            "I1: plain: was never enqueued",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, completed=3),
            "I2: 3 settlements accepted",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, failed=2),
            "2 as failed",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, told_completed={"plain": 2}),
            "I2: plain: completed 2 times, 0 of them refused",
        ),
        (
            [*TRUE_LINES, Line("start", "plain", B, 6.0), Line("end", "plain", B, 6.5)],
            TRUE_FOUND,
            "I3: plain: 2 executions, 0 reasons",
        ),
        (
            [*TRUE_LINES, Line("start", "plain", B, 6.0 + SETTLE_S), Line("end", "plain", B, 7.0 + SETTLE_S)],
            TRUE_FOUND,
            "I3: plain: 2 executions, 0 reasons",
        ),
        (
            [line if line != AGAIN else Line("start", "again", B, 4.9, attempt=2) for line in TRUE_LINES],
            TRUE_FOUND,
            "I3: again: ran twice at once",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, left=["arq:in-progress:plain"]),
            "I7: left behind: arq:in-progress:plain",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, values={"again": A}),
            f"I4: again: the result is an earlier run's, of process {A}",
        ),
        (
            [replace(AGAIN, at=20.5) if line == AGAIN else line for line in TRUE_LINES],
            TRUE_FOUND,
            "I5: again: again 15.5 s after its worker's death, allowed are 12 s",
        ),
        (
            [line for line in TRUE_LINES if (line.job, line.pid) != ("again", B)],
            replace(TRUE_FOUND, results={"plain": True, "pill": False}, completed=1, waiting={"again"}, at=30.0),
            "I5: again: not again 25.0 s after its worker's death",
        ),
        (
            [*TRUE_LINES, Line("acked", "claimed")],
            replace(TRUE_FOUND, waiting={"claimed"}, at=36.0),
            "I5: claimed: still queued 13.0 s after the last death of a worker",
        ),
        (
            [*TRUE_LINES, Line("acked", "third"), Line("start", "third", A, 4.2)],
            TRUE_FOUND,
            f"I6: process {A} ran 3 jobs at once, it has 2 slots",
        ),
        (
            [replace(line, attempt=1) for line in TRUE_LINES],
            TRUE_FOUND,
            "I10: again: killed, and its next run was told attempt 1 again",
        ),
        (
            [*TRUE_LINES, *drained(attempt=2)],
            replace(TRUE_FOUND, results={**TRUE_FOUND.results, "drained": True}, completed=3),
            "I10: drained: cancelled, and its next run was told attempt 2",
        ),
    ],
)
def test_a_forged_ledger_is_found_out(lines: list[Line], found: Found, broken: str) -> None:
    assert any(broken in str(breach) for breach in judge(lines, found, TERMS))


def test_a_job_that_is_to_fail_is_a_letter_for_its_own_reason_and_no_other() -> None:
    terms = replace(TERMS, letters={"pill": "stuck"})
    stuck = replace(TRUE_FOUND, letters={"pill": Letter("stuck", 0)})
    assert judge(TRUE_LINES, stuck, terms) == []
    assert [str(breach) for breach in judge(TRUE_LINES, TRUE_FOUND, terms)] == [
        "I1: pill: a dead letter (crashed) although it should be one (stuck)"
    ]


def test_a_ledger_reads_back_what_was_noted(ledger: Ledger) -> None:
    assert ledger.lines() == []
    ledger.note("acked", "one")
    ledger.note("start", "one", pid=7, attempt=2, crashes=1)
    (acked, start) = ledger.lines()
    assert (acked.what, acked.job) == ("acked", "one")
    assert (start.pid, start.attempt, start.crashes) == (7, 2, 1)
    assert start.at >= acked.at > 0
    assert ledger.running(7) == {"one"}
    ledger.note("end", "one", pid=7)
    assert ledger.running(7) == set()
