"""Which paid APIs the handlers call through `ctx.http`, and which buckets those have."""

from collections.abc import Iterable

from runtime.core.limits import Bucket
from runtime.ports import Api

UNLIMITED = "100000/s"
"""For an API of which no bucket is declared: one that only closes, when the provider says so."""


class Apis:
    """Those whose language we know, and those for which a bucket is declared.

    The bucket of a dimension is named `<api>.<dimension>`: openai.requests, openai.tokens. `judit` alone counts
    requests. Keyed ones are the handlers' to take from. What is known of providers is imported with the first call,
    not with the worker.
    """

    def __init__(self, buckets: Iterable[Bucket]) -> None:
        self._buckets = [bucket for bucket in buckets if bucket.key is None]
        self._known: dict[str, Api | None] = {}

    def find(self, name: str) -> Api | None:
        """The API of this name; None for any other, which is called as it is."""
        if name not in self._known:
            from runtime.providers import PROVIDERS, provider

            buckets = self._of(name)
            if not buckets and name in PROVIDERS:
                buckets = {"requests": Bucket(name, UNLIMITED)}
            self._known[name] = Api(name, provider(name), buckets) if buckets else None
        return self._known[name]

    def _of(self, name: str) -> dict[str, Bucket]:
        """The buckets of an API, whose name may have dots in it, by dimension."""
        found = {
            bucket.name.removeprefix(name).removeprefix("."): bucket
            for bucket in self._buckets
            if bucket.name == name or bucket.name.startswith(f"{name}.")
        }
        return {dimension or "requests": found[dimension] for dimension in sorted(found)}
