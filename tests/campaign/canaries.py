"""Secrets that every worker of the campaign is started with, and the look for them in what leaves it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from tests.faults.ledger import Breach

PLANTED: Mapping[str, str] = {
    "OPENAI_API_KEY": "canary-of-openai-7c1f55",
    "JUDIT_API_KEY": "canary-of-judit-99e0a2",
    "RUNTIME_TOKEN": "canary-of-the-token-0123456789abcdef",
    "RUNTIME_TEST_SECRET": "canary-bystander-41d3",
}
"""As the environment has them. A handler of a scenario may do with them what it should not."""
PASSWORD = "canary/of the?p@ssword#5d"
"""Redis', where a scenario sets one: it has the characters that encoders change."""
PLAIN_PASSWORD = "canary-of-the-password-5d"
"""The same for arq, which takes no other from an address."""


def spellings(secret: str) -> set[str]:
    """As encoders write it: for addresses, in JSON, in base64 (less the end, which depends on what follows)."""
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], b64encode(secret.encode()).decode()[:-4]}


def leaks(where: str, text: str, also: Iterable[str] = ()) -> Iterator[Breach]:
    """The canaries, and what else is named, in a text that has left a worker; with the words before them."""
    planted = {**PLANTED, "Redis' password": PASSWORD, "Redis' plain password": PLAIN_PASSWORD}
    secrets = {name: spellings(secret) for name, secret in planted.items()}
    for name, forms in {**secrets, **{f"the argument {one}": {one} for one in also}}.items():
        at = next((at for form in forms if (at := text.find(form)) >= 0), -1)
        if at >= 0:
            yield Breach("I11", f"{where} shows {name}: …{text[max(0, at - 60) : at]!a}…")
