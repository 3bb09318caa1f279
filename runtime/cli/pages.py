"""What `runtime inspect` has found, as lines for people."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.cli.display import columns, roughly
from runtime.core.text import plain, presentable

Document = Mapping[str, Any]
LAST_SENT = 3
"""Of those in a worker that have sent anything, so many are shown."""


def settings_page(document: Document) -> list[str]:
    rows = [("SETTING", "VALUE", "SOURCE", " ")]
    rows += [
        (row["name"], row["value"], row["source"], "wrong" if row["wrong"] else " ") for row in document["settings"]
    ]
    notes = [f"wrong: {plain(text)}" for text in document["wrong"]]
    return columns(rows) + notes + [f"warning: {plain(text)}" for text in document["warnings"]]


def overview(document: Document) -> list[str]:
    live = [worker for worker in document["workers"] if worker["live"]]
    queues = document["queues"]

    def total(name: str) -> int:
        return sum(queue.get(name, 0) for queue in queues)

    slots = sum(worker["slots"] for worker in live)
    summary = (
        f"{document['redis']}  workers: {len(live)} live, {slots} slots  "
        f"jobs: {total('active')} active, {total('waiting')} waiting  dead letters: {total('dead')}"
    )
    limits = ["", *limits_page(document)] if document["limits"] or document["concurrency"] else []
    return [plain(summary), "", *queues_page(document), *limits, "", *workers_page(document)]


def queues_page(document: Document) -> list[str]:
    counts = ("waiting", "active", "deferred", "unknown", "dead", "completed", "failed")
    rows: list[Sequence[object]] = [("QUEUE", *(name.upper() for name in counts), "OLDEST", "WORKERS", " ")]
    for queue in document["queues"]:
        numbers = [queue.get(name) for name in counts]
        rows.append((queue["queue"], *numbers, roughly(queue.get("oldest_age_s")), queue["workers"], _note(queue)))
    return columns(rows)


def _note(queue: Document) -> str:
    """What is to be known of a queue beside its numbers."""
    if "trouble" in queue:
        return str(queue["trouble"])
    if queue["paused"]:
        return paused(queue["paused"])
    return "nobody serves it" if queue["waiting"] and not queue["workers"] else " "


def paused(pause: Document) -> str:
    """How a queue is paused, in words."""
    length = "until it is resumed" if pause["left_s"] is None else f"for {roughly(pause['left_s'])} more"
    return f"paused {length}" + (f": {pause['reason']}" if pause["reason"] else "")


def bodies_page(document: Document) -> list[str]:
    rows: list[Sequence[object]] = [("QUEUE", "READABLE", "REFUSED", "MISSING", " ")]
    reasons: list[Sequence[object]] = [("QUEUE", "JOBS", "REFUSED AS", "TYPES", "EXAMPLE")]
    for queue in document["bodies"]:
        numbers = [queue[name] for name in ("readable", "refused", "missing")]
        rows.append((queue["queue"], *numbers, queue.get("trouble") or " "))
        for why in queue["reasons"]:
            reasons.append((queue["queue"], why["jobs"], why["reason"], ", ".join(why["types"]), why["example"]))
    return [*columns(rows), *(["", *columns(reasons)] if len(reasons) > 1 else [])]


def workers_page(document: Document) -> list[str]:
    if not document["workers"]:
        return ["no worker has sent a heartbeat"]
    head = "WORKER LIVE STATE VERSION HOST PID UP BUSY DONE FAILED MEMORY BEAT QUEUES"
    rows: list[Sequence[object]] = [head.split()]
    for worker in document["workers"]:
        done = worker["statistics"]
        memory = worker["rss_bytes"]
        rows.append(
            (
                worker["worker_id"],
                "yes" if worker["live"] else "no",
                worker["state"],
                worker["version"][:12],
                worker["host"],
                worker["pid"],
                roughly(worker["up_s"]),
                f"{worker['running']}/{worker['slots']}",
                done.get("succeeded"),
                done.get("failed"),
                memory and f"{memory / 2**20:.0f} MB",
                f"{roughly(worker['age_s'])} ago",
                ", ".join(queue for group in worker["groups"] for queue in group["queues"]),
            )
        )
    pools = _pools(document["workers"])
    return columns(rows) + (["", *columns(pools)] if len(pools) > 1 else [])


def _pools(workers: Sequence[Document]) -> list[Sequence[object]]:
    """What live workers have of costly things."""
    counts = ("size", "in_use", "idle", "waiting", "opened", "recycled", "failed")
    rows: list[Sequence[object]] = [("POOL", "WORKER", *(name.upper().replace("_", " ") for name in counts))]
    for worker in workers:
        if worker["live"]:
            rows += [(pool["name"], worker["worker_id"], *(pool[name] for name in counts)) for pool in worker["pools"]]
    return rows


def jobs_page(document: Document) -> list[str]:
    rows: list[Sequence[object]] = [("QUEUE", "STATE", "ID", "HANDLER", "ATTEMPT", "WHEN", " ")]
    notes: list[str] = []
    for queue in document["queues"]:
        if "trouble" in queue:
            notes.append(plain(f"{queue['queue']}: {queue['trouble']}"))
        for job in queue["jobs"]:
            told = _held(job["held_by"]) or job["reason"] or " "
            told = f"{told} ({job['trouble']})" if job["trouble"] else told
            rows.append((queue["queue"], job["state"], job["id"], job["handler"], job["attempt"], _when(job), told))
    return (columns(rows) if len(rows) > 1 else ["no jobs"]) + notes


def _when(job: Mapping[str, Any]) -> str | None:
    if job["state"] == "dead":
        return str(job["died_at"])[:19]
    in_s = job["due_in_s"]
    if in_s is None:
        return None
    return f"in {roughly(in_s)}" if in_s > 0 else f"due {roughly(-in_s)} ago"


def _held(held: Mapping[str, Any] | None) -> str | None:
    if held is None:
        return None
    name = "a stock worker" if held["stock"] else held["worker_id"] or held["incarnation"]
    left = "for good" if held["left_s"] is None else f"{held['left_s']:.0f} s left"
    return f"held by {name}, {left}"


def job_page(document: Document) -> list[str]:
    job = document["job"]
    rows = [*_standing(job), *_kept(job), *_ending(job)]
    rows += [(name, json.dumps(presentable(job[name]))) for name in ("args", "kwargs", "value") if name in job]
    return [f"{name:<8}  {plain(str(value))}" for name, value in rows if value not in (None, "", False)]


Row = tuple[str, object]


def _standing(job: Mapping[str, Any]) -> list[Row]:
    """Which job it is, and where it stands."""
    return [
        ("job", job["id"]),
        ("state", job["state"]),
        ("queue", job["queue"]),
        ("handler", job["handler"]),
        ("attempt", f"{job['attempt']}, {job['crashes']} crashes"),
        ("priority", job["priority"]),
        ("enqueued", job["enqueued_at"]),
        ("due", job["state"] != "dead" and (_when(job) or "").removeprefix("due ")),
        ("lease", _held(job["held_by"])),
        ("reason", job["state"] != "dead" and job["reason"]),
        ("place", job["place"] and f"{job['place']:.17g}, {job['ahead']} before it"),
    ]


def _kept(job: Mapping[str, Any]) -> list[Row]:
    """What is kept with it."""
    return [
        ("body", f"{job['body_bytes']} bytes"),
        ("snoozed", job["snoozed_since"] and f"since {job['snoozed_since']}"),
        ("unknown", job["unknown_since"] and f"its handler, since {job['unknown_since']}"),
        ("steps", ", ".join(job["steps"])),
        ("unique", job["unique_left_s"] and f"for {roughly(job['unique_left_s'])} more"),
        ("abort", job["abort_asked_at"] and f"asked for at {job['abort_asked_at']}"),
    ]


def _ending(job: Mapping[str, Any]) -> list[Row]:
    """How it ended, and what went wrong on its way."""
    letter, result = job["letter"], job["result"]
    return [
        ("letter", letter and f"{letter['reason']} at {job['died_at']}: {letter['error']}: {letter['text']}"),
        ("result", result and _result(result)),
        ("trouble", "; ".join(job["trouble"])),
        *(
            ("error", f"attempt {error['attempt']} at {error['at']}: {error['error']}: {error['text']}")
            for error in job["errors"]
        ),
    ]


def _result(result: Mapping[str, Any]) -> str:
    how = "well" if result["ok"] else f"{result['error']}: {result['text']}"
    kept = "for good" if result["kept_s"] is None else f"for {roughly(result['kept_s'])}"
    return f"{how}; finished {result['finished_at']} after {roughly(result['took_s'])}, kept {kept}"


def sleep_page(document: Document) -> list[str]:
    if not document["workers"]:
        return ["no worker has sent a heartbeat"]
    rows: list[Sequence[object]] = [("WORKER", "STATE", "SAID", "SENT LAST", "NEXT DUE", "AWAKE BECAUSE")]
    for worker in document["workers"]:
        state = worker["state"] if worker["live"] or worker["state"] == "quiet" else "gone"
        sent = ", ".join(f"{sent['by']} {roughly(sent['age_s'])} ago" for sent in worker["sent"][:LAST_SENT])
        why = "; ".join(f"{held['why']} (for {roughly(held['for_s'])})" for held in worker["held"])
        said = f"{roughly(worker['age_s'])} ago"
        rows.append((worker["worker_id"], state, said, sent, worker["next_due_at"], why))
    return columns(rows)


def limits_page(document: Document) -> list[str]:
    rates = _rates(document) if document["limits"] else []
    permits = _concurrency(document["concurrency"])
    return rates + ([""] if rates and permits else []) + permits or ["no worker has told of a limit"]


def _rates(document: Document) -> list[str]:
    rows: list[Sequence[object]] = [("LIMIT", "LEVEL", "RATE", "WAITING", "429S", "LAST 429", " ")]
    for limit in document["limits"]:
        counts = limit["counts"]
        notes = "; ".join(str(note) for _, note in _standing_out(limit) if note)
        rows.append(
            (limit["limit"], _level(limit), limit["rate"], limit["waiting"], counts["met"], _second(counts["met_at"]),
             notes or " ")
        )  # fmt: skip
    broken = [breaker for breaker in document["breakers"] if breaker["state"] != "closed"]
    return columns(rows) + [_breaker(one) for one in broken]


def _concurrency(limits: Sequence[Document]) -> list[str]:
    rows: list[Sequence[object]] = [("CONCURRENCY", "HELD", "WAITING")]
    rows += [(limit["limit"], f"{limit['held']} / {limit['most']}", limit["waiting"]) for limit in limits]
    return columns(rows) if limits else []


def limit_page(document: Document) -> list[str]:
    """Everything about each limit, and about the breakers."""
    lines: list[str] = []
    for limit in document["limits"]:
        rows = [*_level_of(limit), *_standing_out(limit), *_use_of(limit["counts"])]
        lines += [f"{name:<8}  {plain(str(value))}" for name, value in rows if value] + [""]
    for limit in document["concurrency"]:
        lines += [*_concurrency([limit]), *(f"held by   {plain(job)}" for job in limit["jobs"])]
    return lines + [_breaker(breaker) for breaker in document["breakers"]]


def _level(limit: Document) -> str:
    return f"{math.floor(limit['tokens']):,} / {limit['burst']:,}"


def _level_of(limit: Document) -> list[Row]:
    next_s = limit["next_s"]
    return [
        ("limit", limit["limit"]),
        ("level", f"{_level(limit)} tokens; {f'the next in {roughly(next_s)}' if next_s else 'one can be had now'}"),
        ("rate", f"{limit['rate']}, burst {limit['burst']}"),
        ("waiting", limit["waiting"] and f"{limit['waiting']} takes, each for a moment of its own"),
    ]


def _standing_out(limit: Document) -> list[Row]:
    """What is not as usual."""
    declared, for_s = limit["declared"], limit["set_for_s"]
    until = "until it is reset" if for_s is None else f"for {roughly(for_s)} more"
    return [
        (
            "set",
            limit["set"] and f"set by an operator {until}; declared: {declared['rate']}, burst {declared['burst']}",
        ),
        ("closed", limit["closed_s"] and f"closed by the provider for {roughly(limit['closed_s'])}"),
    ]


def _use_of(counts: Mapping[str, Any]) -> list[Row]:
    """What has come of it, as workers say every half minute."""
    error, last = counts["estimate_error"], _second(counts["met_at"])
    return [
        ("taken", f"{counts['tokens']:,} tokens in {counts['takes']:,} takes"),
        ("used", error and f"{counts['used']:,} tokens; the estimates were off by {100 * error:.1f} %"),
        ("waited", counts["waits"] and f"{counts['waits']:,} takes, for {roughly(counts['waited_s'])} in all"),
        ("snoozed", counts["refused"] and f"{counts['refused']:,} takes would have had to wait for too long"),
        ("429s", counts["met"] and f"{counts['met']:,}, the last at {last}"),
    ]


def _breaker(its: Document) -> str:
    notes = [
        its["open_s"] and f"for {roughly(its['open_s'])}, then one call finds out whether the provider works",
        its["probing"] and "one call is finding out whether the provider works",
        its["reason"],
        its["failures"] and f"failures in a row: {its['failures']}",
        its["kept_back"] and f"calls kept back so far: {its['kept_back']:,}",
    ]
    return plain("; ".join([f"breaker {its['breaker']}: {its['state']}", *(str(note) for note in notes if note)]))


def _second(moment: str | None) -> str | None:
    return moment and moment[:19]


PAGES = {
    None: overview,
    "queues": queues_page,
    "jobs": jobs_page,
    "job": job_page,
    "workers": workers_page,
    "limits": limits_page,
    "sleep": sleep_page,
}
