"""arq applications as people have them, by arq itself and by `runtime serve --arq`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job
from redis import Redis

from runtime import settings
from runtime.app import listen
from runtime.arq import Session, crons, read
from runtime.core.errors import SettingsInvalid
from tests.arq_compat.test_arq_mode import Make, do, enqueue, outcome
from tests.certificates import Authority, served
from tests.processes import wait_until

APPLICATIONS = "tests.arq_compat.everyday"
SOON_S = 30.0


@pytest.fixture(params=["arq", "runtime"])
def make(request: pytest.FixtureRequest, tcp_url: str, tmp_path: Path) -> Make:
    return Make(request.param, tcp_url, tmp_path, APPLICATIONS)


@pytest.fixture
def ours(tcp_url: str, tmp_path: Path) -> Make:
    return Make("runtime", tcp_url, tmp_path, APPLICATIONS)


def result(make: Make, job_id: str, queue: str = "arq:queue") -> Any:
    async def ask(pool: ArqRedis) -> Any:
        return await Job(job_id, pool, queue).result(timeout=5)

    return do(make, ask)


# Hooks


def test_context_variables_that_hooks_set_are_seen_by_jobs_and_later_hooks(make: Make) -> None:
    enqueue(make, ("variables", (), {"_job_id": "one"}))
    assert make.burst("Variables").returncode == 0
    assert result(make, "one") == ("of startup", "of one")
    assert make.noted() == ["end of startup of one", "after of startup of one"]


def test_a_timeout_is_the_functions_alone(make: Make) -> None:
    enqueue(make, ("takes", (0.1,), {"_job_id": "in time"}), ("takes", (30,), {"_job_id": "late"}))
    assert make.burst("SlowHooks").returncode == 0
    assert outcome(make, "in time") == (True, "done", 1)
    success, error, _ = outcome(make, "late")
    assert (success, type(error)) == (False, TimeoutError)
    assert sorted(make.noted()) == ["end in time", "end late", "start in time", "start late"]


# What is passed on


def test_an_exception_may_be_an_argument(make: Make) -> None:
    arguments = ((ValueError("one", 2),), {"others": [KeyError("k"), (OSError(2, "gone"),)], "_job_id": "one"})
    enqueue(make, ("report", *arguments))
    assert make.burst("Passes").returncode == 0
    assert result(make, "one") == ["ValueError('one', 2)", "KeyError('k')", "(FileNotFoundError(2, 'gone'),)"]

    async def ask(pool: ArqRedis) -> Any:
        return await Job("one", pool).result_info()

    kept = do(make, ask)
    assert (repr(kept.args), repr(kept.kwargs["others"][0])) == ("(ValueError('one', 2),)", "KeyError('k')")


def test_a_large_file_may_be_a_result(make: Make) -> None:
    enqueue(make, ("file", (12_000_000,), {"_job_id": "one"}))
    assert make.burst("Passes").returncode == 0
    assert len(result(make, "one")) == 12_000_000


# What settings may say


def test_unusual_numbers_and_names(make: Make) -> None:
    enqueue(
        make,
        ("the_task", (1,), {"_job_id": "one", "_queue_name": "mail=2"}),
        ("other", (2,), {"_job_id": "two", "_queue_name": "mail=2"}),
    )
    done = make.burst("Unusual")
    assert done.returncode == 0, done.stderr
    assert [result(make, job_id, "mail=2") for job_id in ("one", "two")] == [43, 44]
    if make.kind == "runtime":
        assert "max_jobs is 5000: no more than 1000 are run at once" in done.stdout


def test_a_health_key_that_is_written_all_the_time_is_written_twice_a_second(make: Make) -> None:
    with make.start("Healthy"), Redis.from_url(make.url) as client:
        wait_until(lambda: client.exists("arq:queue:health-check"), SOON_S)

        def written() -> int:
            counted: Mapping[str, Any] = client.info("commandstats")
            return sum(counted.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("set", "psetex"))

        before = written()
        time.sleep(3)
        assert 1 <= written() - before <= 12


def test_a_function_may_block_as_long_as_it_may_run() -> None:
    """The watchdog ends a worker whose event loop stands still for longer."""

    def limit_s(name: str, **env: str) -> float:
        return settings.read(read(f"{APPLICATIONS}.{name}").environment(env)).block_limit_s

    assert limit_s("Patient") == 1810
    assert limit_s("Healthy") == 310, "arq's default timeout"
    assert limit_s("Impatient") == 60
    assert limit_s("Patient", RUNTIME_BLOCK_LIMIT="90s") == 90


def test_poll_delay_says_how_often_is_looked_where_the_server_does_not_tell() -> None:
    def look_s(name: str) -> float:
        return Session(read(f"{APPLICATIONS}.{name}"), burst=False).look_s

    assert look_s("Impatient") == 1.5
    assert look_s("Patient") == float("inf")


def test_a_second_worker_of_a_machine_takes_another_port(ours: Make) -> None:
    del ours.settings["RUNTIME_HTTP"]
    with ExitStack() as held:
        with suppress(SettingsInvalid):  # somebody has it already
            held.enter_context(listen(3002))
        enqueue(ours, ("the_task", (1,), {"_job_id": "one"}))
        done = ours.burst("Patient")
        assert done.returncode == 0, done.stderr
        assert "cannot listen on port 3002: HTTP is on port" in done.stdout
        assert result(ours, "one") == 43
        ours.settings["PORT"] = 3002
        assert ours.burst("Patient").returncode == 78, "who has asked for a port is to have it"


def test_an_authority_may_be_given_as_text(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with served(authority.issue("server")) as (server, url):
        make = Make("runtime", url, tmp_path, APPLICATIONS)
        make.settings["APPLICATION_PORT"] = url.rpartition(":")[2].partition("/")[0]
        make.settings["APPLICATION_AUTHORITY"] = authority.path.read_text()
        with make.start("Trusting"), Redis.from_url(server.url) as client:
            wait_until(lambda: client.exists("arq:queue:health-check"), SOON_S)


def test_a_day_that_no_year_has_is_refused_without_a_search() -> None:
    assert not crons.is_in_some_year(2, 30)
    assert not crons.is_in_some_year({4, 6}, [31])
    assert not crons.is_in_some_year(13, 1)
    assert crons.is_in_some_year(2, 29)
    assert crons.is_in_some_year({2, 3}, 31)
    assert crons.is_in_some_year(None, 31)
    assert crons.is_in_some_year(2, None)


def test_a_cron_job_of_each_worker_leaves_no_result(make: Make) -> None:
    assert make.burst("Each").returncode == 0
    (line,) = make.noted()

    async def ask(pool: ArqRedis) -> Any:
        return await Job(line.split()[1], pool).result_info()

    assert do(make, ask) is None


# Logs


def test_a_log_file_of_the_application_is_written(make: Make, tmp_path: Path) -> None:
    make.settings["APPLICATION_LOG"] = tmp_path / "log"
    enqueue(make, ("logged", (), {"_job_id": "one"}))
    assert make.burst("Logs").returncode == 0
    assert "INFO:application:logged by one" in (tmp_path / "log").read_text()
