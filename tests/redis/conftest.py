from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.redis.store import Store


@pytest.fixture
def store(redis_url: str, assert_keys_bounded: Callable[..., None]) -> Iterator[Store]:
    """A queue on an empty server; what the test leaves behind has a TTL or is meant to have none."""
    with Store(redis_url) as store:
        yield store
        assert_keys_bounded(redis_url, *store.spoiled)
