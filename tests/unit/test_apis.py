"""Which APIs are paid ones, and which buckets they have."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from runtime.apis import UNLIMITED, Apis
from runtime.core.limits import Bucket
from runtime.providers import openai, plain
from runtime.registry import equipment

REQUESTS, TOKENS = Bucket("openai.requests", "500/m"), Bucket("openai.tokens", "30000/m")


def of(name: str, *declared: Bucket) -> Mapping[str, Bucket]:
    api = Apis(declared).find(name)
    assert api is not None
    return api.buckets


def test_the_buckets_of_an_api_are_those_of_its_name() -> None:
    assert of("openai", REQUESTS, Bucket("openai-eu.requests", "1/s"), TOKENS) == {
        "requests": REQUESTS,
        "tokens": TOKENS,
    }


def test_a_bucket_with_the_name_alone_counts_requests() -> None:
    judit = Bucket("judit", "180/m")
    assert of("judit", judit) == {"requests": judit}


def test_an_api_may_have_dots_in_its_name() -> None:
    host = Bucket("api.example.com", "1/s")
    tokens = Bucket("api.example.com.tokens", "1/s")
    assert of("api.example.com", host, tokens) == {"requests": host, "tokens": tokens}


def test_a_known_api_without_a_bucket_has_one_that_only_closes() -> None:
    api = Apis([]).find("openai")
    assert api is not None
    assert api.provider is openai
    assert api.buckets == {"requests": Bucket("openai", UNLIMITED)}


def test_an_api_that_nobody_knows_but_a_bucket_is_read_by_what_http_says() -> None:
    api = Apis([Bucket("acme.requests", "1/s")]).find("acme")
    assert api is not None
    assert api.provider is plain


@pytest.mark.parametrize("name", ["web", "https://example.com/a b", "", "open", "openai.requests.more"])
def test_any_other_name_is_called_as_it_is(name: str) -> None:
    assert Apis([REQUESTS]).find(name) is None


def test_the_bucket_of_one_key_is_not_the_apis(tmp_path: Path) -> None:
    (tmp_path / "keyed_buckets.py").write_text(
        "from runtime import Bucket\n"
        "one = Bucket('crm.requests', '1/s')['tenant-1']\n"
        "all_of_them = Bucket('crm.requests', '1/s')\n"
        "other = Bucket('mail.requests', '1/s')['tenant-1']\n"
    )
    found = equipment(["keyed_buckets"], tmp_path).buckets
    assert of("crm", *found) == {"requests": Bucket("crm.requests", "1/s")}
    assert Apis(found).find("mail") is None
