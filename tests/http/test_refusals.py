"""What the port refuses, endpoint by endpoint (the table of endpoints and what they must refuse)."""

from __future__ import annotations

import time

import pytest

from tests.http.asking import BEARER, JSON, NO_HTTP, TOKEN, Site, read_all, site_of
from tests.http.jobs import QUEUE
from tests.processes import Worker, command
from tests.servers import Server

HEALTH = ("/health", "/livez", "/readyz")
GUARDED = (
    ("POST", "/jobs"), ("GET", "/jobs/a"), ("DELETE", "/jobs/a"), ("GET", "/queues"),
    ("POST", "/queues/a/pause"), ("POST", "/queues/a/resume"),
)  # fmt: skip
SECURE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Type": "application/json",
}


# Health.


@pytest.mark.parametrize("path", HEALTH)
def test_health_is_open_to_get_and_head_alone(site: Site, path: str) -> None:
    got, head = site.ask("GET", path, headers=[]), site.ask("HEAD", path, headers=[])
    assert (got.code, head.code, head.body) == (200, 200, b"")
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        refused = site.ask(method, path, b"" if method != "TRACE" else None, headers=[])
        assert (refused.code, refused.error) == (405, "method-not-allowed")
        assert refused.headers["Allow"] == "GET,HEAD"


def test_health_reads_no_body(site: Site) -> None:
    with site.dial(b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n") as wire:
        began = time.monotonic()
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - began < 2


def test_health_names_no_queue_no_host_and_no_version(site: Site, server: Server) -> None:
    answer = site.ask("GET", "/health", headers=[])
    told = str(answer.headers) + answer.body.decode()
    for word in (QUEUE, server.url, "Python", "aiohttp", TOKEN):
        assert word not in told


def test_health_asks_redis_nothing(site: Site, redis: object) -> None:
    from redis import Redis

    assert isinstance(redis, Redis)

    def calls() -> int:
        stats = redis.info("commandstats")
        return sum(entry["calls"] for name, entry in stats.items() if name not in ("cmdstat_info", "cmdstat_bzpopmin"))  # type: ignore[union-attr]

    before = calls()
    for _ in range(50):
        site.ask("GET", "/health", headers=[])
    assert calls() - before < 25  # what an idle worker does anyway meanwhile


# The doorbell.


def test_the_doorbell_is_open_and_always_says_the_same(site: Site) -> None:
    answers = [site.ask("POST", "/wake", headers=[]) for _ in range(3)]
    answers += [site.ask("POST", "/wake", b"x" * 1024, headers=[BEARER])]
    assert {(answer.code, answer.body) for answer in answers} == {(202, b'{"status":"awake"}')}


def test_the_doorbell_takes_no_parameters_no_body_and_no_other_method(site: Site) -> None:
    assert site.ask("POST", f"/wake?token={TOKEN}", headers=[]).error == "unknown-parameter"
    assert site.ask("POST", "/wake", b"x" * 1025, headers=[]).code == 413
    with site.dial(
        b"POST /wake HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n" + b"x" * 2048
    ) as wire:
        assert wire.recv(65536).startswith(b"HTTP/1.1 413 ")
    refused = site.ask("GET", "/wake", headers=[])
    assert (refused.code, refused.headers["Allow"]) == (405, "POST")


# The token.


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", f"Bearer {TOKEN[:-1]}")],
        [("Authorization", f"Bearer {TOKEN}x")],
        [("Authorization", f"Bearer {TOKEN.upper()}")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", TOKEN)],
        [("Authorization", f"Basic {TOKEN}")],
        [("Authorization", f"Token {TOKEN}")],
        [("Authorization", f"Bearer {TOKEN}, Bearer {TOKEN}")],
        [("Cookie", f"token={TOKEN}; Authorization=Bearer {TOKEN}")],
        [("X-Token", TOKEN)],
        [BEARER, BEARER],
        [BEARER, ("Authorization", "Basic eDp5")],
    ],
)
def test_nobody_comes_in_without_one_bearer_token(
    patient: Site, method: str, path: str, headers: list[tuple[str, str]]
) -> None:
    answer = patient.ask(method, path, b"{}" if method == "POST" else None, [*headers, JSON])
    if answer.code != 429:
        assert (answer.code, answer.error) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.fixture
def patient(site: Site) -> Site:
    """So many wrong ones come from here that some are told to slow down; none is let in."""
    return site


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_token_in_the_address_is_none(site: Site, method: str, path: str) -> None:
    for name in ("token", "access_token", "RUNTIME_TOKEN"):
        answer = site.ask(method, f"{path}?{name}={TOKEN}", b"{}" if method == "POST" else None, [JSON])
        assert answer.code in (401, 429)


