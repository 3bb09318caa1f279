"""`runtime inspect --decode`: what a worker would refuse, said before anybody switches."""

from __future__ import annotations

import json
import pickle
import time
from typing import Any

import pytest
from redis import Redis

from tests.arq_compat import documented
from tests.processes import command

BODY: dict[str, Any] = {"t": None, "f": "task", "a": (), "k": {}, "et": 1}


class Own:
    pass


@pytest.fixture
def url(tcp_url: str) -> str:
    """A queue of good bodies and bad ones."""
    item = documented.Item("a", [])
    bodies: dict[str, bytes] = {
        "good": pickle.dumps(BODY),
        "json": json.dumps({**BODY, "a": []}).encode(),
        "item 1": pickle.dumps({**BODY, "a": (item,)}),
        "item 2": pickle.dumps({**BODY, "k": {"item": item}}),
        "both": pickle.dumps({**BODY, "a": (item, Own())}),
        "shapeless": pickle.dumps({"f": "task"}),
        "torn": pickle.dumps(BODY)[:-3],
    }
    with Redis.from_url(tcp_url) as redis:
        for job_id, body in bodies.items():
            redis.set(f"arq:job:{job_id}", body)
            redis.zadd("arq:queue", {job_id: time.time() * 1000})
        redis.zadd("arq:queue", {"gone": 1, "deferred": 9e12})
        redis.set("arq:job:deferred", bodies["good"])
        redis.zadd("other", {"good": 1})
    return tcp_url


def decode(url: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    done = command("inspect", "--decode", "--json", *arguments, REDIS_URL=url, APPLICATION_REDIS=url)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)["bodies"]


def test_bodies_are_counted_and_the_refused_named(url: str) -> None:
    code, (found,) = decode(url, "-Q", "arq:queue")
    item, own = "tests.arq_compat.documented.Item", f"{__name__}.Own"
    assert code == 1
    assert (found["readable"], found["refused"], found["missing"]) == (3, 5, 1)
    told = {(why["reason"], tuple(why["types"]), why["jobs"]) for why in found["reasons"]}
    refers = "it refers to a class that is not on the list"
    assert told == {
        (refers, (item,), 2),
        (refers, (item, own), 1),
        ("the body's 'a' is missing", (), 1),
        ("it is cut off", (), 1),
    }


def test_an_application_reads_what_it_vouches_for(url: str) -> None:
    code, (found,) = decode(url, "--arq", "tests.arq_compat.documented.Jobs")
    assert (code, found["readable"], found["refused"]) == (1, 5, 3)
    assert [f"{__name__}.Own"] in [list(why["types"]) for why in found["reasons"]]
    code, (found,) = decode(url, "-Q", "other")
    assert (code, found["readable"], found["refused"]) == (0, 1, 0)


def test_people_read_it_too(url: str) -> None:
    done = command("inspect", "--decode", "-Q", "arq:queue", REDIS_URL=url)
    assert "tests.arq_compat.documented.Item" in done.stdout
    assert done.stdout.splitlines()[0].split() == ["QUEUE", "READABLE", "REFUSED", "MISSING"]
    assert command("inspect", "jobs", "--decode", REDIS_URL=url).returncode == 2
