"""What the answer of a paid API says: of the call, of the limits, and of whether anybody should call it now."""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from runtime.core.values import frozen

Meaning = Literal["ok", "retry", "wait", "permanent", "break"]
"""What an answer means.

`ok`: a success. `retry`: the same request may work next time. `wait`: a rate limit, which everybody has met.
`permanent`: this request will never work. `break`: nothing will work for this account until a person does something.
"""


@frozen
class Feedback:
    """An answer as values. Every number in it is finite, not negative and within reason, whatever the answer said.

    Dimensions are what providers count: `requests`, `tokens`, `input_tokens`, `output_tokens`.
    """

    meaning: Meaning
    wait_s: float | None = None
    """How long the provider asks everybody to wait, from now. Always there with `wait`, with `retry` if it was said."""
    of: frozenset[str] = frozenset()
    """The dimensions whose limit was met; empty where the answer does not say, so perhaps all."""
    remaining: Mapping[str, int] = field(default_factory=dict[str, int])
    """What is left by the provider's own count, where that can be believed."""
    resets_in_s: Mapping[str, float] = field(default_factory=dict[str, float])
    """Until that count is *full* again, which is long after the next call can be made."""
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    """What the provider says the limit is."""
    used: Mapping[str, int] = field(default_factory=dict[str, int])
    """What the call cost in truth, of the dimensions that the answer tells."""
    code: str = ""
    """The provider's name for the error, one line; empty where it gave none."""
    text: str = ""
    """The provider's message, one line of at most 500 characters. It may quote the request: redact before showing."""