def test_wrong_tokens_are_slowed_down_counted_and_logged_without_their_value(server: Server) -> None:
    with Worker("tests.http.jobs", redis=server.url, RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=TOKEN).up() as worker:
        site = site_of(worker)
        wrong = [("Authorization", "Bearer wr0ng-token-0123456789-0123456789")]
        began = time.monotonic()
        codes = [site.ask("GET", "/queues", headers=wrong).code for _ in range(33)]
        assert codes == [401] * 30 + [429] * 3
        assert time.monotonic() - began > 30 * 0.25
        slow_down = site.ask("GET", "/queues", headers=wrong)
        assert (slow_down.error, slow_down.headers["Retry-After"]) == ("too-many-failures", "60")
        assert site.ask("GET", "/queues").code == 200, "a right token is let in, whoever else is behind the address"
        elapsed = time.monotonic() - began
        assert 1 <= len(worker.events("HTTP_UNAUTHORIZED")) <= 1 + elapsed / 10
        assert "wr0ng" not in worker.output()


def test_without_a_token_there_is_no_job_api_and_the_boot_says_so(server: Server) -> None:
    with Worker("tests.http.jobs", redis=server.url, RUNTIME_HTTP="on", PORT=0).up() as worker:
        site = site_of(worker)
        for method, path in GUARDED:
            answer = site.ask(method, path, b"{}" if method == "POST" else None)
            assert (answer.code, answer.error) == (404, "not-found")
        assert site.ask("GET", "/health").code == 200
        assert site.ask("POST", "/wake").code == 202
        (line,) = worker.wait_for("JOB_API_OFF")
        assert "RUNTIME_TOKEN" in line["message"]


def test_a_short_token_is_refused_at_boot_and_not_shown() -> None:
    ended = command("serve", "tests.http.jobs", RUNTIME_TOKEN="s3cret-and-short")
    assert ended.returncode == 78
    assert "RUNTIME_TOKEN must be one token or two" in ended.stderr
    assert "s3cret" not in ended.stderr + ended.stdout


# Pages of other sites.


@pytest.mark.parametrize("where", ["cross-site", "same-site"])
@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_pages_of_other_sites_are_refused_even_with_a_token(site: Site, method: str, path: str, where: str) -> None:
    body = b"{}" if method == "POST" else None
    answer = site.ask(method, path, body, [BEARER, JSON, ("Sec-Fetch-Site", where), ("Origin", "https://evil.example")])
    assert (answer.code, answer.error) == (403, "cross-site")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("where", ["same-origin", "none"])
def test_our_own_pages_are_served(site: Site, where: str) -> None:
    answer = site.ask("GET", "/queues", headers=[BEARER, ("Sec-Fetch-Site", where)])
    assert answer.code == 200
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("path", ["/jobs", "/jobs/a", "/queues", "/wake", "/health"])
def test_a_preflight_is_refused(site: Site, path: str) -> None:
    asking = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")]
    answer = site.ask("OPTIONS", path, headers=asking)
    assert (answer.code, answer.error) == (403, "cross-origin")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# Whatever it is.


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/jobs", "POST"), ("PUT", "/jobs/a", "DELETE,GET,HEAD"), ("POST", "/queues", "GET,HEAD")],
)
def test_a_method_that_is_not_there_is_405_with_those_that_are(site: Site, method: str, path: str, allow: str) -> None:
    answer = site.ask(method, path)
    assert (answer.code, answer.error, answer.headers["Allow"]) == (405, "method-not-allowed", allow)


def test_every_answer_carries_the_headers_that_keep_it_where_it_is(site: Site) -> None:
    asked = [("GET", "/health"), ("POST", "/wake"), ("GET", "/queues"), ("GET", "/nothing"), ("PUT", "/jobs")]
    for method, path in asked:
        headers = site.ask(method, path).headers
        for name, value in SECURE.items():
            assert headers[name].startswith(value), (method, path, name)
        assert headers["Server"] == "runtime"


@pytest.mark.parametrize("sent", NO_HTTP)
def test_what_is_no_http_is_refused_in_json_and_not_logged(site: Site, worker: Worker, sent: bytes) -> None:
    with site.dial(sent) as wire:
        answer = read_all(wire)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b'"code":"bad-request"' in answer
    assert "Traceback" not in worker.output() + worker.errors()
