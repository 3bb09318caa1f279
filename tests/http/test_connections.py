"""The limits on sockets. That no number of slow peers keeps anybody out is K5.6 of the campaign."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

import pytest

from tests.http.asking import HEAD, HEALTH, Site, closed_after, read_all


def test_a_head_of_eight_kib_is_the_largest(site: Site) -> None:
    start, end = b"GET /health HTTP/1.1\r\nHost: a\r\n", b"\r\n\r\n"

    def head(size: int) -> bytes:
        lines = b"X-A: " + b"a" * 4000 + b"\r\nX-B: "
        return start + lines + b"b" * (size - len(start) - len(lines) - len(end)) + end

    with site.dial(head(8192)) as wire:
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 ")
    with site.dial(head(8200)) as wire:
        answer = read_all(wire)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "head-too-large"


def test_a_head_that_never_ends_is_cut_at_eight_kib(site: Site) -> None:
    with site.dial(b"GET /health HTTP/1.1\r\n") as wire:
        for number in range(30):
            try:
                wire.sendall(b"X-%d: " % number + b"a" * 400 + b"\r\n")
            except OSError:
                break
            time.sleep(0.01)
        assert b" 431 " in read_all(wire)[:20]


def test_a_body_of_64_kib_is_the_largest(site: Site) -> None:
    def body(size: int) -> str:
        frame = '{"handler": "echo", "args": ["%s"]}'
        return frame % ("x" * (size - len(frame) + 2))

    assert site.ask("POST", "/jobs", body(65536)).code == 202
    refused = site.ask("POST", "/jobs", body(65537))
    assert (refused.code, refused.error) == (413, "body-too-large")
    assert site.ask("POST", "/jobs", body(1_000_000)).code == 413


def test_a_body_without_a_length_is_counted(site: Site) -> None:
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with site.dial(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + 5 * chunk) as wire:
        assert wire.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_silent_and_slow_heads_are_closed_after_five_seconds(site: Site) -> None:
    with site.dial() as silent, site.dial(HEALTH) as second:
        second.recv(65536)
        second.sendall(b"GET /health HTTP/1.1\r\n")  # a second head is as bounded as the first
        assert 3.5 < closed_after(silent) < 8
        assert closed_after(second) < 4


def test_a_dripping_head_gains_no_time(site: Site) -> None:
    with site.dial(b"GET /health HTTP/1.1\r\n") as wire:
        began = time.monotonic()
        try:
            while time.monotonic() - began < 12:
                wire.sendall(b"X-A: b\r\n")
                time.sleep(0.2)
        except OSError:
            pass
        assert 3.5 < time.monotonic() - began < 9


def test_a_slow_body_is_refused_after_ten_seconds(site: Site) -> None:
    with site.dial(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode()) as wire:
        began = time.monotonic()
        assert wire.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert 8 < time.monotonic() - began < 14


def test_an_idle_connection_is_closed_after_fifteen_seconds(site: Site) -> None:
    with site.dial(HEALTH) as wire:
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(6)
        wire.sendall(HEALTH)
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 "), "it may be used again meanwhile"
        assert 13 < closed_after(wire) < 20


def test_requests_that_come_together_are_answered_in_turn(site: Site) -> None:
    last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with site.dial(5 * HEALTH + last) as wire:
        assert read_all(wire).count(b"HTTP/1.1 200 ") == 6


def test_of_too_many_connections_the_one_that_has_waited_longest_gives_way(site: Site) -> None:
    with ExitStack() as open_ones:
        wires = []
        for _ in range(64):
            wire = open_ones.enter_context(site.dial(HEALTH))
            assert wire.recv(65536).startswith(b"HTTP/1.1 200 ")
            wires.append(wire)
        newest = open_ones.enter_context(site.dial(HEALTH))
        assert newest.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert closed_after(wires[0]) < 2
        wires[1].settimeout(0.3)
        with pytest.raises(TimeoutError):
            wires[1].recv(1)
