"""Which paid APIs the handlers call through `ctx.http`, and which buckets those have."""

from collections.abc import Iterable

from runtime.core.limits import Bucket
from runtime.ports import Api

UNLIMITED = "100000/s"
"""For an API of which no bucket is declared: one that only closes, when the provider says so."""


class Apis:
    """Those whose language we know, and those for which a bucket is declared.

    The bucket of a dimension is named `<api>.<dimension>`: openai.requests, openai.tokens. `judit` alone counts
    requests. What is known of providers is imported with the first call, not with the worker.
    """

    def __init__(self, buckets: Iterable[Bucket]) -> None:
        self._buckets: dict[str, dict[str, Bucket]] = {}
        for bucket in buckets:
            api, _, dimension = bucket.name.partition(".")
            self._buckets.setdefault(api, {})[dimension or "requests"] = bucket
        self._known: dict[str, Api | None] = {}

    def find(self, name: str) -> Api | None:
        """The API of this name; None for any other, which is called as it is."""
        if name not in self._known:
            from runtime.providers import PROVIDERS, provider

            paid = name in self._buckets or name in PROVIDERS
            buckets = self._buckets.get(name) or {"requests": Bucket(name, UNLIMITED)}
            self._known[name] = Api(name, provider(name), buckets) if paid else None
        return self._known[name]
