"""The job API, as a producer in any language uses it."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.asking import BEARER, JSON, TOKEN, Answer, Site
from tests.http.jobs import OTHER, QUEUE
from tests.processes import Worker, wait_until


def settled(site: Site, job_id: str) -> dict[str, Any]:
    """What is said of a job that has ended."""

    def ended() -> dict[str, Any]:
        found: dict[str, Any] = site.ask("GET", f"/jobs/{quote(job_id, safe='')}").json
        return {} if found["status"] in ("waiting", "deferred", "active") else found

    return wait_until(ended)


def test_a_job_is_accepted_runs_and_shows_its_result(site: Site) -> None:
    answer = site.ask("POST", "/jobs", {"handler": "double", "args": [21], "kwargs": {"times": 2}})
    job_id = answer.json["jobId"]
    assert (answer.code, answer.json) == (202, {"jobId": job_id, "status": "queued", "created": True})
    found = settled(site, job_id)
    assert (found["jobId"], found["status"], found["result"]) == (job_id, "completed", 84)
    assert (found["handler"], found["attempt"]) == ("double", 1)
    assert found["startedAt"] <= found["finishedAt"]


def test_dates_and_spans_are_given_as_text(site: Site) -> None:
    answer = site.ask("POST", "/jobs", {"handler": "next_day", "args": ["2027-01-31"], "kwargs": {"after": "P2D"}})
    assert settled(site, answer.json["jobId"])["result"] == "2027-02-02"


def test_a_job_that_waits_for_a_limit_says_so(site: Site) -> None:
    waiting = [site.enqueue("rare") for _ in range(2)]

    def put_off() -> dict[str, Any]:
        found = [site.ask("GET", f"/jobs/{job_id}").json for job_id in waiting]
        return next((job for job in found if "waitsFor" in job), {})

    found = wait_until(put_off)
    assert found == {"jobId": found["jobId"], "status": "deferred", "queue": OTHER, "attempt": 0, "waitsFor": "rare"}
    assert site.ask("DELETE", f"/jobs/{found['jobId']}").code == 200


def test_each_of_the_two_tokens_opens_the_api(site: Site) -> None:
    for token in (TOKEN, TOKEN[::-1]):
        for scheme in ("Bearer", "bearer"):
            assert site.ask("GET", "/queues", headers=[("Authorization", f"{scheme} {token}")]).code == 200


def test_a_key_has_one_job_and_the_second_asker_is_told_where_it_is(site: Site) -> None:
    order = {"handler": "double", "args": [1], "key": "once", "delay": "1h"}
    first, second = site.ask("POST", "/jobs", order), site.ask("POST", "/jobs", order)
    assert (first.code, first.json["created"], first.json["jobId"]) == (202, True, "double:once")
    assert (second.code, second.json) == (200, {"jobId": "double:once", "status": "deferred", "created": False})


def test_the_idempotency_key_header_is_the_key(site: Site) -> None:
    headers = [BEARER, JSON, ("Idempotency-Key", "by-header")]
    order = {"handler": "double", "args": [1], "delay": 3600}
    assert site.ask("POST", "/jobs", order, headers).json["jobId"] == "double:by-header"
    assert site.ask("POST", "/jobs", {**order, "key": "by-header"}, headers).code == 200
    assert site.ask("POST", "/jobs", {**order, "key": "another"}, headers).error == "two-keys"
    assert site.ask("POST", "/jobs", order, [*headers, ("Idempotency-Key", "another")]).error == "two-keys"


def test_options_go_with_the_job(site: Site, redis: Any) -> None:
    deferred = site.enqueue("double", 1, delay="10m", expires="1h", queue=OTHER, priority=7)
    due_s = redis.zscore(OTHER, deferred) / 1000 - time.time()
    assert 500 < due_s < 700
    assert redis.zscore(OTHER, deferred) % 1 == pytest.approx(7 / 1024, abs=0.01)
    at = site.enqueue("double", 1, at="2127-01-31T09:30:00Z")
    assert redis.zscore(QUEUE, at) == pytest.approx(4956975000000, abs=100_000_000)
    assert site.ask("GET", f"/jobs/{at}").json["status"] == "deferred"


def test_a_job_is_found_on_any_queue_that_the_worker_serves_or_on_the_one_that_is_named(site: Site) -> None:
    job_id = site.enqueue("hold", 30)
    found = wait_until(lambda: f if (f := site.ask("GET", f"/jobs/{job_id}").json)["status"] == "active" else None)
    assert found == {"jobId": job_id, "status": "active", "queue": OTHER, "attempt": 1}
    assert site.ask("GET", f"/jobs/{job_id}?queue={OTHER}").json == found
    assert site.ask("GET", f"/jobs/{job_id}?queue={QUEUE}").code == 404


def test_a_dead_letter_shows_its_error_and_no_arguments(site: Site) -> None:
    found = settled(site, site.enqueue("refuse"))
    assert (found["status"], found["reason"], found["attempt"]) == ("dead", "permanent", 1)
    assert found["error"] == {"type": "runtime.Permanent", "message": "there is nobody to write to"}
    assert "args" not in found


def test_results_that_json_has_no_words_for_are_shown_nevertheless(site: Site) -> None:
    assert settled(site, site.enqueue("odd"))["result"] == {
        "bytes": "\x00\\xff",
        "moment": "2027-01-31T00:00:00+00:00",
        "span": 1.5,
        "number": "1.10",
        "nan": "nan",
        "set": [1, 3],
        "7": ["a", "b"],
    }


def test_a_job_that_has_not_started_is_cancelled_for_good(site: Site) -> None:
    job_id = site.enqueue("double", 1, delay="1h")
    answer = site.ask("DELETE", f"/jobs/{job_id}")
    assert (answer.code, answer.json) == (200, {"jobId": job_id, "status": "cancelled"})
    again = site.ask("DELETE", f"/jobs/{job_id}")
    assert (again.code, again.json["status"]) == (409, "cancelled")


def test_a_job_that_runs_is_told_to_stop(site: Site) -> None:
    job_id = site.enqueue("hold", 60)
    wait_until(lambda: site.ask("GET", f"/jobs/{job_id}").json["status"] == "active")
    answer = site.ask("DELETE", f"/jobs/{job_id}")
    assert (answer.code, answer.json) == (202, {"jobId": job_id, "status": "active"})
    assert settled(site, job_id)["status"] == "cancelled"


def test_what_has_ended_or_never_was_cannot_be_cancelled(site: Site) -> None:
    done = site.enqueue("double", 1)
    settled(site, done)
    answer = site.ask("DELETE", f"/jobs/{done}")
    assert (answer.code, answer.json) == (409, {"jobId": done, "status": "completed"})
    assert site.ask("DELETE", "/jobs/nobody").json == {"jobId": "nobody", "status": "unknown"}
    assert site.ask("DELETE", "/jobs/nobody").code == 404


def test_queues_are_counted(site: Site) -> None:
    settled(site, site.enqueue("refuse"))
    counts = site.ask("GET", "/queues").json
    assert set(counts) == {QUEUE, OTHER}
    for queue in counts.values():
        assert set(queue) == {"waiting", "active", "completed", "failed", "deferred", "dead", "oldest_age_s", "paused"}
        assert queue["paused"] is None
    assert counts[QUEUE]["dead"] >= 1


def test_a_queue_is_paused_and_resumed(site: Site) -> None:
    try:
        answer = site.ask("POST", f"/queues/{QUEUE}/pause", {"reason": "a bad deploy", "for": "1h"})
        assert answer.code == 200
        assert answer.json["paused"]["reason"] == "a bad deploy"
        assert 3500 < answer.json["paused"]["left_s"] <= 3600
        assert (
            site.ask("POST", f"/queues/{quote(QUEUE, safe='')}/pause", b"", [BEARER]).json["paused"]["left_s"] is None
        )
        held_up = site.enqueue("double", 1)
        time.sleep(0.5)
        assert site.ask("GET", f"/jobs/{held_up}").json["status"] == "waiting"
        assert wait_until(lambda: f"paused: {QUEUE}" in worker_check(site))
        assert site.ask("GET", "/queues").json[OTHER]["paused"] is None
    finally:
        answer = site.ask("POST", f"/queues/{QUEUE}/resume", b"", [BEARER])
    assert (answer.code, answer.json["paused"]) == (200, None)
    assert settled(site, held_up)["result"] == 2
    assert wait_until(lambda: "paused" not in worker_check(site))


def worker_check(site: Site) -> str:
    message: str = site.ask("GET", "/health").json["checks"]["worker"]["message"]
    return message


@pytest.mark.parametrize(
    ("path", "body", "code", "error"),
    [
        ("/queues/nobodys/pause", {}, 404, "unknown-queue"),
        ("/queues/nobodys/resume", {}, 404, "unknown-queue"),
        (f"/queues/{QUEUE}/pause", {"until": "noon"}, 400, "unknown-field"),
        (f"/queues/{QUEUE}/pause", {"for": "soon"}, 422, "option-invalid"),
        (f"/queues/{QUEUE}/pause", {"for": [1]}, 422, "option-invalid"),
        (f"/queues/{QUEUE}/pause", {"for": 0}, 422, "option-invalid"),
        (f"/queues/{QUEUE}/pause", {"reason": 7}, 422, "option-invalid"),
        (f"/queues/{QUEUE}/pause", {"reason": "x" * 513}, 422, "option-invalid"),
        (f"/queues/{QUEUE}/pause?for=1h", {}, 400, "unknown-parameter"),
        (f"/queues/{QUEUE}%ff/resume", {}, 422, "payload-invalid"),
    ],
)
def test_what_makes_no_pause_is_refused(site: Site, path: str, body: dict[str, Any], code: int, error: str) -> None:
    answer = site.ask("POST", path, body)
    assert (answer.code, answer.error) == (code, error)
    assert site.ask("GET", "/queues").json[QUEUE]["paused"] is None


def test_a_job_is_unique_for_a_time_by_its_arguments(site: Site) -> None:
    order = {"handler": "double", "args": [21], "unique_for": "1h"}
    first = site.ask("POST", "/jobs", order)
    assert first.code == 202
    settled(site, first.json["jobId"])
    by_name = {"handler": "double", "kwargs": {"times": 1, "number": 21}, "unique_for": "1h"}
    second = site.ask("POST", "/jobs", by_name)
    assert (second.code, second.json["created"], second.json["jobId"]) == (200, False, first.json["jobId"])
    assert second.json["status"] == "completed"
    assert site.ask("POST", "/jobs", {**order, "args": [22]}).code == 202
    assert site.ask("POST", "/jobs", {**order, "unique_for": "soon"}).error == "option-invalid"


def test_an_unknown_job_is_404_with_its_status(site: Site) -> None:
    answer = site.ask("GET", "/jobs/nobody")
    assert (answer.code, answer.json) == (404, {"jobId": "nobody", "status": "unknown"})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_an_id_in_the_path_is_decoded_once_whatever_it_holds(site: Site, key: str) -> None:
    site.ask("POST", "/jobs", {"handler": "double", "args": [1], "key": key, "delay": "1h"})
    answer = site.ask("GET", "/jobs/" + quote(f"double:{key}", safe=""))
    assert (answer.code, answer.json["jobId"], answer.json["status"]) == (200, f"double:{key}", "deferred")


# Quotas.


def test_a_user_who_has_too_many_is_told_when_to_come_back(site: Site, redis: Any) -> None:
    order = {"handler": "report", "args": ["ana"]}
    first = site.enqueue("report", "ana", delay="1h", key="first")
    answer = nothing_written(site, redis, order, 429, "quota-exceeded")
    assert answer.headers["Retry-After"] == "5"
    assert answer.json["error"] == {
        "code": "quota-exceeded",
        "message": "reports: over the limit of 1 job at a time: 1 waiting or running",
        "hint": "try again in 5 s",
    }
    assert site.ask("POST", "/jobs", {**order, "key": "first"}).code == 200
    assert site.enqueue("report", "bo")
    site.ask("DELETE", f"/jobs/{first}")
    settled(site, site.enqueue("report", "ana"))
    answer = nothing_written(site, redis, order, 429, "quota-exceeded")
    assert "2 jobs an hour" in answer.json["error"]["message"]
    assert 3500 < int(answer.headers["Retry-After"]) <= 3600


@pytest.mark.parametrize("user", ["", None, 7])
def test_who_is_no_user_has_no_job(site: Site, redis: Any, user: Any) -> None:
    nothing_written(site, redis, {"handler": "report", "args": [user]}, 422, "payload-invalid")


# What is refused, and that nothing is written then.


def nothing_written(site: Site, redis: Any, body: Any, code: int, error: str, **more: Any) -> Answer:
    def jobs() -> set[str]:
        return set(redis.keys("arq:job:*"))

    before = jobs()
    answer = site.ask("POST", "/jobs", body, **more)
    assert (answer.code, answer.error) == (code, error)
    assert not jobs() - before
    return answer


@pytest.mark.parametrize(
    ("body", "code", "error", "said"),
    [
        ("", 400, "bad-body", "not a JSON object"),
        ("{", 400, "bad-body", "not a JSON object"),
        ("[1]", 400, "bad-body", "not a JSON object"),
        ('{"handler": "echo", "args": ' + "[" * 60_000, 400, "bad-body", "nested too deeply"),
        ({"handler": "double", "argz": [1], "kwarg": {}}, 400, "unknown-field", "argz, kwarg"),
        ({"args": [1]}, 400, "bad-body", "handler"),
        ({"handler": None}, 400, "bad-body", "handler"),
        ({"handler": 7}, 400, "bad-body", "handler"),
        ({"handler": "double", "args": {"number": 1}}, 400, "bad-body", "args must be an array"),
        ({"handler": "double", "kwargs": [1]}, 400, "bad-body", "kwargs must be an object"),
        ({"handler": "duoble", "args": [1]}, 422, "handler-unknown", "duoble"),
        ({"handler": "double"}, 422, "payload-invalid", "number"),
        ({"handler": "double", "args": ["1"]}, 422, "payload-invalid", "number"),
        ({"handler": "next_day", "args": ["tomorrow"]}, 422, "payload-invalid", "day"),
        ({"handler": "double", "args": [1], "kwargs": {"number": 1}}, 422, "payload-invalid", "number"),
        ({"handler": "double", "args": [1], "kwargs": {"self": 1}}, 422, "payload-invalid", "self"),
        ({"handler": "double", "args": [1], "kwargs": {"ctx": 1}}, 422, "payload-invalid", "ctx"),
        ({"handler": "double", "args": [1], "priority": 1001}, 422, "option-invalid", "priority"),
        ({"handler": "double", "args": [1], "priority": True}, 422, "option-invalid", "priority"),
        ({"handler": "double", "args": [1], "delay": "soon"}, 422, "option-invalid", "delay"),
        ({"handler": "double", "args": [1], "delay": -1}, 422, "option-invalid", "delay"),
        ({"handler": "double", "args": [1], "delay": 1e300}, 422, "option-invalid", "delay"),
        ({"handler": "double", "args": [1], "expires": [1]}, 422, "option-invalid", "expires"),
        ({"handler": "double", "args": [1], "at": "tomorrow"}, 422, "option-invalid", "at"),
        ({"handler": "double", "args": [1], "at": 7}, 422, "option-invalid", "at"),
        ({"handler": "double", "args": [1], "at": "2027-01-31T09:30:00"}, 422, "option-invalid", "time zone"),
        ({"handler": "double", "args": [1], "at": "2027-01-31T09:30:00Z", "delay": 1}, 422, "option-invalid", "both"),
        ({"handler": "double", "args": [1], "key": ""}, 422, "option-invalid", "key"),
        ({"handler": "double", "args": [1], "key": 7}, 422, "option-invalid", "key"),
        ({"handler": "double", "args": [1], "queue": "q" * 513}, 422, "option-invalid", "queue"),
    ],
)
def test_an_order_that_breaks_a_rule_is_refused_by_name(
    site: Site, redis: Any, body: Any, code: int, error: str, said: str
) -> None:
    assert said in nothing_written(site, redis, body, code, error).json["error"]["message"]


def test_the_nearest_name_is_told(site: Site, redis: Any) -> None:
    hint = nothing_written(site, redis, {"handler": "duoble"}, 422, "handler-unknown").json["error"]["hint"]
    assert "did you mean 'double'?" in hint


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_taken(site: Site, redis: Any, kind: str | None) -> None:
    headers = [BEARER, *([("Content-Type", kind)] if kind else [])]
    nothing_written(site, redis, {"handler": "double", "args": [1]}, 415, "not-json", headers=headers)


def test_a_compressed_body_is_not_taken(site: Site, redis: Any) -> None:
    headers = [BEARER, JSON, ("Content-Encoding", "gzip")]
    nothing_written(site, redis, b"\x1f\x8b", 415, "not-json", headers=headers)


def test_null_is_the_same_as_absent(site: Site) -> None:
    assert site.enqueue("double", 1, key=None, delay=None, queue=None, kwargs=None)


def test_deeply_nested_arguments_are_refused_or_run(site: Site, redis: Any) -> None:
    for depth in (20, 60, 70, 500):
        text = json.dumps({"handler": "echo", "args": ["DEEP"]}).replace('"DEEP"', "[" * depth + "]" * depth)
        answer = site.ask("POST", "/jobs", text)
        if answer.code == 202:
            assert settled(site, answer.json["jobId"])["status"] == "completed"
        else:
            assert answer.code in (400, 422)


@pytest.mark.parametrize("path", ["/jobs/" + "x" * 513, "/jobs/%FF", "/jobs/" + "%C3%A9" * 513])
def test_an_id_that_can_be_none_is_refused(site: Site, path: str) -> None:
    assert site.ask("GET", path).error == "payload-invalid"
    assert site.ask("DELETE", path).error == "payload-invalid"


@pytest.mark.parametrize("path", ["/queues?token=1", "/jobs/a?queue=a&queue=b", "/jobs/a?token=" + TOKEN])
def test_parameters_that_there_are_not_are_refused(site: Site, path: str) -> None:
    assert site.ask("GET", path).error == "unknown-parameter"


def test_nothing_of_what_was_asked_is_logged(site: Site, worker: Worker) -> None:
    site.ask("POST", "/jobs", {"handler": "echo", "args": ["s3cret-argument"]})
    site.ask("POST", "/jobs", {"handler": "double", "args": ["s3cret-argument"]})
    log = worker.output() + worker.errors()
    assert TOKEN not in log
    assert "s3cret-argument" not in log
    assert not worker.events("HTTP_ERROR")
