"""A stand-in for JUDIT's asynchronous queries: slow searches, answers that come bit by bit, one strict limit.

    python -m tests.standins.judit --port 8082 --pending 1 --processing 1.5

A search goes from pending over processing to completed. Nothing runs in between: what is true of a search is worked out
from its age whenever somebody asks. Lawsuits whose CNJ number begins with one of `SPECIAL` go another way.
"""

import argparse
import json
import math
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tests.standins.lawsuits import cnjs_of, cover, instances_of, is_cnj, iso, lawsuit
from tests.standins.limits import SlidingWindow
from tests.standins.program import Answer, Call, Fault, Refusal, StandIn, arguments, run

Outcome = Literal["completed", "application_error", "failed", "stuck"]
FOR_EVER_S = math.inf

SPECIAL: dict[str, Outcome | Literal["refused"]] = {
    "0000404": "application_error",
    "0000408": "stuck",
    "0000422": "refused",
    "0000500": "failed",
}
SEARCH_TYPES: dict[str, re.Pattern[str]] = {
    "lawsuit_cnj": re.compile(r".+"),  # looked at more closely by `is_cnj`
    "lawsuit_id": re.compile(r".+"),
    "cpf": re.compile(r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}"),
    "cnpj": re.compile(r"[\dA-Z]{2}\.?[\dA-Z]{3}\.?[\dA-Z]{3}/?[\dA-Z]{4}-?\d{2}"),
    "oab": re.compile(r"[A-Z]{2}\s?\d{1,7}[A-Z]?|\d{1,7}[A-Z]?\s?/?\s?[A-Z]{2}"),
    "name": re.compile(r"\S.{2,}"),
}
RESPONSE_TYPES = ("lawsuit", "lawsuits", "parties", "attachments", "step")
FILTERS = ("search_type", "search_key", "status")
PAGE_SIZE, LARGEST_PAGE = 20, 1000

ERRORS: dict[int, tuple[str, str]] = {
    # status: name, message
    400: ("HttpBadRequestError", "BAD_REQUEST"),
    401: ("USER_NOT_FOUND", "UNAUTHORIZED"),
    403: ("INSUFFICIENT_PERMISSIONS", "FORBIDDEN"),
    404: ("RESOURCE_NOT_FOUND", "NOT_FOUND"),
    405: ("HttpMethodNotAllowedError", "METHOD_NOT_ALLOWED"),
    409: ("HttpConflictError", "CONFLICT"),
    422: ("PROCESSING_ERROR", "UNPROCESSABLE_ENTITY"),
    429: ("HttpTooManyRequestsError", "TOO_MANY_REQUESTS"),
    500: ("HttpInternalServerError", "INTERNAL_SERVER_ERROR"),
    502: ("HttpBadGatewayError", "BAD_GATEWAY"),
    503: ("HttpServiceUnavailableError", "SERVICE_UNAVAILABLE"),
    504: ("TIMEOUT_ERROR", "GATEWAY_TIMEOUT"),
}


class JuditFault(Fault, kw_only=True, forbid_unknown_fields=True):
    """With an `outcome`: what becomes of the next search that is created, of any or of one `search_key`."""

    search_key: str | None = None
    outcome: Outcome | None = None

    def matches(self, call: Call) -> bool:
        if self.outcome is not None and call.route != "POST /requests":
            return False
        return Fault.matches(self, call) and self.search_key in (None, call.facts.get("search_key"))


