"""Show queues, jobs, workers or settings; without a word, queues and workers on one page. It changes nothing.

  runtime inspect             queues and workers
  runtime inspect queues      jobs counted by state, how long the oldest waits, how many live workers serve the queue
  runtime inspect jobs        jobs of each state: when they are due, who holds them and for how long
  runtime inspect job ID      everything known of one job; its arguments and result only with --args
  runtime inspect workers     what each worker last said of itself (every 30 s; it is live for 2 minutes after)
  runtime inspect settings    every setting, its value and its source; exit 78 if one is wrong

--json prints one document. Its first key is "schema": "runtime.inspect/1"; keys are only ever added. Lengths of time
are seconds (`_s`), moments are ISO 8601 in UTC (`_at`).
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runtime import settings
from runtime.cli.display import columns, moment, roughly, say, say_json
from runtime.core.errors import HandlerInvalid, UsageInvalid
from runtime.core.spec import DEFAULT_QUEUE
from runtime.core.text import plain, presentable

SCHEMA = "runtime.inspect/1"
Document = dict[str, Any]


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("queues", "jobs", "job", "workers", "settings"), metavar="WHAT")
    parser.add_argument("id", nargs="?", help="the job's id, for `job`")
    parser.add_argument(
        "-Q", "--queue", action="append", default=[], metavar="NAME",
        help="look at this queue; repeatable [default: the queues of the handlers found and of live workers]",
    )  # fmt: skip
    parser.add_argument("-m", "--module", action="append", default=[], help="handler module, as for serve; repeatable")
    parser.add_argument("-n", "--limit", type=int, default=50, help="jobs of each state and queue [default: 50]")
    parser.add_argument("--args", action="store_true", help="with `job`: also its arguments and its result")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    if args.what == "job" and args.id is None:
        raise UsageInvalid("inspect job: name one by its id", hint="see ids with: runtime inspect jobs")
    if args.what != "job" and args.id is not None:
        raise UsageInvalid(f"inspect {args.what} takes no id", hint=f"runtime inspect job {args.id}")
    if args.args and args.what != "job":
        raise UsageInvalid("--args goes with one job", hint="runtime inspect job ID --args")
    if not 1 <= args.limit <= 1000:
        raise UsageInvalid(f"--limit {args.limit}: a whole number from 1 to 1000")
    if args.what == "settings":
        return _settings(as_document=args.json)
    # The store's side is imported for what asks the store.
    from runtime.cli.session import with_client

    named = args.queue or _of_handlers(args.module)
    look = _Look(named, ask_workers=not args.queue)
    document: Document = with_client(lambda client: look(client, args))
    if args.json:
        say_json({"schema": SCHEMA, **document})
    else:
        say(*_PAGES[args.what](document))
    return 1 if args.what == "job" and document["job"]["state"] == "unknown" else 0


def _of_handlers(modules: Sequence[str]) -> list[str]:
    """The queues of the handlers that are found; none is found where somebody else's are run."""
    from runtime import registry

    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints is no part of the document
            return sorted({handler.spec.queue for handler in registry.collect(modules).values()})
    except HandlerInvalid:
        if modules:
            raise
        return []


