"""The JUDIT stand-in over real sockets: slow searches, answers that grow, its sliding window and its errors."""

import asyncio
import json
import time
import urllib.error
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.standins.lawsuits import is_cnj, lawsuit, make_cnj
from tests.standins.process import Running, running

KEY = {"api-key": "judit-standin"}
CNJ = "5059111-78.2025.4.02.5101"
WINDOW_S = 1.4
ALWAYS = {"created_at_gte": "2000-01-01", "created_at_lte": "2999-12-31"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.body["error"]
        return found


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("standin") / "log.jsonl"


@pytest.fixture(scope="module")
def shared(log_file: Path) -> Iterator[Running]:
    with running("judit", "--pending", "0.05", "--processing", "0.15", "--log", str(log_file)) as standin:
        yield standin


@pytest.fixture(scope="module")
def unhurried() -> Iterator[Running]:
    flags = {"--pending": 0.1, "--processing": 0.6, "--responses": 6, "--limit": 80}
    with running("judit", "--no-retry-after", *(f"{flag}={value}" for flag, value in flags.items())) as standin:
        yield standin


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    with running("judit", "--create-latency", "30", "--limit", "5", "--window", str(WINDOW_S)) as standin:
        yield standin


@pytest.fixture
def judit(shared: Running) -> Running:
    shared.reset()
    return shared


async def call(standin: Running, method: str, path: str, body: Any = None, **query: Any) -> Reply:
    async with (
        aiohttp.ClientSession(standin.url, headers=KEY) as session,
        session.request(method, path, json=body, params=query) as answer,
    ):
        return Reply(answer.status, answer.headers, await answer.json())


def send(standin: Running, method: str, path: str, body: Any = None, **query: Any) -> Reply:
    return asyncio.run(call(standin, method, path, body, **query))


def search(key: str = CNJ, kind: str = "lawsuit_cnj", **more: Any) -> dict[str, Any]:
    return {"search": {"search_type": kind, "search_key": key}, **more}


async def finished(standin: Running, body: dict[str, Any], **query: Any) -> Reply:
    """Create a search, wait for its end and ask for its responses."""
    request_id = (await call(standin, "POST", "/requests", body)).body["request_id"]
    while (await call(standin, "GET", f"/requests/{request_id}")).body["status"] not in ("completed", "failed"):
        await asyncio.sleep(0.03)
    return await call(standin, "GET", "/responses", request_id=request_id, **query)


# --- searches


def test_a_search_is_created_pending_with_the_documented_fields(judit: Running) -> None:
    reply = send(judit, "POST", "/requests", search(with_attachments=True))
    assert reply.status == 201
    assert uuid.UUID(reply.body["request_id"])
    assert uuid.UUID(reply.body["origin_id"])
    assert uuid.UUID(reply.body["user_id"])
    assert reply.body["search"] == {"search_type": "lawsuit_cnj", "search_key": CNJ, "search_params": {}}
    assert (reply.body["status"], reply.body["origin"], reply.body["tags"]) == ("pending", "api", {})
    created = datetime.fromisoformat(reply.body["created_at"])
    assert reply.body["created_at"].endswith("Z")
    assert abs((datetime.now(UTC) - created).total_seconds()) < 5
    assert reply.body["updated_at"] == reply.body["created_at"]


def test_a_search_goes_from_pending_over_processing_to_completed_while_its_pages_grow(unhurried: Running) -> None:
    async def scenario() -> None:
        request_id = (await call(unhurried, "POST", "/requests", search())).body["request_id"]
        seen: list[Reply] = []
        while not seen or seen[-1].body["request_status"] != "completed":
            seen.append(await call(unhurried, "GET", "/responses", request_id=request_id, page_size=2))
            await asyncio.sleep(0.02)
        statuses = [reply.body["request_status"] for reply in seen]
        assert list(dict.fromkeys(statuses)) == ["pending", "processing", "completed"]
        counts = [reply.body["all_count"] for reply in seen]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, 6)
        assert len(set(counts)) >= 4
        assert all(reply.body["all_pages_count"] == -(-reply.body["all_count"] // 2) for reply in seen)

        pages = [
            (await call(unhurried, "GET", "/responses", request_id=request_id, page=page, page_size=4)).body
            for page in (1, 2, 3)
        ]
        assert [page["page_count"] for page in pages] == [4, 2, 0]
        responses = [response for page in pages for response in page["page_data"]]
        assert len({response["response_id"] for response in responses}) == 6
        steps = [step["step_id"] for response in responses for step in response["response_data"]["steps"]]
        whole = [step["step_id"] for instance in (1, 2, 3) for step in lawsuit(CNJ, instance)["steps"]]
        assert steps == whole[: len(steps)]
        lawsuits = [response["response_data"] for response in responses]
        counted = {each["instance"]: each["last_step"]["steps_count"] for each in lawsuits}
        assert len(steps) == sum(counted.values())

    asyncio.run(scenario())


def test_a_lawsuit_looks_like_one_and_is_always_the_same(judit: Running) -> None:
    async def scenario() -> None:
        replies = await asyncio.gather(*(finished(judit, search(with_attachments=True)) for _ in range(2)))
        first, again = ([each["response_data"] for each in reply.body["page_data"]] for reply in replies)
        assert first == again
        assert [each["instance"] for each in first] == list(range(1, len(first) + 1))
        response = replies[0].body["page_data"][0]
        assert response["response_type"] == "lawsuit"
        data = response["response_data"]
        assert data["code"] == CNJ
        assert (data["justice"], data["tribunal_acronym"], data["state"]) == ("4", "TRF2", "RJ")
        assert {party["side"] for party in data["parties"]} == {"Active", "Passive"}
        assert data["name"] == " X ".join(party["name"] for party in data["parties"])
        assert data["steps"][0]["step_id"] == data["last_step"]["step_id"]
        assert {"step_id", "step_date", "content"} <= set(data["steps"][0])
        assert {each["step_id"] for each in data["attachments"]} <= {step["step_id"] for step in data["steps"]}
        assert data["attachments"]
        assert {"classifications", "courts", "distribution_date", "amount", "phase", "status"} <= set(data)

    asyncio.run(scenario())


def test_a_search_by_document_brings_more_than_a_page_of_lawsuits_without_steps(judit: Running) -> None:
    reply = asyncio.run(finished(judit, search("529.982.247-25", "cpf")))
    assert (reply.body["page_count"], reply.body["all_pages_count"], reply.body["all_count"]) == (20, 3, 45)
    found = [response["response_data"] for response in reply.body["page_data"]]
    assert len({each["code"] for each in found}) == 20
    assert all(is_cnj(each["code"]) for each in found)
    assert not any("steps" in each for each in found)


def test_searches_are_found_again_by_when_they_were_created_and_for_what(judit: Running) -> None:
    async def scenario() -> None:
        first = (await call(judit, "POST", "/requests", search())).body
        second = (await call(judit, "POST", "/requests", search(make_cnj(7)))).body
        found = (await call(judit, "GET", "/requests", **ALWAYS)).body
        assert [each["request_id"] for each in found["page_data"]] == [first["request_id"], second["request_id"]]
        assert (found["page"], found["page_count"], found["all_pages_count"], found["all_count"]) == (1, 2, 1, 2)
        exact = {"created_at_gte": first["created_at"], "created_at_lte": first["created_at"]}
        at_that_moment = (await call(judit, "GET", "/requests", **exact)).body["page_data"]
        assert first["request_id"] in [each["request_id"] for each in at_that_moment]
        today = first["created_at"][:10]
        same_day = {"created_at_gte": today, "created_at_lte": today, "page_size": 1, "page": 2}
        assert (await call(judit, "GET", "/requests", **same_day)).body["all_count"] == 2
        by_key = (await call(judit, "GET", "/requests", **ALWAYS, search_key=CNJ)).body
        assert [each["request_id"] for each in by_key["page_data"]] == [first["request_id"]]
        early = {"created_at_gte": "2000-01-01", "created_at_lte": "2000-12-31"}
        assert (await call(judit, "GET", "/requests", **early)).body["page_data"] == []

    asyncio.run(scenario())


def test_a_client_that_dies_before_the_answer_has_created_its_search_all_the_same(strict: Running) -> None:
    strict.reset()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(call(strict, "POST", "/requests", search()), 0.3))
    found = send(strict, "GET", "/requests", **ALWAYS, search_key=CNJ).body
    assert found["all_count"] == 1
    log = strict.log()
    assert log["counters"]["creates"] == {CNJ: 1}
    assert log["requests"][0]["request_id"] == found["page_data"][0]["request_id"]


# --- what may go wrong


@pytest.mark.parametrize("by_fault", [False, True])
def test_a_lawsuit_that_is_not_found_is_an_application_error_inside_a_200(judit: Running, by_fault: bool) -> None:
    if by_fault:
        judit.fault({"outcome": "application_error", "search_key": CNJ})
    reply = asyncio.run(finished(judit, search(CNJ if by_fault else make_cnj(404))))
    assert (reply.status, reply.body["request_status"]) == (200, "completed")
    (response,) = reply.body["page_data"]
    assert response["response_type"] == "application_error"
    assert response["response_data"] == {"code": 2, "message": "LAWSUIT_NOT_FOUND"}


@pytest.mark.parametrize("by_fault", [False, True])
def test_a_search_may_fail(judit: Running, by_fault: bool) -> None:
    if by_fault:
        judit.fault({"outcome": "failed"})
    reply = asyncio.run(finished(judit, search(CNJ if by_fault else make_cnj(500))))
    assert (reply.body["request_status"], reply.body["page_data"]) == ("failed", [])


def test_a_search_may_never_end(judit: Running) -> None:
    async def scenario() -> None:
        stuck = (await call(judit, "POST", "/requests", search(make_cnj(408)))).body["request_id"]
        assert (await finished(judit, search())).body["request_status"] == "completed"
        assert (await call(judit, "GET", f"/requests/{stuck}")).body["status"] == "processing"
        assert (await call(judit, "GET", "/responses", request_id=stuck)).body["all_count"] == 0

    asyncio.run(scenario())


def test_a_fault_for_one_key_leaves_the_others_alone(judit: Running) -> None:
    judit.fault({"status": 500, "route": "POST /requests", "search_key": CNJ})
    assert send(judit, "POST", "/requests", search(make_cnj(7))).status == 201
    assert send(judit, "POST", "/requests", search()).status == 500
    assert send(judit, "POST", "/requests", search()).status == 201
    assert judit.log()["counters"]["creates"] == {CNJ: 1, make_cnj(7): 1}


@pytest.mark.parametrize(
    ("body", "data"),
    [
        ({}, ["search is required and must be an object"]),
        (search("5059111-79.2025.4.02.5101"), ["CNJ is not valid"]),
        (search("50591117820254025101"), ["CNJ is not valid"]),
        (search("12", "cpf"), ["CPF is not valid"]),
        (search("x", "planet"), ["search.search_type must be one of lawsuit_cnj, lawsuit_id, cpf, cnpj, oab, name"]),
        (
            search("MARIA DA SILVA", "name", with_attachments=True),
            ["with_attachments is for search_type lawsuit_cnj only"],
        ),
        ({"search": {"search_type": "cpf"}}, ["search.search_key is required and must be a string"]),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_with_what_is_wrong(judit: Running, body: Any, data: list[str]) -> None:
    reply = send(judit, "POST", "/requests", body)
    assert reply.status == 400
    assert reply.error == {"name": "HttpBadRequestError", "message": "BAD_REQUEST", "data": data}
    assert "creates" not in judit.log()["counters"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/responses", {"page": 1}),
        ("/responses", {"request_id": "x", "page_size": 1001}),
        ("/responses", {"request_id": "x", "page_size": 0}),
        ("/responses", {"request_id": "x", "page": 0}),
        ("/requests", {**ALWAYS, "page_size": "many"}),
        ("/requests", {"created_at_gte": "2026-01-01"}),
        ("/requests", {**ALWAYS, "created_at_lte": "tomorrow"}),
    ],
)
def test_a_question_out_of_bounds_is_refused(judit: Running, path: str, query: dict[str, Any]) -> None:
    assert send(judit, "GET", path, **query).status == 400


@pytest.mark.parametrize(
    ("status", "name", "message"),
    [
        (403, "INSUFFICIENT_PERMISSIONS", "FORBIDDEN"),
        (422, "PROCESSING_ERROR", "UNPROCESSABLE_ENTITY"),
        (500, "HttpInternalServerError", "INTERNAL_SERVER_ERROR"),
        (504, "TIMEOUT_ERROR", "GATEWAY_TIMEOUT"),
    ],
)
def test_a_fault_answers_with_the_documented_error(judit: Running, status: int, name: str, message: str) -> None:
    judit.fault({"status": status})
    reply = send(judit, "GET", "/requests", **ALWAYS)
    assert (reply.status, reply.error["name"], reply.error["message"]) == (status, name, message)


def test_what_there_is_not_and_what_cannot_be_processed_are_told_apart(judit: Running) -> None:
    for reply in (send(judit, "GET", "/requests/none"), send(judit, "GET", "/responses", request_id="none")):
        assert (reply.status, reply.error["name"]) == (404, "REQUEST_NOT_FOUND")
    refused = send(judit, "POST", "/requests", search(make_cnj(422)))
    assert (refused.status, refused.error["name"]) == (422, "PROCESSING_ERROR")


def test_an_answer_that_is_cut_off_has_created_its_search_and_garbage_is_a_page_of_a_gateway(judit: Running) -> None:
    judit.fault({"cut": True, "route": "POST /requests"}, {"garbage": True})
    with pytest.raises(aiohttp.ClientPayloadError):
        send(judit, "POST", "/requests", search())
    assert judit.log()["counters"]["creates"] == {CNJ: 1}
    with pytest.raises(aiohttp.ContentTypeError):
        send(judit, "GET", "/requests", **ALWAYS)


# --- the key and the limit


def test_a_call_without_the_key_is_refused_and_does_not_count(judit: Running) -> None:
    async def scenario() -> None:
        for headers in ({}, {"api-key": "other"}, {"Authorization": "Bearer judit-standin"}):
            async with aiohttp.ClientSession(judit.url, headers=headers) as session, session.get("/requests") as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["message"] == "UNAUTHORIZED"
                assert "X-RateLimit-Limit" not in answer.headers
        reply = await call(judit, "GET", "/requests", **ALWAYS)
        assert (reply.headers["X-RateLimit-Limit"], reply.headers["X-RateLimit-Remaining"]) == ("180", "179")

    asyncio.run(scenario())


def test_the_limit_is_one_sliding_window_over_all_routes(strict: Running) -> None:
    strict.reset()
    routes: list[tuple[str, str, Any]] = [
        ("POST", "/requests", {}),
        ("GET", "/requests/none", None),
        ("GET", "/responses", None),
    ]

    async def scenario() -> None:
        first = time.monotonic()
        early = [await call(strict, *routes[index]) for index in range(2)]
        await asyncio.sleep(first + WINDOW_S / 2 - time.monotonic())
        late = [await call(strict, *routes[index]) for index in range(3)]
        remaining = [reply.headers["X-RateLimit-Remaining"] for reply in early + late]
        assert remaining == ["4", "3", "2", "1", "0"]
        refused = await call(strict, *routes[1])
        assert (refused.status, refused.error["message"]) == (429, "TOO_MANY_REQUESTS")
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        assert refused.headers["Retry-After"] == "1"
        # The two early ones have left the window, the three late ones have not.
        await asyncio.sleep(first + WINDOW_S * 1.1 - time.monotonic())
        again = [(await call(strict, *routes[1])).status for _ in range(3)]
        assert again == [404, 404, 429]
        assert strict.log()["counters"]["rate_limited"] == {"GET /requests/{request_id}": 2}

    asyncio.run(scenario())


def test_a_refusal_may_come_without_saying_how_long_to_wait(unhurried: Running) -> None:
    unhurried.reset()

    async def scenario() -> None:
        async with aiohttp.ClientSession(unhurried.url, headers=KEY) as session:
            assert [await _status(session) for _ in range(81)] == [404] * 80 + [429]
        refused = await call(unhurried, "GET", "/requests/none")
        assert refused.status == 429
        assert "Retry-After" not in refused.headers

    asyncio.run(scenario())


# --- the control routes


def test_faults_are_checked_kept_in_order_and_cleared(judit: Running) -> None:
    async def scenario() -> None:
        for wrong in ({"statsu": 500}, {"status": 200}, {"times": 0}, {"outcome": "lost"}):
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                judit.fault(wrong)
            refused.value.close()
        judit.fault({"status": 500, "times": 2}, {"status": 503, "times": None})
        async with aiohttp.ClientSession(judit.url, headers={"api-key": "judit-standin"}) as session:
            assert [await _status(session) for _ in range(5)] == [500, 500, 503, 503, 503]
            async with session.delete("/_standin/faults") as answer:
                assert await answer.json() == []
            assert await _status(session) == 404

    asyncio.run(scenario())


def test_every_request_is_one_line_of_the_log_file_as_soon_as_it_is_decided(judit: Running, log_file: Path) -> None:
    written_before = len(log_file.read_text().splitlines())

    async def scenario() -> None:
        headers = {"api-key": "judit-standin", "Idempotency-Key": "k1"}
        async with aiohttp.ClientSession(judit.url, headers=headers) as session:
            await _status(session)
            judit.fault({"hang": True})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_status(session), 0.2)
            async with session.get("/nowhere") as answer:
                assert answer.status == 404

    before = time.time()
    asyncio.run(scenario())
    lines = [json.loads(line) for line in log_file.read_text().splitlines()[written_before:]]
    assert lines == judit.log()["requests"]
    assert all(before <= line["time"] <= time.time() for line in lines)
    assert [line["route"] for line in lines] == ["GET /requests/{request_id}"] * 2 + ["GET /nowhere"]
    assert lines[1]["fault"] == {"hang": True}
    assert judit.log()["counters"]["by_idempotency_key"] == {"k1": 3}
    judit.reset()
    assert judit.log()["requests"] == []


async def _status(session: aiohttp.ClientSession) -> int:
    async with session.get("/requests/none") as answer:
        await answer.read()
        return answer.status
