"""Find what is wrong with settings, Redis, handlers and platform, and say how to mend it. It changes nothing.

✓ as it should be   ! works, and may bite   ✗ does not work, or loses jobs   – could not be looked at from here

It imports the handler modules, as serve does, and looks at everything even if one thing is broken. Run it where the
worker runs (railway ssh), and where producers run: some of it can only be seen there.

Exit codes: 0 nothing failed (there may be warnings), 1 something did.
--json prints one document. Its first key is "schema": "runtime.doctor/1"; keys are only ever added.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from runtime.cli.display import say, say_json
from runtime.core.text import plain

if TYPE_CHECKING:
    from runtime.core.findings import Finding, Verdict
    from runtime.examination import Examination

SCHEMA = "runtime.doctor/1"
MARKS: "dict[Verdict, str]" = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}
TITLES = {"redis": "Redis"}


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", nargs="*", help="handler modules or packages, as for serve")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from runtime.examination import examine

    with contextlib.redirect_stdout(sys.stderr):  # what a module prints is no part of the document
        examination = examine(args.module)
    if args.json:
        say_json(_document(examination))
    else:
        say(*_page(examination))
    return 1 if examination.counts["fail"] else 0


def _document(examination: "Examination") -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "counts": examination.counts,
        "took_s": examination.took_s,
        "sections": [
            {
                "group": section.group,
                "about": section.about,
                "findings": [
                    {"check": one.check, "verdict": one.verdict, "seen": one.seen, "why": one.why, "fix": one.fix}
                    for one in section.findings
                ],
            }
            for section in examination.sections
        ],
    }


def _page(examination: "Examination") -> Iterator[str]:
    for section in examination.sections:
        yield plain(f"{TITLES.get(section.group, section.group.capitalize())}  {section.about}").rstrip()
        for finding in section.findings:
            yield from _row(finding)
    counts = examination.counts
    skipped = f", {counts['skipped']} not looked at" if counts["skipped"] else ""
    yield (
        f"{counts['fail']} failed, {counts['warn']} warnings, {counts['pass']} passed{skipped} "
        f"in {examination.took_s:.1f} s"
    )


def _row(finding: "Finding") -> Iterator[str]:
    yield f"  {MARKS[finding.verdict]} {plain(finding.seen)}"
    if finding.verdict in ("warn", "fail"):
        if finding.why:
            yield f"      why: {plain(finding.why)}"
        if finding.fix:
            yield f"      fix: {plain(finding.fix)}"