class _Look:
    """Asks the store. The queues are those named, and those of live workers if `ask_workers`."""

    def __init__(self, named: Sequence[str], *, ask_workers: bool) -> None:
        from runtime.adapters.redis import inspector
        from runtime.adapters.redis.connection import shown

        self._inspector = inspector
        self._shown = shown
        self._named = named
        self._ask_workers = ask_workers

    async def __call__(self, client: Any, args: argparse.Namespace) -> Document:
        async def use(redis: Any) -> Document:
            now_ms, self._beats = await self._inspector.workers(redis)
            self._live = [beat for beat in self._beats if beat.live(now_ms)]
            match args.what:
                case "queues":
                    return {"queues": await self._queues(redis)}
                case "jobs":
                    return {"limit": args.limit, "queues": await self._jobs(redis, args.limit, now_ms)}
                case "job":
                    return {"job": await self._job(redis, args.id, with_args=args.args)}
                case "workers":
                    return {"workers": self._workers(now_ms)}
            return {
                "redis": self._shown(client.url),
                "queues": await self._queues(redis),
                "workers": self._workers(now_ms),
            }

        document: Document = await client.ask(use)
        return document

    def _names(self) -> list[str]:
        names = {*self._named}
        if self._ask_workers:
            names.update(queue for beat in self._live for queue in beat.queues)
        return sorted(names) or [DEFAULT_QUEUE]

    async def _queues(self, redis: Any) -> list[Document]:
        found: list[Document] = []
        for queue in self._names():
            census = await self._inspector.census(redis, queue)
            serve = sum(queue in beat.queues for beat in self._live)
            if isinstance(census, self._inspector.Trouble):
                found.append({"queue": queue, "workers": serve, "trouble": census.text})
            else:
                found.append({"queue": queue, "workers": serve, **asdict(census)})
        return found

    def _workers(self, now_ms: int) -> list[Document]:
        return [
            {
                "worker_id": beat.worker_id,
                "incarnation": beat.incarnation,
                "live": beat.live(now_ms),
                "age_s": max(beat.age_s(now_ms), 0.0),
                "state": beat.state,
                "version": beat.version,
                "host": beat.host,
                "pid": beat.pid,
                "started_at": moment(beat.started_ms),
                "up_s": max(beat.at_ms - beat.started_ms, 0) / 1000,
                "groups": [{"queues": group.queues, "slots": group.slots} for group in beat.groups],
                "slots": beat.slots,
                "running": beat.running,
                "statistics": beat.statistics,
                "rss_bytes": beat.rss_bytes,
                "redis": beat.redis,
                "handlers": beat.handlers,
            }
            for beat in self._beats
        ]

    async def _jobs(self, redis: Any, limit: int, now_ms: int) -> list[Document]:
        found: list[Document] = []
        for queue in self._names():
            jobs = await self._inspector.jobs(redis, queue, limit)
            if isinstance(jobs, self._inspector.Trouble):
                found.append({"queue": queue, "jobs": [], "trouble": jobs.text})
            else:
                found.append({"queue": queue, "jobs": [self._listed(job, now_ms) for job in jobs]})
        return found

    def _listed(self, job: Any, now_ms: int) -> Document:
        return {
            "id": job.id,
            "state": job.state,
            "handler": job.handler,
            "attempt": job.attempt,
            "priority": job.priority,
            "enqueued_at": moment(job.enqueued_ms),
            "due_at": moment(job.due_ms),
            "due_in_s": None if job.due_ms is None else (job.due_ms - now_ms) / 1000,
            "held_by": self._holder(job.holder),
            "reason": job.reason,
            "died_at": moment(job.died_ms),
            "trouble": job.trouble,
        }

    def _holder(self, holder: Any) -> Document | None:
        if holder is None:
            return None
        names = [beat.worker_id for beat in self._beats if beat.incarnation == holder.incarnation]
        return {
            "stock": holder.incarnation is None,
            "worker_id": names[0] if names else None,
            "incarnation": holder.incarnation,
            "left_s": holder.left_s,
        }

    async def _job(self, redis: Any, job_id: str, *, with_args: bool) -> Document:
        sheet = await self._inspector.job(redis, job_id, self._names())
        letter, result = sheet.letter, sheet.result
        found = {
            **self._listed(sheet.job, sheet.now_ms),
            "queue": sheet.job.queue or None,
            "crashes": sheet.history.crashes,
            "errors": [{**asdict(error), "at": moment(error.at_ms)} for error in sheet.history.errors],
            "snoozed_since": moment(sheet.history.snoozed_since_ms),
            "unknown_since": moment(sheet.history.unknown_since_ms),
            "place": sheet.place,
            "ahead": sheet.ahead,
            "body_bytes": sheet.body_bytes,
            "steps": sheet.steps,
            "abort_asked_at": moment(sheet.abort_ms),
            "letter": None
            if letter is None
            else {"reason": letter.reason, "category": letter.category, "error": letter.error, "text": letter.text},
            "result": None
            if result is None
            else {
                "ok": result.ok,
                "error": result.error,
                "text": result.text,
                "started_at": moment(result.started_ms),
                "finished_at": moment(result.finished_ms),
                "took_s": (result.finished_ms - result.started_ms) / 1000,
                "kept_s": sheet.result_left_s,
            },
            "trouble": sheet.trouble,
        }
        if with_args:
            found["args"] = sheet.call.args if sheet.call else None
            found["kwargs"] = sheet.call.kwargs if sheet.call else None
            found["value"] = result.value if result else None
        return found


def _settings(*, as_document: bool) -> int:
    reading = settings.examine()
    rows = [
        {
            "name": found.name or found.setting.names[0],
            "names": found.setting.names,
            "value": found.shown(),
            "source": f"environment {found.name}" if found.name else "default",
            "wrong": found.wrong,
            "doc": found.setting.doc,
        }
        for found in reading.found
    ]
    document = {"schema": SCHEMA, "settings": rows, "wrong": reading.wrong, "warnings": reading.warnings}
    if as_document:
        say_json(document)
    else:
        say(*_settings_page(document))
    return 78 if reading.wrong else 0


