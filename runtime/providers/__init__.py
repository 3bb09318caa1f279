"""What we know of the providers of paid APIs: what a request will cost, and what an answer says. No I/O."""

from collections.abc import Mapping

from runtime.ports import Provider
from runtime.providers import anthropic, judit, openai, plain

PROVIDERS: Mapping[str, Provider] = {"anthropic": anthropic, "judit": judit, "openai": openai}


def provider(name: str) -> Provider:
    """The provider of that name, or what is true of every HTTP API."""
    return PROVIDERS.get(name, plain)
