"""What is wrong with the environment. Values are not here: only names, and sentences that may be shown."""

import re
from collections.abc import Iterator

from runtime.core.findings import Finding
from runtime.core.values import frozen


@frozen
class Environment:
    """The settings as they stand in the environment."""

    read: tuple[str, ...] = ()
    """Names of the variables that count."""
    wrong: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    spaced: tuple[str, ...] = ()
    """Names whose values have space around them."""
    placeholders: tuple[str, ...] = ()
    """Names whose values were never filled in."""
    two_redis: bool = False
    """REDIS_URL and UPSTASH_REDIS_URL name different servers."""
    disabled: bool = False
    unread: tuple[str, ...] = ()
    """Settings that stand in a `.env` here, and not in the environment."""
    tracked: tuple[str, ...] = ()
    """Files of variables that git keeps."""


def verdicts(env: Environment) -> Iterator[Finding]:
    number = "1 variable" if len(env.read) == 1 else f"{len(env.read)} variables"
    said = f"{number} read ({', '.join(env.read)})" if env.read else "no variable is set: defaults everywhere"
    yield Finding("settings.read", "pass", said)
    for text in env.wrong:
        yield Finding("settings.wrong", "fail", text, "`runtime serve` refuses to start with it", _correction(text))
    for text in env.warnings:
        yield Finding("settings.odd", "warn", text, "what was meant by it may not be what happens", _correction(text))
    for name in env.spaced:
        yield Finding(
            "settings.spaces", "warn", f"{name} has space around its value",
            "it was taken off here; other programs that read the variable keep it",
            f"write the value of {name} without it",
        )  # fmt: skip
    for name in env.placeholders:
        yield Finding(
            "settings.placeholder", "fail", f"{name} still has the value of an example",
            "the first call that uses it is refused", f"set {name} to the real one, or unset it",
        )  # fmt: skip
    if env.two_redis:
        yield Finding(
            "settings.redis", "warn", "REDIS_URL and UPSTASH_REDIS_URL name different servers; REDIS_URL counts",
            "a producer that reads the other one writes where no worker looks", "unset one of them",
        )  # fmt: skip
    if env.disabled:
        yield Finding(
            "settings.disabled", "warn", "REDIS_DISABLED is set",
            "a worker says so and stops at once", "unset REDIS_DISABLED where workers are to run",
        )  # fmt: skip
    if env.unread:
        yield Finding(
            "settings.dotenv", "warn", f"the file .env has {', '.join(env.unread)}, which the environment has not",
            "only the environment is read", "set -a; . ./.env; set +a",
        )  # fmt: skip
    for name in env.tracked:
        yield Finding(
            "settings.git", "fail", f"{name} is in git", "whoever may read the repository has what is in it",
            f"git rm --cached {name}, ignore it, and renew the secrets in it",
        )  # fmt: skip


def _correction(text: str) -> str:
    name = text.partition(" ")[0].partition("=")[0]
    meant = re.search(r"did you mean (\w+)\?", text)
    if meant:
        return f"rename it to {meant[1]}, or unset it"
    if "both set and differ" in text:
        return "unset one of them: JOB_TIMEOUT_SECONDS is the plainer"
    if "is not a setting" in text:
        return f"unset {name}, unless another program reads it"
    if "quotes" in text:
        return f"write the value of {name} without quotes"
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        return "set what the sentence names"
    return f"correct {name}, or unset it: `runtime serve --help` has every variable"


_EXAMPLE = re.compile(
    r"""(?ix)
    your[-_ ].* | .*[-_:/@]your[-_ ].* | .*<[^<>]+>.* | \$?\{\{?[^}]*\}?\}
    | change[-_ ]?me.* | replace[-_ ]?(?:me|this|with).* | insert[-_ ].* | put[-_ ].*[-_ ]here
    | (?:sk|pk)-(?:ant-|proj-)?(?:\.{2,}|…|x+|your.*|\*+)
    | \.{3,} | … | x{3,} | \*{3,} | todo | tbd | example | placeholder | dummy
    """
)


def is_placeholder(value: str) -> bool:
    """Whether this is what examples have in place of a secret, such as `your_judit_api_key` or `sk-...`."""
    return _EXAMPLE.fullmatch(value.strip().strip("'\"")) is not None
