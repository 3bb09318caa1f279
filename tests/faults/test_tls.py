"""The way to a Redis that speaks TLS: the whole of it with a good certificate, none of it with any other."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import Redis

from runtime import Client
from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import TROUBLE, cause_of, connect, connect_blocking
from tests.certificates import Authority, served
from tests.faults import campaign, jobs
from tests.faults.ledger import Ledger, executions
from tests.faults.test_weather import assert_one_line_for_each_cause
from tests.processes import Worker, command, wait_until
from tests.servers import Server

FOLLOWS_S = 15.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


Way = AbstractContextManager[str]
"""The address of a server while it is there."""


@contextmanager
def shown(authority: Authority, name: str, *options: str, **issued: Any) -> Iterator[str]:
    with served(authority.issue(name, **issued), *options) as (_, url):
        yield f"{url}?ssl_ca_certs={authority.path}"


def strict(authority: Authority) -> tuple[str, ...]:
    return ("--tls-auth-clients", "yes", "--tls-ca-cert-file", str(authority.path))


@contextmanager
def self_signed(authority: Authority) -> Iterator[str]:
    with served(authority.by_itself("self-signed")) as (_, url):
        yield f"{url}?ssl_ca_certs={authority.path}"


@contextmanager
def unknown_authority(authority: Authority) -> Iterator[str]:
    with served(authority.issue("unknown")) as (_, url):
        yield url


@contextmanager
def without_tls(authority: Authority) -> Iterator[str]:
    with Server() as server:
        yield f"{server.tcp_url.replace('redis://', 'rediss://')}?ssl_ca_certs={authority.path}"


@contextmanager
def tls_unawares(authority: Authority) -> Iterator[str]:
    with served(authority.issue("unawares")) as (_, url):
        yield url.replace("rediss://", "redis://")


BAD: dict[str, tuple[Callable[[Authority], Way], str, str]] = {
    "of another host": (
        lambda authority: shown(authority, "other", hosts="DNS:other.example"),
        "the server's certificate is for another host",
        "as its certificate does",
    ),
    "expired": (lambda authority: shown(authority, "late", days=-1), "the server's certificate has expired", "renew"),
    "self-signed": (self_signed, "the server's certificate is not trusted", "ssl_ca_certs="),
    "of an unknown authority": (unknown_authority, "the server's certificate is not trusted", "ssl_ca_certs="),
    "without ours": (
        lambda authority: shown(authority, "strict", *strict(authority)),
        "the server wants a certificate of ours|connection closed",
        "ssl_certfile",
    ),
    "no TLS there": (without_tls, "no (?:answer to )?TLS", "write redis://"),
    "TLS there": (tls_unawares, "connection (?:reset|closed)|speaks TLS", "write rediss://"),
}  # fmt: skip
ALL = os.environ.get("RUNTIME_TEST_WEATHER") == "all"
CHOSEN = BAD if ALL else ("of another host",)
TRUSTED = ("by the address", "by SSL_CERT_FILE") if ALL else ("by the address",)


@pytest.mark.parametrize("name", BAD)
def test_both_clients_say_what_is_wrong_with_it(authority: Authority, name: str) -> None:
    way, says, _ = BAD[name]

    async def ping(url: str) -> None:
        client = connect(url, reply_s=1.0)
        try:
            await client.ping()
        finally:
            await client.aclose()

    with way(authority) as url:
        with pytest.raises(TROUBLE) as met:
            asyncio.run(ping(url))
        assert re.search(says, cause_of(met.value)), met.value
        with connect_blocking(url, reply_s=1.0) as client, pytest.raises(TROUBLE) as met:
            client.ping()
        assert re.search(says, cause_of(met.value)), met.value


def test_redis_py_by_itself_would_let_in_who_has_a_certificate_for_anything(authority: Authority) -> None:
    with shown(authority, "impostor", hosts="DNS:other.example") as url:
        with Redis.from_url(url) as theirs:
            assert theirs.ping()
        with connect_blocking(url, reply_s=1.0) as ours, pytest.raises(redis.ConnectionError, match="mismatch"):
            ours.ping()
        with connect_blocking(f"{url}&ssl_cert_reqs=none", reply_s=1.0) as trusting:  # who wants it so
            assert trusting.ping()


@pytest.mark.parametrize("name", CHOSEN)
def test_a_worker_lives_on_and_says_so_and_commands_end_with_it(
    authority: Authority, ledger: Ledger, name: str
) -> None:
    way, says, fix = BAD[name]
    with way(authority) as url, campaign.worker(url, ledger).start() as worker:
        (away,) = worker.wait_for("REDIS_AWAY")
        assert re.search(says, away["message"]), away
        done = command("inspect", REDIS_URL=url)
        assert done.returncode == 69
        assert re.search(says, done.stderr), done.stderr
        assert fix in done.stderr
        told = command("doctor", REDIS_URL=url, RUNTIME_HTTP="off")
        assert told.returncode == 1
        assert re.search(says, told.stdout), told.stdout
        assert fix in told.stdout
        assert worker.running
        assert_one_line_for_each_cause(worker)
        assert worker.stop() == 0
        assert worker.errors() == ""


@pytest.mark.parametrize("trusted", TRUSTED)
def test_everybody_comes_through_with_a_private_authority(
    authority: Authority, ledger: Ledger, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Async and blocking clients, those who listen, the public client, the sentinel and the doctor."""
    settings: dict[str, Any] = {}
    with served(authority.issue("good"), "--tls-auth-clients", "no", "--notify-keyspace-events", "K$") as (server, url):
        if trusted == "by the address":
            url = f"{url}?ssl_ca_certs={authority.path}"
        else:
            settings["SSL_CERT_FILE"] = authority.path
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
        with (
            campaign.worker(url, ledger, lease="1s", RUNTIME_HTTP="on", PORT=0, **settings).start() as worker,
            Worker(command="sentinel", redis=url, RUNTIME_WAKE_URL="http://localhost:1/wake", **settings) as sentinel,
            Redis.from_url(server.url) as admin,
        ):
            sentinel.start()
            worker.wait_for("HTTP_LISTENING")
            job = asyncio.run(_run_a_job(url))
            assert len(executions(ledger.lines())[job]) == 1  # its lease was extended
            here = keys.here("arq:queue")
            wait_until(lambda: dict(admin.pubsub_numsub(here)) == {here.encode(): 1}, what="it is counted")
            wait_until(lambda: admin.execute_command("PUBSUB", "NUMPAT") >= 1, what="it listens")
            sentinel.wait_for("SENTINEL_HEARING", announced=True)
            told = command("doctor", campaign.MODULE, REDIS_URL=url, RUNTIME_HTTP="off", **settings)
            assert "reachable, TLS" in told.stdout
            assert worker.events("REDIS_AWAY") == worker.events("LEASE_LOST") == []


async def _run_a_job(url: str) -> str:
    client = Client(url)
    try:
        (job,) = await client.send([jobs.work.request(2.0)])
        await job.result(timeout=FOLLOWS_S)
        return job.id
    finally:
        await client.close()


def test_a_certificate_of_ours_is_shown_where_it_is_wanted(authority: Authority, tmp_path: Path) -> None:
    own = authority.issue("client")
    with shown(authority, "mutual", *strict(authority)) as url:
        with connect_blocking(f"{url}&ssl_certfile={own.path}&ssl_keyfile={own.key}", reply_s=1.0) as client:
            assert client.ping()
        with (
            connect_blocking(f"{url}&ssl_certfile={own.path}&ssl_keyfile={authority.own.key}", reply_s=1.0) as client,
            pytest.raises(TROUBLE) as met,
        ):
            client.ping()
        assert cause_of(met.value) == "a certificate or key of ours cannot be read"
