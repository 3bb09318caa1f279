"""The doorbell, on real sockets: it rings until somebody answers, and no more than that."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.adapters import doorbell
from runtime.adapters.doorbell import Complaints, Doorbell, Ring
from tests.doorstep import Answer, Doorstep
from tests.http.asking import site_of
from tests.processes import ROOT, Worker, environment, wait_until
from tests.servers import Server


async def rung(*urls: str) -> list[Ring]:
    """Ring once, and wait for how it ends."""
    bell = Doorbell(urls, Complaints())
    bell.ring()
    try:
        return list(await bell.rung())
    finally:
        await bell.close()


def test_it_rings_through_whatever_a_platform_does_while_it_starts_a_worker() -> None:
    with Doorstep(404, 502, 202, refuses_for_s=0.7) as step:
        began = time.monotonic()
        assert asyncio.run(rung(step.url)) == [Ring(step.url, True, "status 202")]
    assert len(step.visits) == 3
    assert step.visits[0].at - began > 0.6
    assert {visit.head for visit in step.visits} == {
        f"POST /wake HTTP/1.1\r\nHost: {step.url.split('/')[2]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    }


def test_the_pauses_double_and_each_is_at_most_a_half_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "PAUSE_S", (0.1, 0.4))
    with Doorstep(404, 502, 503, 504, "hang up", "rubbish", 202) as step:
        assert asyncio.run(rung(step.url)) == [Ring(step.url, True, "status 202")]
    for gap, longest_s in zip(step.gaps(), (0.1, 0.2, 0.4, 0.4, 0.4, 0.4), strict=True):
        assert longest_s / 2 <= gap < longest_s + 1


def test_a_worker_of_ours_answers_it(server: Server) -> None:
    with Worker("tests.http.jobs", redis=server.url, RUNTIME_HTTP="on", PORT=0).up() as worker:
        url = f"http://localhost:{site_of(worker).port}/wake"
        assert asyncio.run(rung(url)) == [Ring(url, True, "status 202")]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_any_2xx_is_an_answer_on_either_protocol(host: str) -> None:
    with Doorstep(204, host=host) as step:
        assert asyncio.run(rung(step.url)) == [Ring(step.url, True, "status 204")]


def test_a_request_that_is_held_until_the_worker_is_there_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "ATTEMPT_S", 0.4)
    with Doorstep("silence", 202) as step:
        (ring,) = asyncio.run(rung(step.url))
    assert ring.answered
    assert len(step.visits) == 2
    assert step.gaps()[0] > 0.35


@pytest.mark.parametrize("status", [301, 400, 401, 405, 500])
def test_any_other_answer_is_told_once_and_given_up(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def ring(step: Doorstep) -> None:
        bell = Doorbell([step.url], Complaints())
        for _ in range(2):
            bell.ring()
            assert [ring.answered for ring in await bell.rung()] == [False]
        await bell.close()

    with Doorstep(status) as step, caplog.at_level(logging.WARNING):
        asyncio.run(ring(step))
    assert len(step.visits) == 2
    assert [record.message for record in caplog.records] == [f"Nobody was woken by POST {step.url}: status {status}"]


@pytest.mark.parametrize("answer", ["silence", "hang up", "rubbish", 404, None])
def test_it_gives_up_after_a_minute(
    answer: Answer | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert doorbell.RING_FOR_S == 60
    monkeypatch.setattr(doorbell, "RING_FOR_S", 1.0)
    monkeypatch.setattr(doorbell, "ATTEMPT_S", 0.3)
    with Doorstep(answer or 202, refuses_for_s=60 if answer is None else 0) as step:
        began = time.monotonic()
        (ring,) = asyncio.run(rung(step.url))
    assert not ring.answered
    assert ring.said.endswith(", and so for 1 s")
    assert time.monotonic() - began < 5
    assert len(caplog.records) == 1
    assert (len(step.visits) > 1) is (answer is not None)


def test_a_host_without_an_address_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "RING_FOR_S", 0.5)
    (ring,) = asyncio.run(rung("http://worker.invalid/wake"))
    assert not ring.answered
    assert "and so for" in ring.said


def test_over_tls_the_certificate_has_to_be_one_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "localhost.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-keyout", certificate, "-out", tmp_path / "certificate",
        ], check=True, capture_output=True,
    )  # fmt: skip
    with certificate.open("a") as both:
        both.write((tmp_path / "certificate").read_text())
    doorbell._trusting.cache_clear()
    try:
        with Doorstep(202, certificate=certificate) as step:
            (ring,) = asyncio.run(rung(step.url))
            assert (ring.answered, ring.said) == (False, "its certificate is not valid: self-signed certificate")
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            doorbell._trusting.cache_clear()
            (ring,) = asyncio.run(rung(step.url))
            assert ring.answered
    finally:
        doorbell._trusting.cache_clear()
    assert len(step.visits) == 1


def test_rings_that_come_together_are_one_and_one_more_after_a_second() -> None:
    async def main(step: Doorstep) -> None:
        bell = Doorbell([step.url])
        for _ in range(1000):
            bell.ring()
        await bell.rung()
        assert len(step.visits) == 1
        for _ in range(1000):
            bell.ring()
            await asyncio.sleep(0)
        await bell.rung()
        await bell.close()

    with Doorstep(202) as step:
        asyncio.run(main(step))
    assert len(step.visits) == 2
    assert step.gaps()[0] > 0.9


def test_who_rings_while_another_is_being_answered_has_a_request_of_his_own() -> None:
    # The worker that answers now may have looked for jobs before his was written.
    async def main(step: Doorstep) -> None:
        bell = Doorbell([step.url])
        bell.ring()
        await asyncio.to_thread(wait_until, lambda: len(step.visits) == 1)
        bell.ring()
        await bell.rung()
        await bell.close()

    with Doorstep(202) as step:
        asyncio.run(main(step))
    assert len(step.visits) == 2


def test_every_address_is_rung_and_none_waits_for_another() -> None:
    async def main(*steps: Doorstep) -> float:
        bell = Doorbell([step.url for step in steps])
        began = time.monotonic()
        bell.ring()
        await asyncio.to_thread(wait_until, lambda: all(step.visits for step in steps))
        took_s = time.monotonic() - began
        await bell.close()
        return took_s

    with Doorstep("silence") as first, Doorstep(404, 202) as second, Doorstep(202) as third:
        assert asyncio.run(main(first, second, third)) < 5


@pytest.mark.parametrize("answer", [202, "silence", 404])
def test_closing_at_once_has_rung_and_takes_no_longer_than_2_s(answer: Answer) -> None:
    async def main(step: Doorstep) -> float:
        bell = Doorbell([step.url])
        bell.ring()
        began = time.monotonic()
        await bell.close()
        assert not bell.rings
        return time.monotonic() - began

    with Doorstep(answer) as step:
        took_s = asyncio.run(main(step))
        assert len(step.visits) >= 1
    assert took_s < (1.5 if answer == 202 else 4)
    assert answer == 202 or took_s > 1.9


def test_closing_does_not_wait_for_the_pause_after_an_answer() -> None:
    async def main(step: Doorstep) -> float:
        bell = Doorbell([step.url])
        bell.ring()
        await bell.rung()
        bell.ring()
        began = time.monotonic()
        await bell.close()
        await bell.close()
        return time.monotonic() - began

    with Doorstep(202) as step:
        assert asyncio.run(main(step)) < 0.8
        assert len(step.visits) == 2


def test_closing_what_never_rang_is_nothing() -> None:
    async def main() -> None:
        bell = Doorbell(["http://127.0.0.1:1/wake"])
        assert await bell.rung() == []
        await bell.close()

    asyncio.run(main())


@pytest.mark.parametrize("answer", [202, "silence"])
def test_an_event_loop_that_ends_without_closing_has_rung_once(answer: Answer) -> None:
    async def main(step: Doorstep) -> None:
        Doorbell([step.url]).ring()

    with Doorstep(answer) as step:
        began = time.monotonic()
        asyncio.run(main(step))
        assert time.monotonic() - began < 5
        assert len(step.visits) == 1


def test_nothing_heavy_is_imported_for_it() -> None:
    with Doorstep(202) as step:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import asyncio, sys; from runtime.adapters.doorbell import Doorbell\n"
                "async def main():\n"
                f"    bell = Doorbell(['{step.url}'])\n"
                "    bell.ring()\n"
                "    print(*await bell.rung())\n"
                "asyncio.run(main())\n"
                "print({'aiohttp', 'http', 'redis', 'msgspec'} & {name.partition('.')[0] for name in sys.modules})",
            ],
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    assert "answered=True" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
