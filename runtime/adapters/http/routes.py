"""The job API: enqueue, look, cancel, count; for producers in any language.

| | |
|---|---|
| `POST /jobs` | 202 and a new job's id; 200 where the key has a job already; 429 where its user has too many |
| `GET /jobs/{id}` | 200 and where it is; 404 |
| `DELETE /jobs/{id}` | 200 it will not run; 202 it runs, and is told to stop; 404; 409 it has ended |
| `GET /queues` | 200 and the counts of each queue |
| `POST /queues/{name}/pause` | 200 and its counts; `{"reason": …, "for": …}` if wanted; 404 |
| `POST /queues/{name}/resume` | 200 and its counts; 404 |
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, cast
from urllib.parse import unquote

from aiohttp import web

from runtime.adapters.http.answers import Refused, answer, of_problem
from runtime.adapters.http.connections import MOST_BODY, body_of
from runtime.adapters.http.gate import Gate
from runtime.adapters.http.jobs import Jobs, Order
from runtime.adapters.payload import from_json
from runtime.adapters.telemetry import traces
from runtime.core.errors import OptionInvalid, PayloadInvalid, RedisUnreachable
from runtime.core.request import Options

ANSWER_S = 10.0
"""The longest a request may take to serve; a Redis that is silent for longer is away."""
LONGEST_ID = 512

_ONE = r"/jobs/{id:[\s\S]+}"
Handler = Callable[[web.Request], Awaitable[web.Response]]


class JobApi:
    """The routes. They exist where a token is configured."""

    def __init__(self, jobs: Jobs, gate: Gate) -> None:
        self._jobs = jobs
        self._gate = gate

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/jobs", self._guarded(self._add))
        router.add_get(_ONE, self._guarded(self._show))
        router.add_delete(_ONE, self._guarded(self._cancel))
        router.add_get("/queues", self._guarded(self._count))
        router.add_post(r"/queues/{name:[\s\S]+}/pause", self._guarded(self._pause))
        router.add_post(r"/queues/{name:[\s\S]+}/resume", self._guarded(self._resume))

    def _guarded(self, serve: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.Response:
            await self._gate.admit(request)
            return await serve(request)

        return guarded

    async def _add(self, request: web.Request) -> web.Response:
        _no_parameters(request)
        order = _order(await _json_of(request), request.headers.getall("Idempotency-Key", []))
        with traces.continued(request.headers):
            receipt = await _in_time(self._jobs.add(order))
        return answer(
            {"jobId": receipt.job_id, "status": receipt.status, "created": receipt.created},
            202 if receipt.created else 200,
        )

    async def _show(self, request: web.Request) -> web.Response:
        found = await _in_time(self._jobs.show(_id(request), _queue(request)))
        return answer(found, 404 if found["status"] == "unknown" else 200)

    async def _cancel(self, request: web.Request) -> web.Response:
        job_id = _id(request)
        ending, status = await _in_time(self._jobs.cancel(job_id, _queue(request)))
        code = {"cancelled": 200, "asked": 202, "gone": 404 if status == "unknown" else 409}[ending]
        return answer({"jobId": job_id, "status": status}, code)

    async def _count(self, request: web.Request) -> web.Response:
        _no_parameters(request)
        return answer(await _in_time(self._jobs.count()))

    async def _pause(self, request: web.Request) -> web.Response:
        _no_parameters(request)
        document = await _json_of(request) if request.body_exists else {}
        if unknown := sorted(set(document) - {"reason", "for"}):
            raise Refused(400, "unknown-field", f"there is no field {unknown[0]}", "the fields are reason, for")
        reason = document.get("reason")
        pausing = self._jobs.pause(_name(request), "" if reason is None else reason, document.get("for"))
        return _of_queue(await _in_time(pausing))

    async def _resume(self, request: web.Request) -> web.Response:
        _no_parameters(request)
        return _of_queue(await _in_time(self._jobs.resume(_name(request))))


async def _in_time(asked: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await asked
    except TimeoutError:
        away = RedisUnreachable("cannot reach Redis", cause=f"no answer within {ANSWER_S:g} s")
        raise of_problem(away) from None


async def _json_of(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json" or request.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(415, "not-json", "a body is sent as JSON", "Content-Type: application/json")
    body = await body_of(request, MOST_BODY)
    try:
        return from_json(body, dict[str, Any])
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, "bad-body", f"the body is not a JSON object: {why}") from None


_SHAPE: Mapping[str, tuple[type, str]] = {
    "handler": (str, "a text"),
    "args": (list, "an array"),
    "kwargs": (dict, "an object"),
}
_OPTIONS = tuple(Options.__annotations__)


def _order(document: Mapping[str, Any], header_keys: Sequence[str]) -> Order:
    """What is asked for, in shape; its values are checked with the handler's signature. null is the same as absent."""
    given = {name: value for name, value in document.items() if value is not None}
    unknown = sorted(set(document) - {*_SHAPE, *_OPTIONS})
    if unknown:
        known = ", ".join([*_SHAPE, *_OPTIONS])
        raise Refused(400, "unknown-field", f"there is no field {', '.join(unknown)}", f"the fields are {known}")
    if "handler" not in given:
        raise Refused(400, "bad-body", "the field handler is missing", "it names the handler that is to run")
    for name, (kind, called) in _SHAPE.items():
        if name in given and not isinstance(given[name], kind):
            raise Refused(400, "bad-body", f"the field {name} must be {called}")
    options = {name: given[name] for name in _OPTIONS if name in given}
    keys = {*header_keys, *([options["key"]] if isinstance(options.get("key"), str) else [])}
    if len(keys) > 1:
        raise Refused(400, "two-keys", "the field key and the header Idempotency-Key differ", "give one of them")
    if header_keys and "key" not in options:
        options["key"] = header_keys[0]
    if "at" in options:
        options["at"] = _moment(options["at"])
    return Order(given["handler"], given.get("args", []), given.get("kwargs", {}), cast(Options, options))


def _moment(text: object) -> datetime:
    with suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(cast(str, text))
        if moment.tzinfo is not None:
            return moment
    raise OptionInvalid("at: it must be a moment in ISO 8601 with its time zone, such as 2027-01-31T09:30:00Z")


def _id(request: web.Request) -> str:
    """The id in the path."""
    job_id = _decoded(request.raw_path.partition("?")[0].removeprefix("/jobs/"))
    if not 1 <= len(job_id) <= LONGEST_ID:
        raise PayloadInvalid(f"an id has from 1 to {LONGEST_ID} characters")
    return job_id


def _name(request: web.Request) -> str:
    """The queue in the path, between `/queues/` and what is to be done with it."""
    return _decoded(request.raw_path.partition("?")[0].removeprefix("/queues/").rpartition("/")[0])


def _decoded(encoded: str) -> str:
    """A name in the path, decoded once: whatever it holds, slashes too."""
    try:
        return unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        raise PayloadInvalid("the id in the path is no Unicode") from None


def _of_queue(counts: Mapping[str, Any] | None) -> web.Response:
    if counts is None:
        raise Refused(404, "unknown-queue", "this worker serves no such queue", "GET /queues names those it serves")
    return answer(counts)


def _queue(request: web.Request) -> str | None:
    """The one parameter there is."""
    if set(request.query) - {"queue"} or len(request.query) > 1:
        raise Refused(400, "unknown-parameter", "the only parameter is queue")
    return request.query.get("queue") or None


def _no_parameters(request: web.Request) -> None:
    if request.query_string:
        raise Refused(400, "unknown-parameter", "there are no parameters here")