@dataclass(frozen=True, slots=True)
class Search:
    """A request of JUDIT's: what was asked, when, and what is to become of it."""

    request_id: str
    origin_id: str
    user_id: str
    asked: dict[str, Any]
    with_attachments: bool
    outcome: Outcome
    message: str
    born: float
    created_at: datetime
    pending_s: float
    processing_s: float
    responses: int

    def status(self, now: float) -> str:
        if now < self.born + self.pending_s:
            return "pending"
        if now < self.born + self.pending_s + self.processing_s:
            return "processing"
        return "failed" if self.outcome == "failed" else "completed"

    def arrived(self, now: float) -> int:
        """How many responses there are by now: one after the other while processing, all of them in the end."""
        if self.responses == 0 or self.outcome == "failed":
            return 0
        age = now - self.born - self.pending_s
        if age < 0:
            return 0
        if age >= self.processing_s:
            return self.responses
        return math.floor(self.responses * age / self.processing_s)

    def arrival(self, index: int) -> datetime:
        processing = self.processing_s * (index + 1) / self.responses
        return self.created_at + timedelta(seconds=self.pending_s + processing)

    def record(self, now: float) -> dict[str, Any]:
        status = self.status(now)
        changed_s = {"pending": 0.0, "processing": self.pending_s}.get(status, self.pending_s + self.processing_s)
        return {
            "request_id": self.request_id,
            "search": self.asked,
            "with_attachments": self.with_attachments,
            "origin": "api",
            "origin_id": self.origin_id,
            "user_id": self.user_id,
            "status": status,
            "created_at": iso(self.created_at),
            "updated_at": iso(self.created_at + timedelta(seconds=changed_s)),
            "tags": {},
        }

    def response(self, index: int) -> dict[str, Any]:
        failed = self.outcome == "application_error"
        return {
            "request_id": self.request_id,
            "response_id": str(uuid.uuid5(uuid.UUID(self.request_id), str(index))),
            "origin": "api",
            "origin_id": self.origin_id,
            "response_type": "application_error" if failed else "lawsuit",
            "response_data": {"code": 2, "message": self.message} if failed else self._lawsuit(index),
            "user_id": self.user_id,
            "created_at": iso(self.arrival(index)),
            "tags": {"cached_response": False},
        }

    def _lawsuit(self, index: int) -> dict[str, Any]:
        key = self.asked["search_key"]
        if self.asked["search_type"] != "lawsuit_cnj":
            return cover(cnjs_of(key, self.responses)[index])
        instances = min(instances_of(key), self.responses)
        instance = index * instances // self.responses
        of_this_instance = [each for each in range(self.responses) if each * instances // self.responses == instance]
        return lawsuit(
            key,
            instance + 1,
            part=of_this_instance.index(index),
            parts=len(of_this_instance),
            attachments=self.with_attachments,
        )


class Judit(StandIn[JuditFault]):
    fault_type = JuditFault
    gateway_garbage = frozenset({True, "body", "content", "choices"})

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options.log)
        self._options = options
        self._user_id = str(uuid.uuid5(uuid.NAMESPACE_URL, options.key))
        self.forget()

    def routes(self) -> list[tuple[str, str, Callable[[Call], Answer]]]:
        return [
            ("POST", "/requests", self.create),
            ("GET", "/requests", self.list_searches),
            ("GET", "/requests/{request_id}", self.show_search),
            ("GET", "/responses", self.list_responses),
        ]

    def forget(self) -> None:
        self._window = SlidingWindow(self._options.limit, self._options.window)
        self._searches: dict[str, Search] = {}

    # --- the routes

    def create(self, call: Call) -> Answer:
        self._admit(call)
        given = read_create(call.body)
        asked = given["search"]
        call.facts |= {"search_type": asked["search_type"], "search_key": asked["search_key"]}
        special = SPECIAL.get(asked["search_key"][:7]) if asked["search_type"] == "lawsuit_cnj" else None
        fault = self._meet_fault(call)
        if special == "refused":
            raise refusal(422, "The lawsuit cannot be processed")
        outcome: Outcome = (fault.outcome if fault else None) or special or "completed"
        search = self._begin(call, given, outcome, (fault.message if fault else None) or "LAWSUIT_NOT_FOUND")
        self._searches[search.request_id] = search
        call.facts["request_id"] = search.request_id
        self.log.count("creates", asked["search_key"])
        latency = self._options.latency + self._options.create_latency
        return Answer(201, search.record(call.now), latency=latency)

    def list_searches(self, call: Call) -> Answer:
        self._admit(call)
        self._meet_fault(call)
        page, size = read_page(call.query)
        since, until = read_moment(call.query, "created_at_gte"), read_moment(call.query, "created_at_lte")
        found = []
        for search in self._searches.values():
            record = search.record(call.now)
            facts = {**search.asked, "status": record["status"]}
            fits = (call.query.get(name, facts[name]) == facts[name] for name in FILTERS)
            if since <= search.created_at <= until and all(fits):
                found.append(record)
        return self._answer(paged(page, size, len(found), found[(page - 1) * size : page * size]))

    def show_search(self, call: Call) -> Answer:
        self._admit(call)
        call.facts["request_id"] = call.ids["request_id"]
        self._meet_fault(call)
        return self._answer(self._search(call.ids["request_id"]).record(call.now))

    def list_responses(self, call: Call) -> Answer:
        self._admit(call)
        call.facts |= {"request_id": call.query.get("request_id"), "page": call.query.get("page", "1")}
        self._meet_fault(call)
        page, size = read_page(call.query)
        if "request_id" not in call.query:
            raise refusal(400, "request_id is required")
        search = self._search(call.query["request_id"])
        count = search.arrived(call.now)
        shown = range((page - 1) * size, min(page * size, count))
        envelope = paged(page, size, count, [search.response(index) for index in shown])
        return self._answer({"request_status": search.status(call.now), **envelope})

    # --- the steps of them

    def _admit(self, call: Call) -> None:
        if call.headers.get("api-key") != self._options.key:
            raise refusal(401, "The api-key is missing or invalid")
        call.known = True
        wait = self._window.hit(call.now)
        if wait:
            self.log.count("rate_limited", call.route)
            headers = {"Retry-After": str(math.ceil(wait))} if self._options.retry_after else {}
            text = f"Rate limit of {self._options.limit} requests in {self._options.window:g} s exceeded"
            raise refusal(429, text, headers=headers)

    def _meet_fault(self, call: Call) -> JuditFault | None:
        fault = self.meet_fault(call)
        if fault and fault.fails:
            raise failure(fault)
        return fault

    def _begin(self, call: Call, given: dict[str, Any], outcome: Outcome, message: str) -> Search:
        asked = given["search"]
        return Search(
            request_id=str(uuid.uuid4()),
            origin_id=str(uuid.uuid4()),
            user_id=self._user_id,
            asked={"search_params": {}, **asked},
            with_attachments=given.get("with_attachments", False),
            outcome=outcome,
            message=message,
            born=call.now,
            # JUDIT writes milliseconds; what it compares with is what it wrote.
            created_at=datetime.fromtimestamp(math.floor(call.wall_time * 1000) / 1000, UTC),
            pending_s=self._options.pending,
            processing_s=FOR_EVER_S if outcome == "stuck" else self._options.processing,
            responses=self._responses(asked, outcome),
        )

    def _responses(self, asked: dict[str, Any], outcome: Outcome) -> int:
        if outcome in ("application_error", "stuck", "failed"):
            return 1 if outcome == "application_error" else 0
        if self._options.responses:
            return int(self._options.responses)
        # A search by document brings more than one page of the default size, one by number an answer per instance.
        return instances_of(asked["search_key"]) if asked["search_type"] == "lawsuit_cnj" else 45

    def _search(self, request_id: str) -> Search:
        search = self._searches.get(request_id)
        if search is None:
            raise refusal(404, f"There is no request {request_id}", name="REQUEST_NOT_FOUND")
        return search

    def _answer(self, body: object) -> Answer:
        return Answer(200, body, latency=self._options.latency)

    # --- what every answer carries

    def headers(self, call: Call, answer: Answer) -> dict[str, str]:
        if not call.known:
            return {}
        remaining = self._window.remaining(call.now)
        return {"X-RateLimit-Limit": str(self._window.limit), "X-RateLimit-Remaining": str(remaining)}

    def error(self, status: int, route: str) -> Answer:
        return refusal(status, f"{route} cannot be answered").answer


