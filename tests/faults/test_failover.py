"""A replica takes over from the primary; the worker has one address, behind which somebody follows the primary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from runtime.adapters.redis import keys
from tests.faults import campaign, jobs
from tests.faults.ledger import Ledger, executions
from tests.faults.test_weather import assert_one_line_for_each_cause, done, results, works
from tests.processes import enqueue, program, wait_until
from tests.relay import Relay
from tests.servers import Server, free_port

RESUMED_S = 5.0
"""How soon after the promotion work goes on."""
SLACK_S = 3.0
"""What a machine that is busy with other things may add."""
QUEUE = "arq:queue"


def role(server: Server) -> str:
    try:
        with Redis.from_url(server.url) as redis:
            return str(redis.info("replication")["role"])
    except RedisError:  # whom they demote the sentinels cut off from all clients, and so from us
        return "not known"


def port_of(server: Server) -> int:
    return int(server.tcp_url.rpartition(":")[2])


def make_replica(server: Server, of: Server) -> None:
    with Redis.from_url(server.url) as redis:
        redis.replicaof("127.0.0.1", port_of(of))
    wait_until(lambda: _has_caught_up(server), what="the replica has caught up")


def _has_caught_up(server: Server) -> bool:
    with Redis.from_url(server.url) as redis:
        return str(redis.info("replication").get("master_link_status")) == "up"


def wait_until_replicated(primary: Server) -> None:
    with Redis.from_url(primary.url) as redis:
        redis.set("rt:try:replicated", "", px=1000)
        assert redis.wait(1, 10_000) == 1


def counted(server: Server) -> int:
    with Redis.from_url(server.url) as redis:
        ((_, count),) = redis.pubsub_numsub(keys.here(QUEUE))
        return int(count)


def clients(server: Server) -> list[str]:
    """What connections there are, but for ours and those between servers."""
    with Redis.from_url(server.url, decode_responses=True) as redis:
        ours = redis.client_id()
        return [one["cmd"] for one in redis.client_list() if one["flags"][0] in "NPbx" and int(one["id"]) != ours]


def test_a_connection_to_a_primary_that_was_demoted_is_given_up(ledger: Ledger) -> None:
    """Nobody cuts it, and the demoted one lives on: all that tells is READONLY."""
    with Server() as first, Server() as second, Relay(first.url.removeprefix("unix://")) as relay:
        make_replica(second, first)
        settings: dict[str, Any] = {"RUNTIME_HTTP": "on", "PORT": 0, "slots": 20, "lease": "4s"}
        with campaign.worker(relay.url, ledger, **settings).up() as worker:
            worker.wait_for("HTTP_LISTENING")
            wait_until(lambda: counted(first) == 1)
            before = enqueue(first.url, *(jobs.work.request(0.3) for _ in range(40)), jobs.work.request(3.0))
            wait_until(lambda: len(done(ledger)) >= 10)
            wait_until_replicated(first)
            with Redis.from_url(second.url) as redis:
                redis.replicaof("NO", "ONE")
            relay.lead_to(second.url.removeprefix("unix://"))
            make_replica(first, second)
            promoted = time.monotonic()
            (after,) = enqueue(second.url, jobs.work.request(0.0))
            wait_until(lambda: after in done(ledger), RESUMED_S + SLACK_S, "it goes on with the new primary")
            print(f"\non again after {time.monotonic() - promoted:.1f} s")
            wait_until(lambda: results(second.url) >= {*before, after}, what="every outcome is recorded")
            wait_until(lambda: works(worker))
            wait_until(lambda: counted(second) == 1, what="it is counted at the new primary")
            assert counted(first) == 0
            # The ear hears as well of what is replicated.
            wait_until(lambda: set(clients(first)) <= {"subscribe"}, what="nothing else stays with the old one")
            assert worker.events("ACTOR_CRASH") == []
            assert_one_line_for_each_cause(worker)
            assert worker.stop() == 0


CONFIG = """
port {port}
sentinel monitor main 127.0.0.1 {primary} 2
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 5000
"""


@contextmanager
def watched(primary: Server, folder: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """Three sentinels of this primary; the address of the proxy that follows them, and their ports."""
    ports = [free_port() for _ in range(4)]
    with ExitStack() as stack:
        for port in ports[1:]:
            config = folder / f"{port}.conf"
            config.write_text(CONFIG.format(port=port, primary=port_of(primary)))
            stack.enter_context(program(primary.binary, config, "--sentinel"))
        stack.enter_context(program(sys.executable, "-m", "tests.faults.follower", *ports))
        for port in ports[1:]:
            wait_until(partial(_knows_all, port), what="the sentinels know each other and the replica")
        yield f"redis://127.0.0.1:{ports[0]}", ports[1:]


def _knows_all(port: int) -> bool:
    try:
        with Redis(port=port, decode_responses=True) as sentinel:
            main: dict[str, Any] = sentinel.sentinel_master("main")
            return (main["num-other-sentinels"], main["num-slaves"]) == (2, 1)
    except RedisError:
        return False


@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_WEATHER") != "all", reason="only with RUNTIME_TEST_WEATHER=all")
@pytest.mark.parametrize("how", ["killed", "asked to"])
def test_sentinels_promote_a_replica_and_work_goes_on(ledger: Ledger, tmp_path: Path, how: str) -> None:
    with Server() as first, Server() as second:
        make_replica(second, first)
        with watched(first, tmp_path) as (url, sentinels):
            settings: dict[str, Any] = {"RUNTIME_HTTP": "on", "PORT": 0, "slots": 20}
            with campaign.worker(url, ledger, **settings).up() as worker:
                worker.wait_for("HTTP_LISTENING")
                before = enqueue(url, *(jobs.work.request(0.3) for _ in range(300)))
                wait_until(lambda: len(done(ledger)) >= 30)
                wait_until_replicated(first)
                if how == "killed":
                    first.kill()
                else:
                    with Redis(port=sentinels[0]) as sentinel:
                        sentinel.execute_command("SENTINEL", "FAILOVER", "main")
                wait_until(lambda: role(second) == "master", what="the replica is promoted")
                if how == "asked to":  # the sentinels let the old one serve for 10 s still, and what it takes is lost
                    wait_until(lambda: role(first) == "slave", what="the old primary is demoted")
                promoted = time.monotonic()
                (after,) = enqueue(second.url, jobs.work.options(priority=9).request(0.0))
                wait_until(lambda: after in done(ledger), RESUMED_S + SLACK_S, "it goes on with the new primary")
                print(f"\n{how}: on again after {time.monotonic() - promoted:.1f} s")
                first.start()  # it comes back as it was, and is told what it is now
                wait_until(lambda: results(second.url) >= {*before, after}, what="every outcome is recorded")
                wait_until(lambda: role(first) == "slave", what="the old primary is a replica")
                (last,) = enqueue(url, jobs.work.request(0.0))
                wait_until(lambda: last in results(second.url))
                wait_until(lambda: works(worker))
                wait_until(lambda: counted(second) == 1)
                again = [job for job, runs in executions(ledger.lines()).items() if len(runs) > 1]
                print(f"{len(again)} jobs ran twice")
                assert worker.events("ACTOR_CRASH") == []
                assert_one_line_for_each_cause(worker)
                assert worker.stop() == 0
