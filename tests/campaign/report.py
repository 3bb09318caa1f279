"""What came of a campaign: a line for each run, and a document with both subjects beside each other."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from redis import Redis

from tests.campaign.invariants import INVARIANTS
from tests.campaign.outcome import Outcome
from tests.campaign.registry import SCENARIOS
from tests.campaign.scenario import Broken, Held, NoSuchThing, NotRun, Scenario, Verdict
from tests.campaign.subjects import SUBJECTS, SubjectName
from tests.servers import Server

SHOWN = 3
"""So many broken promises of a run are told; the others are counted."""
INTRODUCTION = """\
# When things go wrong

Workers are killed, stopped, told to stop at every moment that is easy to get wrong; Redis is killed, paused, filled up
and cut off; handlers and inputs do their worst. The same is done to stock arq at its defaults, with the same handlers.
What happened is read from a ledger outside Redis, in which every handler notes that it begins and ends, and is judged
by a pure function. `make campaign` does it again and writes this page; `python -m tests.campaign --help` says what else
it can. A scenario that this machine cannot run is listed as not run, never as held.
"""


def line(outcome: Outcome) -> str:
    """For the terminal."""
    case = outcome.case
    return f"{case.scenario:16} {case.subject:8} seed {case.seed} {outcome.took_s:6.1f} s  {_told(outcome.verdict)}"


def _told(verdict: Verdict) -> str:
    match verdict:
        case Held(figures):
            return f"held. {_figures([figures])}".strip()
        case Broken(_, figures):
            return f"BROKEN. {_breaches([verdict])} {_figures([figures])}".strip()
        case NotRun(why):
            return f"not run: {why}"
        case NoSuchThing(why):
            return f"no such thing: {why}"


def write(path: Path, outcomes: Sequence[Outcome], *, full: bool, took_s: float) -> None:
    """As Markdown, and as JSON in a file beside it."""
    run = configuration(full=full, took_s=took_s)
    path.write_text("\n".join(markdown(run, outcomes)) + "\n")
    path.with_suffix(".json").write_text(json.dumps({"run": run, "outcomes": list(map(_plain, outcomes))}, indent=1))


def configuration(*, full: bool, took_s: float) -> dict[str, str]:
    with Server() as server, Redis.from_url(server.url) as probe:
        info: Any = probe.info("server")
    python = [f"Python {platform.python_version()}", f"redis-py {metadata.version('redis')}"]
    subjects = [subject.version() for subject in SUBJECTS.values()]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": ", ".join([*subjects, *python]),
        "server": f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}, "
        "one for each run, without persistence unless it says so",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "extent": f"{'full' if full else 'quick'}, {took_s / 60:.0f} minutes",
        "arq": "job_timeout 300 s, poll_delay 0.5 s, max_tries 5, as its defaults are; results are kept",
    }


def markdown(run: dict[str, str], outcomes: Sequence[Outcome]) -> Iterator[str]:
    done = [scenario for scenario in SCENARIOS if any(one.case.scenario == scenario.id for one in outcomes)]
    yield INTRODUCTION
    yield from (f"- {name}: {value}" for name, value in run.items())
    yield "\n| | What is done | runtime | arq |\n|---|---|---|---|"
    for scenario in done:
        cells = [_cell(verdicts(outcomes, scenario, name)) for name in SUBJECTS]
        first = scenario.does.split(". ")[0].rstrip(".")
        yield f"| [{scenario.id}](#{anchor(scenario)}) | {first} | {' | '.join(cells)} |"
    yield "\n## What must hold\n"
    yield from (f"- **{name}** {text}" for name, text in INVARIANTS.items())
    for scenario in done:
        yield f"\n## {scenario.id}\n\n{scenario.does}\n\n*Must hold* ({', '.join(scenario.judges)}): {scenario.holds}\n"
        for name in SUBJECTS:
            if found := verdicts(outcomes, scenario, name):
                yield f"- **{name}**: {_story(found)}"


def anchor(scenario: Scenario) -> str:
    """As GitHub makes it of a heading."""
    return scenario.id.lower().replace(".", "")


def verdicts(outcomes: Iterable[Outcome], scenario: Scenario, subject: SubjectName) -> list[Verdict]:
    """Of all seeds."""
    return [one.verdict for one in outcomes if (one.case.scenario, one.case.subject) == (scenario.id, subject)]


def _cell(found: Sequence[Verdict]) -> str:
    if not found:
        return "–"
    if isinstance(found[0], NotRun | NoSuchThing):
        return "not run" if isinstance(found[0], NotRun) else "no such thing"
    broken = [invariant for one in found if isinstance(one, Broken) for invariant in _invariants(one)]
    return f"broken: {', '.join(dict.fromkeys(broken))}" if broken else "held"


def _invariants(verdict: Broken) -> list[str]:
    return list(dict.fromkeys(breach.invariant for breach in verdict.breaches))


def _story(found: Sequence[Verdict]) -> str:
    if isinstance(found[0], NotRun | NoSuchThing):
        return f"{_told(found[0])}."
    broken = [one for one in found if isinstance(one, Broken)]
    seeds = f" ({len(found)} seeds)" if len(found) > 1 else ""
    verdict = f"broken{seeds}. {_breaches(broken)}" if broken else f"held{seeds}."
    return f"{verdict} {_figures([one.figures for one in found if isinstance(one, Held | Broken)])}".strip()


def _breaches(broken: Sequence[Broken]) -> str:
    all_of_them = [breach for one in broken for breach in one.breaches]
    counts = Counter(breach.invariant for breach in all_of_them)
    first = {breach.invariant: breach.sentence for breach in reversed(all_of_them)}
    shown = [
        f"{name}: {first[name]}" + (f" (and {count - 1} more)" if count > 1 else "")
        for name, count in list(counts.items())[:SHOWN]
    ]
    return "; ".join(shown) + "."


def _figures(several: Sequence[Any]) -> str:
    """By name; the least and the most where there are several runs."""
    names = dict.fromkeys(name for figures in several for name in figures)
    return ", ".join(
        f"{name.replace('_', ' ')}: {_range([one[name] for one in several if name in one])}" for name in names
    )


def _range(values: Sequence[float | str]) -> str:
    shown = [f"{value:,.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value) for value in values]
    if len(set(shown)) == 1:
        return shown[0]
    if any(isinstance(value, str) for value in values):
        return " / ".join(shown)
    numbers = sorted(zip(values, shown, strict=True), key=lambda pair: float(pair[0]))
    return f"{numbers[0][1]} to {numbers[-1][1]}"


def _plain(outcome: Outcome) -> dict[str, Any]:
    case, verdict = outcome.case, outcome.verdict
    plain: dict[str, Any] = {"scenario": case.scenario, "subject": case.subject, "seed": case.seed}
    plain["verdict"] = {Held: "held", Broken: "broken", NotRun: "not run", NoSuchThing: "no such thing"}[type(verdict)]
    plain["took_s"] = round(outcome.took_s, 2)
    match verdict:
        case NotRun(why) | NoSuchThing(why):
            plain["why"] = why
        case Held(figures):
            plain["figures"] = dict(figures)
        case Broken(breaches, figures):
            plain["figures"] = dict(figures)
            plain["broken"] = [str(breach) for breach in breaches]
    return plain
