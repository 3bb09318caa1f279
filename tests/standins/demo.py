"""`make run`: the main job, with a stand-in for every paid API that has no key, and lines to paste.

The worker itself knows nothing of stand-ins: it is given their addresses as it would be given the providers'.
"""

import os
import secrets
import shlex
import signal
import subprocess
import sys
from pathlib import Path

PROVIDERS = {
    # module: (variables that hold a key, variable for the address, path of the address, the stand-in's key)
    "tests.standins.openai": (("OPENAI_API_KEY", "EXPO_PUBLIC_OPENAI_API_KEY"), "OPENAI_BASE_URL", "/v1", "sk-standin"),
    "tests.standins.judit": (("JUDIT_API_KEY",), "JUDIT_API_BASE_URL", "", "judit-standin"),
}
LINES = {
    "flashcards": '{"text": "The heart pumps blood. Arteries carry it away. Veins bring it back.", "count": 3}',
    "onboard": '{"cnj": "0001327-64.2018.8.26.0158"}',
}


def main() -> int:
    environment = dict(os.environ)
    standins = [start(module, environment) for module in PROVIDERS if not has_key(module)]
    token = environment.setdefault("RUNTIME_TOKEN", secrets.token_hex(16))
    tell(environment, "$RUNTIME_TOKEN" if "RUNTIME_TOKEN" in os.environ else token)
    worker = subprocess.Popen([sys.executable, "-m", "runtime", "serve"], env=environment)
    # Ctrl-C reaches the worker by itself, being in the same group; SIGTERM is passed on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: worker.send_signal(number))
    code = worker.wait()
    for standin in standins:
        standin.terminate()
    return code


def has_key(module: str) -> bool:
    keys, _, _, _ = PROVIDERS[module]
    return any(os.environ.get(key) for key in keys)


def start(module: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a stand-in, which ends with this process, and put its address and key into `environment`."""
    keys, address, path, key = PROVIDERS[module]
    standin = subprocess.Popen(
        [sys.executable, "-m", module, "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert standin.stdout is not None
    url = standin.stdout.readline().removeprefix("listening on ").strip()
    environment[keys[0]], environment[address] = key, url + path
    print(f"{keys[0]} is not set: a stand-in answers for it on {url}")
    return standin


def tell(environment: dict[str, str], token: str) -> None:
    command = Path(sys.executable).parent / "runtime"
    runtime = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    if not environment.get("REDIS_URL") and not environment.get("UPSTASH_REDIS_URL"):
        print("No Redis is configured: the embedded server is used; its data are in .runtime/")
    print("\nTry it: paste these lines in a second terminal, in this folder.\n")
    for handler, arguments in LINES.items():
        print(f"  {runtime} enqueue {handler} {shlex.quote(arguments)} --wait")
    site = f"localhost:{environment.get('PORT', '3002')}"
    order = shlex.quote(f'{{"handler": "flashcards", "kwargs": {LINES["flashcards"]}}}')
    print(f'  curl {site}/jobs -H "Authorization: Bearer {token}" -H "Content-Type: application/json" -d {order}')
    print(f"\nCtrl-C stops the worker. What it did: curl {site}/health\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
