"""Secrets where no worker runs yet, or none any more; the campaign has the others (`tests/campaign/secrecy.py`)."""

from __future__ import annotations

import resource
from urllib.parse import quote

import pytest

from tests.campaign.canaries import PASSWORD, leaks
from tests.processes import Worker, command

MODULE = "tests.e2e.leaky"
ENCODED = quote(PASSWORD, safe="")


@pytest.mark.parametrize(
    "address",
    [f"user:{ENCODED}@127.0.0.1:1/0", f":{PASSWORD}@127.0.0.1:1", f"user:{PASSWORD}@[::1", ":[x]p@ssword@127.0.0.1:1",
     f":{ENCODED}@127.0.0.1:port", f":{ENCODED}@host.invalid:6379"],
)  # fmt: skip
def test_no_form_of_an_address_shows_its_password(address: str) -> None:
    done = command("dlq", "list", REDIS_URL=f"redis://{address}")
    assert done.returncode in (69, 78), done.stderr
    assert not list(leaks("it", done.stdout + done.stderr, ["p@ssword", "p%40ssword", "[x]"]))


def test_a_worker_that_crashes_leaves_no_core(redis_url: str) -> None:
    with Worker(MODULE, redis=redis_url).up() as worker:
        soft, _ = resource.prlimit(worker.pid, resource.RLIMIT_CORE)
        assert soft <= 1
