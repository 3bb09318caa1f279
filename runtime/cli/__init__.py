"""The command `runtime`. Results go to stdout, everything else to stderr; a mistake is told in three lines."""

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from runtime.core.errors import Problem, UsageInvalid

COMMANDS = {
    "serve": "run a worker: claim jobs, run their handlers, settle their outcomes",
    "enqueue": "add a job; --wait prints its result",
    "job": "show where a job is, and its result",
    "queue": "list, pause, resume, drain or purge queues",
    "dlq": "list, show, replay or discard dead letters",
    "handlers": "list what `serve` would run",
    "inspect": "show queues, jobs, workers, limits or settings",
    "limit": "list, show, set or reset limits",
    "schedule": "list, run, pause or resume schedules",
    "sentinel": "watch the queues, and wake workers that sleep",
    "wake": "wake a worker that sleeps; --if-due only for a job",
    "doctor": "find what is wrong, and how to mend it",
    "check": "exit 0 if a worker is alive",
}

EXAMPLES = """\
examples:
  runtime serve                                     run the handlers of the package `handlers`
  runtime enqueue flashcards '{"text": "…"}' --wait   add a job and print what it returns
  runtime dlq list                                  what went wrong for good

The settings are environment variables: runtime serve --help lists them.
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with errors in this project's form."""

    def error(self, message: str) -> NoReturn:
        raise UsageInvalid(message, hint=f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    try:
        return _run(args)
    except Problem as problem:
        _tell(problem, as_json="--json" in args)
        return problem.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # a bug of ours; its text may hold anything
        print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def _open_standard_streams() -> None:
    """Where one was closed before the start, the null device is in its place: else the next file or connection would
    be, and get what is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # for good; the lowest free number is its own


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from runtime import __version__

        print(f"runtime {__version__}")
        return 0
    name = args[0]
    if name not in COMMANDS:
        import difflib  # for mistakes alone

        near = difflib.get_close_matches(name, COMMANDS, 1)
        raise UsageInvalid(
            f"unknown command {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}",
        )
    # A command's module is imported for that command alone.
    command: Any = import_module(f"runtime.cli.{name}")
    parser = _Parser(
        prog=f"runtime {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.declare(parser)
    code: int = command.run(parser.parse_args(args[1:]))
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {doc}" for name, doc in COMMANDS.items())
    return (
        "Run asyncio job handlers from arq queues in Redis.\n\nusage: runtime COMMAND [OPTIONS]\n\n"
        f"commands:\n{commands}\n\noptions:\n  -h, --help     show this, or a command's help\n"
        f"  -V, --version  show the version\n\n{EXAMPLES}"
    ).rstrip()


def _tell(problem: Problem, *, as_json: bool) -> None:
    if as_json:
        code = re.sub("(?<!^)(?=[A-Z])", "-", type(problem).__name__).lower()
        error = {"code": code, "message": problem.message, "cause": problem.cause, "hint": problem.hint}
        print(json.dumps({"error": error}), file=sys.stderr)
        return
    lines = [f"error: {_one_line(problem.message)}"]
    if problem.cause:
        lines.append(f"  cause: {_one_line(problem.cause)}")
    if problem.hint:
        lines.append(f"hint: {_one_line(problem.hint)}")
    print(without_secrets("\n".join(lines)), file=sys.stderr)


def without_secrets(text: str) -> str:
    """`text` for the terminal, without the secrets of the environment. Also where its settings are wrong."""
    from runtime import settings
    from runtime.core.redaction import Redactor

    return Redactor(settings.secrets()).text(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
