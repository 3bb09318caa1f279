"""The two shipped handlers, end to end: real worker, real server, stand-ins that speak the providers' protocols."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handlers.flashcards import flashcards
from handlers.judit import onboard
from runtime import Client, JobFailed, Request
from tests.processes import Worker, enqueue, wait_until
from tests.standins.lawsuits import make_cnj
from tests.standins.process import Running, running

TEXT = "The heart pumps blood. Arteries carry it away. Veins bring it back."


def outcome(url: str, request: Request[Any]) -> Any:
    """The result of this job, or how it failed."""

    async def ask() -> Any:
        client = Client(url)
        try:
            (job,) = await client.send([request])
            return await job.result("10s")
        except JobFailed as failure:
            return failure
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.fixture
def openai() -> Iterator[Running]:
    with running("openai", "--latency", "0.05") as standin:
        yield standin


@pytest.fixture
def judit() -> Iterator[Running]:
    with running("judit", "--pending", "0.5", "--processing", "0.5") as standin:
        yield standin


@pytest.fixture
def worker(tcp_url: str, request: pytest.FixtureRequest) -> Iterator[Worker]:
    addresses: dict[str, Any] = {}
    if "openai" in request.fixturenames:
        addresses.update(OPENAI_BASE_URL=request.getfixturevalue("openai").url + "/v1", OPENAI_API_KEY="sk-standin")
    if "judit" in request.fixturenames:
        addresses.update(JUDIT_API_BASE_URL=request.getfixturevalue("judit").url, JUDIT_API_KEY="judit-standin")
    with Worker("handlers", redis=tcp_url, RUNTIME_LEASE="2s", **addresses) as made:
        yield made.up()


def test_a_text_becomes_flashcards_and_tells_its_tokens(tcp_url: str, openai: Running, worker: Worker) -> None:
    deck = outcome(tcp_url, flashcards.request(TEXT, 3))
    assert len(deck["flashcards"]) == 3
    assert all(card["question"] and card["answer"] for card in deck["flashcards"])
    tokens = openai.log()["requests"][-1]["tokens"]
    assert deck["tokenUsage"] == tokens["prompt"] + tokens["completion"]


def test_a_rate_limit_uses_up_no_attempt(tcp_url: str, openai: Running, worker: Worker) -> None:
    openai.fault({"status": 429, "code": "rate_limit_exceeded", "times": 5, "retry_after": 0.2})
    assert outcome(tcp_url, flashcards.request(TEXT, 1))["tokenUsage"] > 0
    assert len(worker.events("JOB_SNOOZED")) == 5
    assert {line["attempt"] for line in worker.events("JOB_STARTED")} == {1}


def test_server_errors_and_spoilt_answers_are_tried_again(tcp_url: str, openai: Running, worker: Worker) -> None:
    openai.fault({"status": 503})
    openai.fault({"garbage": "content"})
    assert outcome(tcp_url, flashcards.request(TEXT, 1))["tokenUsage"] > 0
    assert [line["error_category"] for line in worker.events("JOB_RETRIED")] == ["transient", "transient"]


def test_an_empty_account_waits_with_its_attempts_intact(tcp_url: str, openai: Running, worker: Worker) -> None:
    openai.fault({"status": 429, "code": "insufficient_quota", "times": None})
    enqueue(tcp_url, flashcards.request(TEXT, 1))
    worker.wait_for("JOB_SNOOZED", attempt=1)
    assert not worker.events("JOB_RETRIED")


def test_a_wrong_key_is_a_dead_letter_that_does_not_show_it(tcp_url: str, openai: Running) -> None:
    secret = "sk-a-key-that-nobody-may-see"
    with Worker("handlers", redis=tcp_url, OPENAI_BASE_URL=openai.url + "/v1", OPENAI_API_KEY=secret) as worker:
        worker.up()
        failure = outcome(tcp_url, flashcards.request(TEXT, 1))
        assert isinstance(failure, JobFailed)
        assert failure.error == "runtime.Permanent"
        assert "401" in failure.text
        worker.wait_for("JOB_DEAD", error_category="permanent")
        assert secret not in worker.output() + worker.errors() + str(failure)


def test_a_missing_key_says_which(tcp_url: str) -> None:
    with Worker("handlers", redis=tcp_url) as worker:
        worker.up()
        assert "OPENAI_API_KEY is not set" in str(outcome(tcp_url, flashcards.request(TEXT, 1)))
        assert "JUDIT_API_KEY is not set" in str(outcome(tcp_url, onboard.request(make_cnj(1))))


def test_a_lawsuit_is_onboarded_page_by_page(tcp_url: str, judit: Running, worker: Worker) -> None:
    cnj = make_cnj(7)
    case = outcome(tcp_url, onboard.request(cnj))
    assert case["cnj"] == cnj
    assert {lawsuit["code"] for lawsuit in case["lawsuits"]} == {cnj}
    log = judit.log()
    assert log["counters"]["creates"] == {cnj: 1}
    assert {line["attempt"] for line in worker.events("JOB_STARTED")} == {1}, "polling uses no attempt"


@pytest.mark.parametrize("number", ["12", "0001327-65.2018.8.26.0158", "0001327-64.2018.8.26.015"])
def test_what_is_no_cnj_number_never_reaches_judit(tcp_url: str, judit: Running, worker: Worker, number: str) -> None:
    failure = outcome(tcp_url, onboard.request(number))
    assert isinstance(failure, JobFailed)
    assert failure.error == "runtime.Invalid"
    assert judit.log()["requests"] == []


def test_an_error_inside_an_answer_of_200_is_a_failure(tcp_url: str, judit: Running, worker: Worker) -> None:
    failure = outcome(tcp_url, onboard.request(make_cnj(404)))
    assert isinstance(failure, JobFailed)
    assert "LAWSUIT_NOT_FOUND" in failure.text


def test_a_failed_request_is_a_failure(tcp_url: str, judit: Running, worker: Worker) -> None:
    assert isinstance(outcome(tcp_url, onboard.request(make_cnj(500))), JobFailed)


@pytest.mark.parametrize("after_the_create", [True, False], ids=["killed-after-the-create", "answer-lost"])
def test_one_request_is_created_however_its_maker_dies(tcp_url: str, tmp_path: Path, after_the_create: bool) -> None:
    """The worst moments: JUDIT has the request, and the worker dies, or the answer is lost, before it can note so."""
    log = tmp_path / "judit.log"
    cnj = make_cnj(11)
    flags = ["--create-latency", "3"] if after_the_create else []
    with running("judit", "--pending", "0.2", "--processing", "0.2", "--log", str(log), *flags) as judit:
        address: dict[str, Any] = {"JUDIT_API_BASE_URL": judit.url, "JUDIT_API_KEY": "judit-standin"}
        if not after_the_create:
            judit.fault({"route": "POST /requests", "cut": True})
        with Worker("handlers", redis=tcp_url, RUNTIME_LEASE="1s", **address) as worker:
            worker.up()
            (job_id,) = enqueue(tcp_url, onboard.request(cnj))
            wait_until(lambda: log.exists() and "POST /requests" in log.read_text(), what="JUDIT has the request")
            if after_the_create:
                worker.send(signal.SIGKILL)
                worker.wait()
                worker.up()
            worker.wait_for("JOB_COMPLETED", job_id=job_id, timeout_s=40)
        creates = [line for line in map(json.loads, log.read_text().splitlines()) if line["route"] == "POST /requests"]
        assert len(creates) == 1, creates
