"""The platform itself, before anything is judged on it: what it counts, when it ends a process, and what wakes it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from tests.platform.dummy import Dummy
from tests.platform.edge import First
from tests.platform.network import Network
from tests.platform.service import Service, Silence
from tests.platform.sleeping import reachable
from tests.platform.sockets import Sockets
from tests.processes import wait_until
from tests.servers import Server

IDLE_S = 2.0
IP, UDP = 20, 8


@contextmanager
def service(
    kind: str, network: Network | Sockets, *, to: str = "", start_s: float = 0.0, **options: Any
) -> Iterator[Service]:
    dummy = Dummy(kind, inside=network.enter(), PORT=network.port, TO=to, START_S=start_s)
    with Service(dummy, network, idle_s=IDLE_S, **options) as service:
        yield service


def post(url: str, body: bytes = b"", timeout_s: float = 30.0) -> tuple[int, dict[str, Any]]:
    """One request, and no second try."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
    try:
        connection.request("POST", "/wake", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def answers(url: str) -> bool:
    try:
        return post(url)[0] == 202
    except ConnectionRefusedError:
        return False


def run_inside(network: Network, program: str) -> None:
    subprocess.run([*network.enter(), sys.executable, "-c", program], check=True, timeout=30)


def test_silence_lasts_from_the_sample_that_saw_the_last_byte() -> None:
    silence = Silence(sent=100, since=0.0)
    assert silence.lasted(100, 300.0) == 300.0
    assert silence.lasted(101, 600.0) == 0.0
    assert silence.lasted(101, 900.0) == 300.0


def test_each_byte_is_counted_and_no_other(private: Network) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind((private.outside, 0))
        port = here.getsockname()[1]
        time.sleep(1)
        assert (private.sent(), private.received()) == (0, 0), "the wire says nothing by itself"
        run_inside(
            private,
            "import socket; wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"for size in range(1, 1001): wire.sendto(b'x' * size, ('{private.outside}', {port}))",
        )
        assert private.sent() == sum(range(1, 1001)) + 1000 * (IP + UDP)
        assert private.received() == 0
        before = private.sent()
        here.sendto(b"x" * 500, (private.inside, 9))
        assert private.received() == 500 + IP + UDP
        assert private.sent() > before, "nobody is there, which is said"


def test_a_stream_counts_with_its_headers_and_what_is_said_inside_does_not(private: Network) -> None:
    size = 10_000_000
    with socket.create_server((private.outside, 0)) as server:
        sender = subprocess.Popen(
            [
                *(*private.enter(), sys.executable, "-c"),
                "import socket\n"
                f"wire = socket.create_connection(('{private.outside}', {server.getsockname()[1]}))\n"
                f"wire.sendall(bytes({size})); wire.close()",
            ]
        )
        wire, _ = server.accept()
        with wire:
            got = 0
            while part := wire.recv(1 << 20):
                got += len(part)
        assert sender.wait(30) == 0
    assert got == size
    assert size < private.sent() < 1.06 * size
    assert private.received() < 0.06 * size
    before = private.sent()
    run_inside(
        private,
        "import socket; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname())\n"
        "c.sendall(b'x' * 1000); assert len(s.accept()[0].recv(1000)) == 1000",
    )
    assert private.sent() == before


def test_two_networks_count_apart(private: Network) -> None:
    with Network() as other:
        program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{}', 9))"
        run_inside(other, program.format(other.outside))
        assert (other.sent(), private.sent()) == (1 + IP + UDP, 0)


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_a_silent_service_is_put_to_sleep_without_notice_or_with_sigterm(
    network: Network | Sockets, ended_by: signal.Signals
) -> None:
    with service("silent", network, ended_by=ended_by) as quiet:
        asleep = quiet.wait_for("asleep")
        lasted = asleep.at - quiet.wait_for("started").at
        assert IDLE_S <= lasted < IDLE_S + 10
        assert quiet.worker.wait() == (-signal.SIGKILL if ended_by == signal.SIGKILL else 0)
        assert len(quiet.worker.events("SIGTERM")) == (ended_by == signal.SIGTERM)
        time.sleep(1)
        assert len(quiet.moments("started")) == 1, "nothing wakes it by itself"


def test_a_chatty_service_never_sleeps(network: Network | Sockets) -> None:
    with (
        socket.create_server((network.outside, 0)) as heard,
        service("chatty", network, to=f"{network.outside}:{heard.getsockname()[1]}") as chatty,
    ):
        time.sleep(3 * IDLE_S)
        assert chatty.worker.running
        assert not chatty.moments("asleep")


def test_one_open_socket_is_enough_never_to_sleep(network: Network | Sockets) -> None:
    with Server() as server, Redis.from_url(server.url) as redis:
        to = urlsplit(reachable(server, network, keepalive_s=1)).netloc
        with service("holding", network, to=to) as holding:
            time.sleep(3 * IDLE_S)
            assert not holding.moments("asleep"), "its kernel answers the probes of the server"
            redis.config_set("tcp-keepalive", 0)
            redis.client_kill_filter(_type="normal", skipme=True)
            holding.wait_for("asleep")


def test_the_end_of_its_connections_does_not_wake_it(network: Network | Sockets) -> None:
    """Their other side closes a little later, which comes in when the process is gone."""

    def close_late() -> None:
        with here.accept()[0] as connection:
            connection.recv(1)
            time.sleep(0.1)

    with (
        socket.create_server((network.outside, 0)) as here,
        ThreadPoolExecutor(1) as beside,
        service("holding", network, to=f"{network.outside}:{here.getsockname()[1]}") as holding,
    ):
        closed = beside.submit(close_late)
        holding.wait_for("asleep")
        closed.result(10)
        time.sleep(1)
        assert len(holding.moments("started")) == 1


def test_what_comes_in_keeps_it_awake_by_its_answer_only(network: Network | Sockets) -> None:
    with service("answers", network) as answering:
        answering.wait_for("listens")
        until = time.monotonic() + 3 * IDLE_S
        while time.monotonic() < until:
            assert post(answering.public_url)[0] == 202
            time.sleep(IDLE_S / 3)
        assert not answering.moments("asleep")
        last = time.monotonic()
        asleep = answering.wait_for("asleep")
        assert asleep.at - last >= 0.5 * IDLE_S


def test_what_comes_in_and_is_not_answered_lets_it_sleep(private: Network) -> None:
    """Datagrams to a port on which somebody listens and does not answer."""
    with (
        service("silent", private) as silent,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire,
        subprocess.Popen(
            [
                *(*private.enter(), sys.executable, "-c"),
                "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
                "s.bind(('0.0.0.0', 99)); sys.stdin.read()",
            ],
            stdin=subprocess.PIPE,
        ),
    ):
        until = time.monotonic() + 30
        time.sleep(0.5)
        while not silent.moments("asleep") and time.monotonic() < until:
            wire.sendto(b"x", (private.inside, 99))
            time.sleep(0.1)
        assert silent.moments("asleep"), "inbound bytes do not count"
        assert private.received() > 0
        wire.sendto(b"x", (private.inside, 99))
        silent.wait_for("started", 2)


def test_a_request_is_held_until_the_service_listens(network: Network | Sockets) -> None:
    with service("answers", network, start_s=1.0) as sleeper:
        first = post(sleeper.public_url)[1]["pid"]
        asleep = sleeper.wait_for("asleep")
        assert not sleeper.worker.running
        assert sleeper.moments("listens")[-1].at < asleep.at
        began = time.monotonic()
        status, answer = post(sleeper.public_url, b"x" * 100_000)
        assert (status, answer["size"]) == (202, 100_000)
        assert answer["pid"] != first, "started afresh, not thawed"
        assert time.monotonic() - began >= 1.0
        assert sleeper.wait_for("woken").at >= began


def test_the_private_address_refuses_until_the_service_listens_and_wakes_it_all_the_same(private: Network) -> None:
    with service("answers", private, start_s=1.0) as sleeper:
        sleeper.wait_for("asleep")
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            post(sleeper.private_url)
        assert time.monotonic() - began < 0.5
        sleeper.wait_for("started", 2)
        wait_until(lambda: answers(sleeper.private_url))
        assert time.monotonic() - began >= 1.0


def test_the_public_address_may_know_of_no_such_application_for_a_while(network: Network | Sockets) -> None:
    with service("answers", network, first=First.NOT_FOUND, not_found_s=1.0) as sleeper:
        assert post(sleeper.public_url)[0] == 202, "not at a deploy"
        sleeper.wait_for("asleep")
        began = time.monotonic()
        answers = []
        while (answer := post(sleeper.public_url, b"body"))[0] != 202:
            answers.append(answer)
            time.sleep(0.1)
        assert time.monotonic() - began >= 1.0
        assert answers[0] == (404, {"status": "error", "code": 404, "message": "Application not found"})
        assert {status for status, _ in answers} == {404}


def test_the_public_address_may_say_bad_gateway_once(network: Network | Sockets) -> None:
    with service("answers", network, first=First.BAD_GATEWAY, start_s=0.5) as sleeper:
        for _ in range(2):
            assert post(sleeper.public_url)[0] == 202
            sleeper.wait_for("asleep", len(sleeper.moments("asleep")) + 1)
            assert post(sleeper.public_url)[0] == 502


def test_a_service_that_ends_by_itself_is_not_woken(network: Network | Sockets) -> None:
    with service("ends", network) as ended:
        ended.wait_for("ended")
        assert post(ended.public_url)[0] == 502
        time.sleep(0.5)
        assert len(ended.moments("started")) == 1
