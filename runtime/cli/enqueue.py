"""Add a job. Its arguments are checked against the handler's signature before anything is sent."""

import argparse
import json
import sys
from typing import Any, cast

from runtime import registry
from runtime.cli import without_secrets
from runtime.cli.display import say_json
from runtime.cli.session import answered, tell_of_ringing, timeout_s, with_client
from runtime.client import Client
from runtime.core.errors import JobFailed, PayloadInvalid
from runtime.core.request import Options


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("handler", help="the handler's name")
    parser.add_argument(
        "arguments", nargs="?", default="[]", metavar="JSON",
        help="an object of named arguments, an array of arguments in order, or one argument; - reads standard input",
    )  # fmt: skip
    parser.add_argument("-m", "--module", action="append", default=[], help="handler module, as for serve; repeatable")
    parser.add_argument("--key", help="id of the job within its handler: a second one finds the first")
    parser.add_argument(
        "--unique-for", metavar="TIME",
        help="for so long from now a second one of this key (or, without, of these arguments) finds the first",
    )  # fmt: skip
    parser.add_argument("--priority", type=int, help="0 to 1000, higher first")
    parser.add_argument("--delay", help="not before so long from now, e.g. 30s or 5m")
    parser.add_argument("--expires", help="a dead letter if it has not started after so long")
    parser.add_argument("-Q", "--queue", help="another queue than the handler's")
    parser.add_argument("--wait", action="store_true", help="wait for the result and print it")
    parser.add_argument("--timeout", default="5m", help="longest wait [default: 5m]")


def run(args: argparse.Namespace) -> int:
    handler = registry.find(registry.collect(args.module), args.handler)
    positional, named = _arguments(args.arguments)
    given = {name: getattr(args, name) for name in Options.__annotations__ if getattr(args, name, None) is not None}
    options = cast("Options", given)  # checked by options()
    request = handler.options(**options).request(*positional, **named)

    longest_s = timeout_s(args.timeout)

    async def work(client: Client) -> int:
        (job,) = await client.send([request])
        note = "" if job.created else " (there already: the key has a job)"
        if not args.wait:
            print(f"{job.id}{note}", flush=True)
            tell_of_ringing(client)
            await answered(client)
            return 0
        print(f"job {job.id}{note}", file=sys.stderr)
        tell_of_ringing(client)
        try:
            say_json(await job.result(longest_s))
        except JobFailed as failure:
            print(f"error: {without_secrets(str(failure))}", file=sys.stderr)
            return 1
        return 0

    return with_client(work)


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    if text == "-":
        text = sys.stdin.read()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise PayloadInvalid(
            f"the arguments are not JSON: {error}",
            hint='quote them for the shell, e.g. \'{"text": "hello"}\' or \'"hello"\'',
        ) from None
    match value:
        case {**named}:
            return [], cast("dict[str, Any]", named)
        case [*positional]:
            return positional, {}
        case _:
            return [value], {}