def read_create(body: bytes) -> dict[str, Any]:
    """The body of a create; raises the 400 that lists everything wrong with it."""
    try:
        given = json.loads(body)
    except ValueError:
        raise refusal(400, "The body is not valid JSON") from None
    if not isinstance(given, dict) or not isinstance(given.get("search"), dict):
        raise refusal(400, "search is required and must be an object")
    wrong = list(_wrong_with(given["search"]))
    attachments = given.get("with_attachments", False)
    if not isinstance(attachments, bool):
        wrong.append("with_attachments must be a boolean")
    elif attachments and given["search"].get("search_type") != "lawsuit_cnj":
        wrong.append("with_attachments is for search_type lawsuit_cnj only")
    if not isinstance(given.get("callback_url", ""), str):
        wrong.append("callback_url must be a string")
    if wrong:
        raise refusal(400, *wrong)
    return given


def _wrong_with(search: dict[str, Any]) -> list[str]:
    wrong = []
    kind, key = search.get("search_type"), search.get("search_key")
    if kind not in SEARCH_TYPES:
        wrong.append(f"search.search_type must be one of {', '.join(SEARCH_TYPES)}")
    if not isinstance(key, str) or not key.strip():
        wrong.append("search.search_key is required and must be a string")
    elif kind == "lawsuit_cnj" and not is_cnj(key):
        wrong.append("CNJ is not valid")
    elif kind in SEARCH_TYPES and not SEARCH_TYPES[kind].fullmatch(key):
        wrong.append(f"{kind.upper()} is not valid")
    if search.get("response_type", "lawsuit") not in RESPONSE_TYPES:
        wrong.append(f"search.response_type must be one of {', '.join(RESPONSE_TYPES)}")
    if not isinstance(search.get("search_params", {}), dict):
        wrong.append("search.search_params must be an object")
    return wrong


