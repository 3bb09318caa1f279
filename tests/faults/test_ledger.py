"""The judge is tried with forged ledgers: what it would let pass in them, it would let pass in a campaign."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.ledger import SETTLE_S, Found, Ledger, Letter, Line, effective_kills, judge, recoveries

A, B = 11, 22

# One job that was done at once, one that was done after its worker was killed, one that died three times.
TRUE_LINES = [
    Line("acked", "plain"),
    Line("acked", "again"),
    Line("acked", "pill"),
    Line("start", "plain", A, 1.0),
    Line("end", "plain", A, 1.5),
    Line("start", "again", A, 4.0),
    Line("start", "pill", A, 4.1),
    Line("killed", "", A, 5.0),
    Line("start", "again", B, 7.0),
    Line("end", "again", B, 7.5),
    Line("start", "pill", B, 7.1),
    Line("killed", "", B, 10.0),
    Line("start", "pill", 33, 22.0),
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
    assert judge(TRUE_LINES, TRUE_FOUND) == []
    assert effective_kills(TRUE_LINES) == 3
    assert sorted(round(took, 3) for took in recoveries(TRUE_LINES)) == [2.0, 2.1, 12.0]


def test_a_run_whose_settlement_the_kill_may_have_cut_short_may_be_repeated() -> None:
    lines = [
        *TRUE_LINES,
        Line("acked", "late"),
        Line("start", "late", A, 4.5),
        Line("end", "late", A, 4.999),
        Line("start", "late", B, 7.0),
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
    late = Line("start", "again", A, 5.001)
    lines = [late if line == Line("start", "again", A, 4.0) else line for line in TRUE_LINES]
    assert judge(lines, TRUE_FOUND) == []


@pytest.mark.parametrize(
    ("lines", "found", "broken"),
    [
        (
            [*TRUE_LINES, Line("acked", "gone")],
            TRUE_FOUND,
            "gone: lost",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, results={"plain": True, "pill": False}, completed=1),
            "again: lost",
        ),
        (
            [line for line in TRUE_LINES if line.pid != 33 and line != Line("killed", "", B, 10.0)],
            replace(TRUE_FOUND, told_started={}),
            "pill: a dead letter of 3 crashes, 1 seen",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, letters={"pill": Letter("crashed", 2)}),
            "pill: a dead letter of 2 crashes",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, letters={"pill": Letter("exhausted", 3)}),
            "pill: a dead letter (exhausted)",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, results={**TRUE_FOUND.results, "pill": True}, completed=3),
            "pill: done and a dead letter",
        ),
        (
            [line for line in TRUE_LINES if line.what != "end" or line.job != "again"],
            TRUE_FOUND,
            "again: has a result, and no run of it ended",
        ),
        (
            [line for line in TRUE_LINES if line != Line("acked", "plain")],
            TRUE_FOUND,
            "plain: was never enqueued",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, completed=3),
            "3 settlements accepted",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, failed=2),
            "2 as failed",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, told_completed={"plain": 2}),
            "plain: completed 2 times, 0 of them refused",
        ),
        (
            [*TRUE_LINES, Line("start", "plain", B, 6.0), Line("end", "plain", B, 6.5)],
            TRUE_FOUND,
            "plain: 2 executions, 0 crashes",
        ),
        (
            [*TRUE_LINES, Line("start", "plain", B, 6.0 + SETTLE_S), Line("end", "plain", B, 7.0 + SETTLE_S)],
            TRUE_FOUND,
            "plain: 2 executions, 0 crashes",
        ),
        (
            [line if line != Line("start", "again", B, 7.0) else Line("start", "again", B, 4.9) for line in TRUE_LINES],
            TRUE_FOUND,
            "again: ran twice at once",
        ),
        (
            TRUE_LINES,
            replace(TRUE_FOUND, left=["arq:in-progress:plain"]),
            "left behind: arq:in-progress:plain",
        ),
    ],
)
def test_a_forged_ledger_is_found_out(lines: list[Line], found: Found, broken: str) -> None:
    assert any(broken in sentence for sentence in judge(lines, found))


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
