"""Flashcards from a text, through the chat completions API.

Settings: `OPENAI_API_KEY` (or `EXPO_PUBLIC_OPENAI_API_KEY`), `OPENAI_BASE_URL`, `OPENAI_MODEL`; and what the account is
allowed in a minute (platform.openai.com/settings/organization/limits): `OPENAI_RPM`, `OPENAI_TPM`.
"""

import json
import os
from typing import Any, TypedDict

from runtime import Bucket, Context, Invalid, Permanent, Retry, Transient, handler

# All workers together: so many jobs are begun in any second, and so many requests and tokens go to OpenAI in a minute.
jobs = Bucket.window("ai-jobs", 10, per="1s", burst=2)
requests = Bucket("openai.requests", rate=f"{os.environ.get('OPENAI_RPM', '500')}/m", burst=10)
tokens = Bucket("openai.tokens", rate=f"{os.environ.get('OPENAI_TPM', '30000')}/m")

LONGEST_TEXT = 100_000
TOKENS_A_CARD = 150
PROMPT = (
    "Write {count} flashcards from the text of the user, in its language. Answer with a JSON object of the form "
    '{{"cards": [{{"question": "…", "answer": "…"}}]}} and nothing else.'
)


class Card(TypedDict):
    question: str
    answer: str


class Deck(TypedDict):
    flashcards: list[Card]
    tokenUsage: int


@handler(queue="ai-jobs", timeout="2m", retry=Retry(3), limit=jobs)
async def flashcards(ctx: Context, text: str, count: int = 5) -> Deck:
    """`count` flashcards from `text`, and the tokens they took."""
    if not text.strip() or len(text) > LONGEST_TEXT:
        raise Invalid(f"the text has {len(text)} characters; it must have from 1 to {LONGEST_TEXT}")
    if not 1 <= count <= 50:
        raise Invalid("from 1 to 50 cards can be asked for")
    answer = await _complete(ctx, text, count)
    return {"flashcards": _cards(answer), "tokenUsage": answer["usage"]["total_tokens"]}


async def _complete(ctx: Context, text: str, count: int) -> dict[str, Any]:
    base = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1").rstrip("/")
    request = {
        "model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
        "messages": [
            {"role": "system", "content": PROMPT.format(count=count)},
            {"role": "user", "content": text},
        ],
        "response_format": {"type": "json_object"},
        "max_completion_tokens": TOKENS_A_CARD * count,
    }
    headers = {"Authorization": f"Bearer {_key()}"}
    async with ctx.http("openai").post(f"{base}/chat/completions", json=request, headers=headers) as response:
        answer: dict[str, Any] = await response.json(content_type=None)
        return answer


def _key() -> str:
    key = os.environ.get("OPENAI_API_KEY") or os.environ.get("EXPO_PUBLIC_OPENAI_API_KEY")
    if not key:
        raise Permanent(
            "OPENAI_API_KEY is not set for this worker; set it, then: runtime dlq replay --handler flashcards --all"
        )
    return key


def _cards(answer: dict[str, Any]) -> list[Card]:
    try:
        choice = answer["choices"][0]
        if choice["finish_reason"] == "length":
            raise Permanent("OpenAI cut the answer short: ask for fewer cards")
        cards = json.loads(choice["message"]["content"])["cards"]
        return [Card(question=str(card["question"]), answer=str(card["answer"])) for card in cards]
    except (LookupError, TypeError, ValueError) as error:
        raise Transient(f"OpenAI's answer holds no cards ({type(error).__name__})") from None
