"""Flashcards from a text, always the same ones for the same text, in the shape that a JSON schema asks for."""

import re
from dataclasses import dataclass
from typing import Any

MOST_CARDS = 50

_QUOTED = re.compile(r'"""(.+?)"""|```\w*\n?(.+?)```|<(\w+)>(.+?)</\3>', re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")
_LABEL = re.compile(r"^(?:[-*•]|\d+[.)]|(?:text|topic|content|source|notes?)\s*:)\s*", re.IGNORECASE)
_TASK = re.compile(
    r"\bflash\s?-?cards?\b|\bjson\b"
    r"|^(?:create|make|generate|write|return|give|produce|output|turn|convert|extract|respond|answer|reply|use)\b"
    r".*\b(?:cards?|questions?|answers?|text|following)\b"
    r"|^you are\b.*\b(?:assistant|tutor|teacher)\b",
    re.IGNORECASE,
)
_HOW_MANY = re.compile(
    r"\b(\d{1,3})\s+(?:[\w-]+\s+){0,3}?(?:flash\s?-?)?cards?\b|\bcards?\s*[:=]\s*(\d{1,3})\b", re.IGNORECASE
)
_DEFINITION = re.compile(r"^(?P<subject>[^,;:()]{2,60}?)\s+(?P<verb>is|are|was|were)\s+(?P<rest>.{6,})$")
_NO_SUBJECT = re.compile(r"^(?:it|this|that|these|those|they|there|he|she|we|you|i|which|what|who)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_][\w'’-]*")
_ARTICLES = ("The", "A", "An")


@dataclass(frozen=True, slots=True)
class Card:
    question: str
    answer: str
    sentence: str


def cards_from(prompts: list[str], most: int = MOST_CARDS) -> list[Card]:
    """A card for each sentence of the users' text, at most as many as the prompts ask for."""
    asked = how_many(prompts)
    sentences = [sentence for prompt in prompts for sentence in _sentences(prompt)]
    return [_card(sentence) for sentence in sentences[: most if asked is None else min(asked, most)]]


def how_many(prompts: list[str]) -> int | None:
    found = _HOW_MANY.search("\n".join(prompts))
    return int(found[1] or found[2]) if found else None


def fill(schema: dict[str, Any], cards: list[Card]) -> Any:
    """A value that the schema allows, made of the cards: each array of objects gets one object per card."""
    return _fill(schema, schema, cards, Card("", "", ""), "")


def _sentences(prompt: str) -> list[str]:
    quoted = ["".join(groups[i] for i in (0, 1, 3)) for groups in _QUOTED.findall(prompt)]
    kept = []
    for part in _SENTENCE_END.split("\n".join(quoted) or prompt):
        sentence = _LABEL.sub("", part.strip())
        if not quoted and _TASK.search(sentence):
            sentence = sentence.partition(": ")[2].strip()  # "Make 3 flashcards of this: Water boils at 100 °C."
        if _WORD.search(sentence) and (quoted or not _TASK.search(sentence)):
            kept.append(sentence)
    return kept


def _card(sentence: str) -> Card:
    found = _DEFINITION.match(sentence)
    if found and not _NO_SUBJECT.match(found["subject"]):
        first, space, others = found["subject"].partition(" ")
        subject = (first.lower() if first in _ARTICLES else first) + space + others
        rest = found["rest"].rstrip(".!?… ")
        return Card(f"What {found['verb']} {subject}?", rest[0].upper() + rest[1:] + ".", sentence)
    words = list(_WORD.finditer(sentence))
    if len(words) < 3:
        return Card("What is the text about?", sentence.rstrip("."), sentence)
    hidden = max(words[1:], key=lambda word: (word[0][0].isupper() or word[0][0].isdigit(), len(word[0])))
    return Card(f"Fill in the blank: {sentence[: hidden.start()]}____{sentence[hidden.end() :]}", hidden[0], sentence)


def _fill(schema: dict[str, Any], root: dict[str, Any], cards: list[Card], card: Card, name: str) -> Any:
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    match kind:
        case "object":
            properties = schema.get("properties", {})
            return {each: _fill(inner, root, cards, card, each) for each, inner in properties.items()}
        case "array":
            items = schema.get("items", {})
            if _resolved(items, root).get("type") == "object" and not card.sentence:
                return [_fill(items, root, cards, each, name) for each in cards[: schema.get("maxItems", len(cards))]]
            return [_fill(items, root, cards, card, name)]
        case "integer" | "number":
            return schema.get("minimum", len(cards))
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _text(name.lower(), card, cards)


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema or "anyOf" in schema:
        if "$ref" in schema:
            target: Any = root
            for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
                target = target[step] if step else target
            schema = target
        else:
            schema = next((each for each in schema["anyOf"] if each.get("type") != "null"), {"type": "null"})
    return schema


def _text(name: str, card: Card, cards: list[Card]) -> str:
    if any(word in name for word in ("question", "front", "prompt", "term")):
        return card.question
    if any(word in name for word in ("answer", "back", "definition", "solution")):
        return card.answer
    if card.sentence:
        return card.sentence
    return cards[0].answer if cards else ""