# Pages: a document as lines for people.


def _settings_page(document: Document) -> list[str]:
    rows = [("SETTING", "VALUE", "SOURCE", " ")]
    rows += [
        (row["name"], row["value"], row["source"], "wrong" if row["wrong"] else " ") for row in document["settings"]
    ]
    notes = [f"wrong: {plain(text)}" for text in document["wrong"]]
    return columns(rows) + notes + [f"warning: {plain(text)}" for text in document["warnings"]]


def _overview(document: Document) -> list[str]:
    live = [worker for worker in document["workers"] if worker["live"]]
    queues = document["queues"]

    def total(name: str) -> int:
        return sum(queue.get(name, 0) for queue in queues)

    slots = sum(worker["slots"] for worker in live)
    summary = (
        f"{document['redis']}  workers: {len(live)} live, {slots} slots  "
        f"jobs: {total('active')} active, {total('waiting')} waiting  dead letters: {total('dead')}"
    )
    return [plain(summary), "", *_queues_page(document), "", *_workers_page(document)]


def _queues_page(document: Document) -> list[str]:
    counts = ("waiting", "active", "deferred", "unknown", "dead", "completed", "failed")
    rows: list[Sequence[object]] = [("QUEUE", *(name.upper() for name in counts), "OLDEST", "WORKERS", " ")]
    for queue in document["queues"]:
        numbers = [queue.get(name) for name in counts]
        note = queue.get("trouble") or ("nobody serves it" if queue["waiting"] and not queue["workers"] else " ")
        rows.append((queue["queue"], *numbers, roughly(queue.get("oldest_age_s")), queue["workers"], note))
    return columns(rows)


def _workers_page(document: Document) -> list[str]:
    if not document["workers"]:
        return ["no worker has sent a heartbeat"]
    rows: list[Sequence[object]] = [
        (
            "WORKER",
            "LIVE",
            "STATE",
            "VERSION",
            "HOST",
            "PID",
            "UP",
            "BUSY",
            "DONE",
            "FAILED",
            "MEMORY",
            "BEAT",
            "QUEUES",
        )
    ]
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
    return columns(rows)


def _jobs_page(document: Document) -> list[str]:
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


def _job_page(document: Document) -> list[str]:
    job = document["job"]
    result = job["result"]
    letter = job["letter"]
    rows: list[Sequence[object]] = [
        ("job", job["id"]),
        ("state", job["state"]),
        ("queue", job["queue"]),
        ("handler", job["handler"]),
        ("attempt", f"{job['attempt']}, {job['crashes']} crashes"),
        ("priority", job["priority"]),
        ("enqueued", job["enqueued_at"]),
        ("due", job["state"] != "dead" and (_when(job) or "").removeprefix("due ")),
        ("lease", _held(job["held_by"])),
        ("place", job["place"] and f"{job['place']:.17g}, {job['ahead']} before it"),
        ("body", f"{job['body_bytes']} bytes"),
        ("snoozed", job["snoozed_since"] and f"since {job['snoozed_since']}"),
        ("unknown", job["unknown_since"] and f"its handler, since {job['unknown_since']}"),
        ("steps", ", ".join(job["steps"])),
        ("abort", job["abort_asked_at"] and f"asked for at {job['abort_asked_at']}"),
        ("letter", letter and f"{letter['reason']} at {job['died_at']}: {letter['error']}: {letter['text']}"),
        ("result", result and _result(result)),
        ("trouble", "; ".join(job["trouble"])),
    ]
    for error in job["errors"]:
        rows.append(("error", f"attempt {error['attempt']} at {error['at']}: {error['error']}: {error['text']}"))
    rows += [(name, json.dumps(presentable(job[name]))) for name in ("args", "kwargs", "value") if name in job]
    return [f"{name:<8}  {plain(str(value))}" for name, value in rows if value not in (None, "", False)]


def _result(result: Mapping[str, Any]) -> str:
    how = "well" if result["ok"] else f"{result['error']}: {result['text']}"
    kept = "for good" if result["kept_s"] is None else f"for {roughly(result['kept_s'])}"
    return f"{how}; finished {result['finished_at']} after {roughly(result['took_s'])}, kept {kept}"


_PAGES = {
    None: _overview,
    "queues": _queues_page,
    "jobs": _jobs_page,
    "job": _job_page,
    "workers": _workers_page,
}

__all__ = ["declare", "run"]
