"""Keeps secrets out of what leaves the process as text: logs, failures, metrics, HTTP bodies, messages of commands.

A secret is known by its value (whatever the environment holds under a secret's name, in any of the spellings below), by
the name of the field it stands in, or by its shape. What is none of these, such as a customer's name that a handler
writes into its own exception, nobody can know for a secret.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any, cast

REDACTED = "[redacted]"
LEAST = 8
"""Shorter values are not looked for: a password `test` would redact half the log."""
LIMIT = 65_536
"""Most characters of one text that are looked through; the rest is left out."""
DEEPEST = 8
HARMLESS = 10 ** (LEAST - 1)
"""Smaller numbers have too few digits to be a secret."""
_FLAT = {str, int, float, bool, type(None)}
_PIECE = 512
"""A longer secret is looked for in pieces: a cut through it is to cost one of them at most."""
_OVERHANG = 16 * _PIECE
"""As many characters as a piece can take in its longest spelling."""

# Not a word of prose: something in it is no small letter, or it is longer than words are.
_NO_WORD = r"(?=.[a-z]{0,64}[A-Z0-9._~+/=-]|[a-z]{20})"
# A part without which it cannot be there, and the expression. Repeats are bounded where a hostile text could make an
# expression begin again and again.
_SHAPES = (
    ("sk-", r"sk-(?=[\w-]{0,64}\d)[\w-]{16,}"),  # OpenAI, Anthropic
    *(
        (f"{word[1:]} ", rf"{word} +{_NO_WORD}[A-Za-z0-9._~+/-]{{8,}}=*")
        for word in ("Bearer", "bearer", "BEARER", "Basic", "basic", "BASIC")
    ),
    ("eyJ", r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"),  # a JSON Web Token
    ("AKIA", r"AKIA[0-9A-Z]{16}"),  # AWS: the key of a user, and a temporary one
    ("ASIA", r"ASIA[0-9A-Z]{16}"),
    # User and password in a URL, also where the password has a slash in it.
    ("@", r"://[^\s/@:\"'<>]{0,128}:[^\s\"'<>]{0,512}@"),
)
_FIELD = re.compile(
    r"(?:authorization|password|passwd|passphrase|secret|token|apikey|accesskey|privatekey|secretkey|cookie|dsn"
    r"|credentials?)\Z"
)


class Redactor:
    """Replaces secrets by `[redacted]`. Without `secrets`: what is known by its shape or its field's name alone.

    Immutable, and safe in any thread. Nothing here raises, whatever the values' own methods do.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: of two that begin alike, the expression takes the one that is named first.
        self._pieces = sorted({piece for secret in secrets for piece in _pieces(secret)}, key=len, reverse=True)
        self._signs = tuple({sign for sign, _ in _SHAPES} | {sign for piece in self._pieces for sign in _signs(piece)})
        self._are_clean_names = lru_cache(maxsize=1024)(self._look_at_names)  # of a kind of line they are the same

    @cached_property
    def _find(self) -> re.Pattern[str]:
        # Compiled when the first text has a sign in it: that takes about a millisecond for each secret.
        known = [spelling for piece in self._pieces for spelling in _spellings(piece)]
        return re.compile("|".join((*known, *(shape for _, shape in _SHAPES))))

    def _clean(self, text: str) -> bool:
        """Surely without a secret, as nearly all texts are: none of the signs is there."""
        for sign in self._signs:  # noqa: SIM110  # any() over a generator takes twice as long
            if sign in text:
                return False
        return True

    def text(self, text: str, limit: int = LIMIT) -> str:
        """`text` without secrets, and without what goes beyond `limit` characters (and would have to be looked at)."""
        if len(text) > limit:
            return self._cut(text, limit)
        return text if self._clean(text) else self._find.sub(_replaced, text)

    def _cut(self, text: str, limit: int) -> str:
        # Cut first, and a secret that lies across the cut would no longer be known; its first half would stay.
        parts: list[str] = []
        at = 0
        for found in self._find.finditer(text, 0, limit + _OVERHANG):
            if found.start() >= limit:
                break
            parts += [text[at : found.start()], _replaced(found)]
            at = found.end()
        return "".join((*parts, text[at:limit], "…"))

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The same mapping as plain data without secrets: what stands under a secret's name goes, whatever it is.

        Numbers, None and booleans stay; texts are looked through; mappings and sequences are gone through, eight deep;
        anything else becomes its text.
        """
        if self._are_clean(fields):
            return dict(fields)
        return {self._name(name): self._under(name, value, DEEPEST) for name, value in fields.items()}

    def _are_clean(self, fields: Mapping[str, Any]) -> bool:
        """The common case at the price of one look: short texts and numbers, and no sign of a secret in any."""
        values = fields.values()
        if not self._are_clean_names(tuple(fields)) or not _FLAT.issuperset(map(type, values)):
            return False
        for value in values:
            if type(value) is int and not -HARMLESS < value < HARMLESS:
                return False
        together = "\n".join(map(str, values))
        return len(together) <= LIMIT and self._clean(together)

    def _look_at_names(self, names: tuple[str, ...]) -> bool:
        together = "\n".join(names)
        return len(together) <= LIMIT and self._clean(together) and not any(map(_names_a_secret, names))

    def _name(self, name: object) -> str:
        return self.text(str.__str__(name)) if isinstance(name, str) else self._shown(name)

    def _under(self, name: object, value: object, deep: int) -> Any:
        return REDACTED if isinstance(name, str) and _names_a_secret(name) else self._value(value, deep)

    def _value(self, value: object, deep: int) -> Any:
        kind = type(value)
        if isinstance(value, str):
            return self.text(str.__str__(value))  # a plain one: no encoder of JSON takes a class of the user's
        if value is None or kind is bool or kind is float or (kind is int and self._harmless(value)):
            return value
        if not deep:
            return "…"
        try:
            if isinstance(value, Mapping):
                pairs = cast("Mapping[object, object]", value)
                return {self._name(name): self._under(name, item, deep - 1) for name, item in pairs.items()}
            if isinstance(value, list | tuple | set | frozenset):
                return [self._value(item, deep - 1) for item in cast("Iterable[object]", value)]
        except Exception:  # a mapping of the user's
            return "…"
        return self._shown(value)

    def _harmless(self, number: Any) -> bool:
        return -HARMLESS < number < HARMLESS or (-(2**63) <= number < 2**63 and self._clean(str(number)))

    def _shown(self, value: object) -> str:
        try:
            if isinstance(value, bytes | bytearray):
                return self.text(bytes(value).decode("utf-8", "backslashreplace"))
            return self.text(repr(value) if isinstance(value, BaseException) else str(value))
        except Exception:
            return f"(a {type(value).__name__} that cannot be shown)"

    def __repr__(self) -> str:
        return "<Redactor>"


BY_SHAPE = Redactor()
"""For where no configured secrets are at hand."""


def _replaced(found: re.Match[str]) -> str:
    """What a secret is replaced by: of a URL the signs around it stay, of a header its scheme."""
    what = found[0]
    if what.startswith("://"):
        return f"://{REDACTED}@"
    scheme, space, _ = what.partition(" ")
    return f"{scheme} {REDACTED}" if space and scheme.lower() in ("bearer", "basic") else REDACTED


@lru_cache(maxsize=1024)
def _names_a_secret(name: str) -> bool:
    return _FIELD.search(re.sub(r"[^a-z]", "", name.lower())) is not None


def _pieces(secret: str) -> list[str]:
    """A secret as it is looked for: line by line (a private key is printed so), and no line longer than a piece."""
    lines = [line.strip() for line in secret.splitlines()]
    return [
        piece for line in lines for at in range(0, len(line), _PIECE) if len(piece := line[at : at + _PIECE]) >= LEAST
    ]


def _signs(secret: str) -> set[str]:
    """A part of each spelling of `secret`: its longest run of characters that nobody escapes."""
    wholes = [secret, *_in_base64(secret.encode("utf-8", "surrogatepass"))]
    return {max(re.findall(r"[A-Za-z0-9]*", whole), key=len) for whole in wholes}


def _spellings(secret: str) -> list[str]:
    """Expressions that match `secret` as it is, percent-encoded, escaped (JSON, Python), and in base64."""
    in_base64 = map(re.escape, _in_base64(secret.encode("utf-8", "surrogatepass")))
    return ["".join(map(_character, re.sub(r"\\+", r"\\", secret))), *in_base64]


@lru_cache(maxsize=256)
def _character(c: str) -> str:
    """One character in every spelling, so that it does not matter which of them an encoder changed, or how often."""
    if c == "\\":
        return _SLASHES
    if c.isascii() and (c.isalnum() or c in "-._~"):
        return re.escape(c)  # nobody escapes these
    data, units = c.encode("utf-8", "surrogatepass"), c.encode("utf-16-be", "surrogatepass")
    spellings = [
        re.escape(c),
        "".join(f"{_PERCENT}{_hex(byte)}" for byte in _bytes(data)),
        f"(?:{_SLASHES})?+".join(f"x{_hex(byte)}" for byte in _bytes(data)),
        f"(?:{_SLASHES})?+".join(f"u{_hex(units[at : at + 2].hex())}" for at in range(0, len(units), 2)),
        f"U{_hex(f'{ord(c):08x}')}",
    ]
    if ord(c) < 256:
        spellings.append(f"x{_hex(f'{ord(c):02x}')}")
    if c in _LETTERS:
        spellings.append(_LETTERS[c])
    if c == " ":
        spellings += [r"\+", f"{_PERCENT}2[bB]"]
    return f"(?:{_SLASHES})?+(?:{'|'.join(spellings)})"


_PERCENT = "%(?:25){0,4}"
# Each level of escaping doubles them. They are taken all at once and never handed back: however many there are, and in
# whatever secret, the expression takes time in proportion.
_SLASHES = r"(?:\\|%(?:25){0,4}5[cC]){1,64}+"
_LETTERS = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def _bytes(data: bytes) -> Iterable[str]:
    return (f"{byte:02x}" for byte in data)


def _hex(digits: str) -> str:
    return "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in digits)


def _in_base64(data: bytes) -> set[str]:
    """`data` as it is found anywhere in a base64 text: it may begin at the first, second or third byte of a group.

    The characters at its edges that hold bits of its neighbours are not matched; they are not enough to go by.
    """
    found: set[str] = set()
    for before, skip in ((0, 0), (1, 2), (2, 3)):
        whole = b64encode(bytes(before) + data).decode().rstrip("=")
        core = whole[skip : len(whole) - (1 if (before + len(data)) % 3 else 0)]
        found |= {core, core.replace("+", "-").replace("/", "_")}
    return found
