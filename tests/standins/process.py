"""Start a stand-in as the separate program that it is, steer it, and be sure that it ends with its parent."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
STOPS_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Running:
    """A stand-in that listens. The methods block, for a moment; they use the control routes."""

    url: str
    process: subprocess.Popen[str]

    def log(self) -> dict[str, Any]:
        """`requests`, the list of those seen, and `counters`."""
        seen: dict[str, Any] = self._control("GET", "log")
        return seen

    def fault(self, *faults: dict[str, Any]) -> None:
        """Let things go wrong with the calls to come; raises `urllib.error.HTTPError` for a fault that is none."""
        self._control("POST", "faults", faults)

    def mend(self) -> None:
        """Nothing goes wrong any more."""
        self._control("DELETE", "faults")

    def reset(self) -> None:
        self._control("POST", "reset")

    def _control(self, method: str, name: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_standin/{name}", data, method=method)
        with urllib.request.urlopen(request, timeout=STOPS_WITHIN_S) as answer:
            return json.load(answer)


@contextmanager
def running(name: Literal["openai", "judit", "otlp", "web", "odd"], *flags: str) -> Iterator[Running]:
    """A stand-in for as long as the block lasts, and no longer even if this process is killed.

    What it says on stderr goes to ours. Raises `RuntimeError` when it does not start.
    """
    command = [sys.executable, "-m", f"tests.standins.{name}", "--until-eof", *flags]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise RuntimeError(f"the {name} stand-in did not start: exit code {process.wait(STOPS_WITHIN_S)}")
            yield Running(line.removeprefix("listening on ").strip(), process)
        finally:
            process.terminate()
            try:
                process.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