def read_page(query: Any) -> tuple[int, int]:
    page, size = _whole(query, "page", 1), _whole(query, "page_size", PAGE_SIZE)
    if page < 1:
        raise refusal(400, "page must be at least 1")
    if not 1 <= size <= LARGEST_PAGE:
        raise refusal(400, f"page_size must be between 1 and {LARGEST_PAGE}")
    return page, size


def _whole(query: Any, name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise refusal(400, f"{name} must be an integer") from None


def read_moment(query: Any, name: str) -> datetime:
    """A date or a moment; a date as the later bound means the whole of its day."""
    given = query.get(name)
    if given is None:
        raise refusal(400, f"{name} is required")
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise refusal(400, f"{name} must be a date in ISO 8601") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole_day = len(given) <= len("2024-09-12") and name.endswith("_lte")
    return moment + timedelta(days=1, microseconds=-1) if whole_day else moment


def paged(page: int, size: int, all_count: int, data: list[dict[str, Any]]) -> dict[str, Any]:
    """The envelope; `page_count` is the number of items on this page, `all_pages_count` that of the pages."""
    return {
        "page": page,
        "page_count": len(data),
        "all_pages_count": math.ceil(all_count / size),
        "all_count": all_count,
        "page_data": data,
    }


def refusal(status: int, *data: str, name: str | None = None, headers: dict[str, str] | None = None) -> Refusal:
    usual_name, message = ERRORS.get(status, ("HttpError", "ERROR"))
    body = {"error": {"name": name or usual_name, "message": message, "data": list(data)}}
    return Refusal(Answer(status, body, headers or {}))


def failure(fault: JuditFault) -> Refusal:
    """The documented error for the status of a fault, or for its code if that is the name of one."""
    named = next((status for status, (name, _) in ERRORS.items() if name == fault.code), 500)
    headers = {} if fault.retry_after is None else {"Retry-After": str(math.ceil(fault.retry_after))}
    data = [fault.message] if fault.message else []
    return refusal(fault.status or named, *data, name=fault.code, headers=headers)


def main() -> None:
    parser = arguments("A stand-in for JUDIT's asynchronous queries.", key="judit-standin")
    parser.add_argument("--limit", type=int, default=180, help="requests in the window (default: %(default)s)")
    for flag, default, meaning in (
        ("--window", 60.0, "the sliding window"),
        ("--pending", 1.0, "how long a search is pending"),
        ("--processing", 1.5, "how long it is processing then"),
        ("--latency", 0.0, "of every good answer"),
        ("--create-latency", 0.0, "between recording a create and answering it"),
    ):
        parser.add_argument(flag, type=float, metavar="S", default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--responses", type=int, metavar="N", help="of each search (default: 2 or 3 by CNJ, else 45)")
    parser.add_argument(
        "--retry-after", action=argparse.BooleanOptionalAction, default=True, help="whether a 429 carries the header"
    )
    options = parser.parse_args()
    if options.limit < 1 or options.window <= 0:
        parser.error("--limit must be at least 1 and --window above 0")
    run(Judit(options), options)


if __name__ == "__main__":
    main()
