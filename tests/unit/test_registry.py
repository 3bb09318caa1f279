"""Which handlers a worker serves, and what is said of modules that cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from runtime.core.errors import HandlerInvalid, HandlerUnknown
from runtime.registry import collect, equipment, find, inventory

ONE = """
    from runtime import handler

    @handler
    async def {name}(ctx): ...
"""


class Project:
    """A folder with modules of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: str = "", **names: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text.format(**names) if names else text))

    def names(self, *modules: str) -> list[str]:
        return sorted(collect(modules, self.folder))

    def refused(self, *modules: str) -> str:
        with pytest.raises(HandlerInvalid) as caught:
            collect(modules, self.folder)
        assert caught.value.exit_code == 78
        return str(caught.value)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    for name in [name for name in before if name.split(".")[0] == "handlers"]:
        del sys.modules[name]
    # The folder of the test goes first: this project has a package `handlers` too.
    sys.path.insert(0, str(tmp_path))
    yield Project(tmp_path)
    sys.modules.clear()
    sys.modules.update(before)


def test_the_handlers_of_a_module_are_found(project: Project) -> None:
    project.write("jobs.py", ONE + "\n    async def no_handler(ctx): ...\n    answer = 42\n", name="greet")
    assert project.names("jobs") == ["greet"]


def test_the_handlers_of_a_packages_sub_modules_are_found_at_every_depth(project: Project) -> None:
    project.write("app/__init__.py", ONE, name="top")
    project.write("app/mail.py", ONE, name="mail")
    project.write("app/deep/__init__.py")
    project.write("app/deep/deeper/__init__.py", ONE, name="deeper")
    project.write("app/deep/deeper/end.py", ONE, name="end")
    assert project.names("app") == ["deeper", "end", "mail", "top"]
    assert project.names("app.deep") == ["deeper", "end"]


def test_several_modules_may_be_named(project: Project) -> None:
    for name in ("one", "two", "three"):
        project.write(f"{name}.py", ONE, name=name)
    assert project.names("one", "two") == ["one", "two"]
    assert project.names("one", "one") == ["one"]


def test_a_handler_that_a_second_module_imports_is_one_handler(project: Project) -> None:
    project.write("app/__init__.py", "from app.mail import mail, mail as post\n    ".strip() + "\n")
    project.write("app/mail.py", ONE, name="mail")
    assert project.names("app") == ["mail"]


def test_a_handler_with_options_beside_it_is_one_handler(project: Project) -> None:
    project.write("jobs.py", ONE + "\n    urgent = greet.options(priority=9)\n", name="greet")
    assert project.names("jobs") == ["greet"]
    assert collect(("jobs",), project.folder)["greet"].request().options == {}


def test_handlers_go_by_their_name_on_the_wire(project: Project) -> None:
    project.write("jobs.py", "from runtime import handler\n\n@handler(name='on-the-wire')\nasync def greet(ctx): ...\n")
    assert project.names("jobs") == ["on-the-wire"]


def test_two_handlers_of_one_name_are_refused_with_both_places(project: Project) -> None:
    project.write("one.py", ONE, name="greet")
    project.write("two.py", "\n\n" + ONE, name="greet")
    said = project.refused("one", "two")
    assert "two handlers are named 'greet'" in said
    assert f"one at {project.folder / 'one.py'}:4, one at {project.folder / 'two.py'}:6" in said
    assert "@handler(name=" in said


def test_two_quotas_of_one_name_are_refused_and_one_that_is_shared_is_not(project: Project) -> None:
    source = (
        "from runtime import Allowance, Quota, handler\n"
        "quota = Quota('exports', by='user', allow=Allowance(hourly=1))\n"
        "@handler(quota=quota)\nasync def {name}(ctx, user): ...\n"
    )
    project.write("one.py", source, name="greet")
    project.write("two.py", source, name="mail")
    project.write("three.py", "from one import quota\n" + source.replace("quota = ", "# "), name="call")
    said = project.refused("one", "two")
    assert "two quotas are named 'exports'" in said
    assert str(project.folder / "one.py") in said
    assert str(project.folder / "two.py") in said
    assert set(project.names("one", "three")) == {"greet", "call"}


@pytest.mark.parametrize(
    "declared",
    [
        "@cron('61 * * * *')\nasync def f(ctx): ...",
        "@every\nasync def f(ctx): ...",
        "@handler(priority='high')\nasync def f(ctx): ...",
        "@handler(limit='api')\nasync def f(ctx): ...",
        "limit = Bucket('api', '10')",
        "@handler\nasync def f(): ...",
    ],
)
def test_what_breaks_a_rule_is_told_with_the_line_where_it_stands_once(project: Project, declared: str) -> None:
    project.write("rules.py", "from runtime import *\n\n" + declared)
    assert project.refused("rules").count(f"{project.folder / 'rules.py'}:3") == 1


@pytest.mark.parametrize("name", ["./jobs", "jobs.py", "app/jobs.py"])
def test_who_names_a_file_is_told_its_module(project: Project, name: str) -> None:
    said = project.refused(name)
    assert f"there is no module '{name}'" in said
    assert said.endswith(f"not as a file: {name.removesuffix('.py').removeprefix('./').replace('/', '.')}")


def test_where_there_is_no_handler_at_all_it_is_said(project: Project) -> None:
    project.write("empty.py")
    assert "no handler in empty; declare one with @handler" in project.refused("empty")


# Which modules.


def test_without_a_word_the_package_handlers_is_taken(project: Project) -> None:
    project.write("handlers/__init__.py")
    project.write("handlers/mail.py", ONE, name="mail")
    assert project.names() == ["mail"]


def test_the_projects_own_configuration_goes_before_that(project: Project) -> None:
    project.write("handlers.py", ONE, name="wrong")
    project.write("app/jobs.py", ONE, name="right")
    project.write("pyproject.toml", '[tool.runtime]\nhandlers = ["app.jobs"]\n')
    assert project.names() == ["right"]


def test_a_name_on_the_command_line_goes_before_the_configuration(project: Project) -> None:
    project.write("one.py", ONE, name="one")
    project.write("pyproject.toml", '[tool.runtime]\nhandlers = ["nowhere"]\n')
    assert project.names("one") == ["one"]


def test_a_configuration_that_says_nothing_of_handlers_changes_nothing(project: Project) -> None:
    project.write("handlers.py", ONE, name="one")
    project.write("pyproject.toml", "[tool.other]\nhandlers = 5\n")
    assert project.names() == ["one"]


@pytest.mark.parametrize("value", ['"handlers"', "5", "[1]"])
def test_a_configuration_of_another_kind_is_refused(project: Project, value: str) -> None:
    project.write("pyproject.toml", f"[tool.runtime]\nhandlers = {value}\n")
    assert "[tool.runtime] handlers in pyproject.toml is not a list of module names" in project.refused()


@pytest.mark.parametrize("text", ["tool = 5", "[tool]\nruntime = 5"])
def test_a_table_of_another_kind_is_refused(project: Project, text: str) -> None:
    project.write("pyproject.toml", text)
    assert "pyproject.toml" in project.refused()


def test_a_configuration_that_cannot_be_read_is_refused(project: Project) -> None:
    project.write("pyproject.toml", "[tool.runtime\n")
    assert project.refused().startswith("pyproject.toml cannot be read: ")


def test_the_folder_is_importable_but_hides_no_installed_package(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(project.folder)])
    project.write("jobs.py", ONE, name="greet")
    project.write("msgspec.py", "raise RuntimeError('hidden')")
    assert project.names("jobs") == ["greet"]
    assert sys.path[-1] == str(project.folder)
    assert project.names("jobs") == ["greet"]
    assert sys.path.count(str(project.folder)) == 1


# Modules that cannot be imported.


@pytest.mark.parametrize("name", ["nowhere", "app.nowhere", "nowhere.jobs"])
def test_a_module_that_does_not_exist_is_told_from_one_that_is_broken(project: Project, name: str) -> None:
    project.write("app/__init__.py")
    said = project.refused(name)
    assert f"there is no module {name!r}" in said
    assert str(project.folder) in said


def test_a_module_that_raises_is_told_with_its_line(project: Project) -> None:
    project.write("jobs.py", "import os\n\nraise RuntimeError('boom\\nsecond line')\n")
    said = project.refused("jobs")
    assert "the module 'jobs' cannot be imported" in said
    assert f"{project.folder / 'jobs.py'}:3 RuntimeError: boom" in said
    assert "second line" not in said


def test_a_line_further_in_is_told_where_it_is(project: Project) -> None:
    project.write("jobs.py", "import inner\n")
    project.write("inner.py", "\n\n1 / 0\n")
    assert f"{project.folder / 'inner.py'}:3 ZeroDivisionError" in project.refused("jobs")


def test_a_syntax_error_is_told_with_its_line(project: Project) -> None:
    project.write("jobs.py", "x = 1\ndef (:\n")
    said = project.refused("jobs")
    assert f"{project.folder / 'jobs.py'}:2 SyntaxError" in said


def test_a_broken_sub_module_is_named(project: Project) -> None:
    project.write("app/__init__.py")
    project.write("app/fine.py", ONE, name="fine")
    project.write("app/broken.py", "raise ValueError\n")
    assert "the module 'app.broken' cannot be imported" in project.refused("app")


def test_a_broken_sub_package_is_named(project: Project) -> None:
    project.write("app/__init__.py")
    project.write("app/broken/__init__.py", "raise ValueError\n")
    said = project.refused("app")
    assert "the module 'app.broken' cannot be imported" in said
    assert "ValueError" in said


def test_a_third_partys_module_that_is_missing_is_named_with_the_fix(project: Project) -> None:
    project.write("jobs.py", "import not_installed_anywhere.deep\n")
    said = project.refused("jobs")
    assert "the module 'jobs' cannot be imported" in said
    assert f"{project.folder / 'jobs.py'}:1 ModuleNotFoundError" in said
    assert "install not_installed_anywhere" in said


def test_a_wrong_declaration_is_told_in_its_own_words(project: Project) -> None:
    project.write("jobs.py", "from runtime import handler\n\n@handler\ndef blocking(ctx): yield\n")
    said = project.refused("jobs")
    assert said.startswith(f"the handler 'blocking' at {project.folder / 'jobs.py'}:3 is a generator")


def test_a_wrong_option_of_a_declaration_is_told_with_its_line(project: Project) -> None:
    project.write("jobs.py", "from runtime import handler\n\n@handler(priority=-1)\nasync def greet(ctx): ...\n")
    said = project.refused("jobs")
    assert f"{project.folder / 'jobs.py'}:3" in said
    assert "priority=-1" in said


def test_a_module_that_exits_is_broken(project: Project) -> None:
    project.write("jobs.py", "import sys\nsys.exit(3)\n")
    try:
        said = project.refused("jobs")
    except SystemExit:
        pytest.fail("the process would have ended without a word")
    assert f"{project.folder / 'jobs.py'}:2" in said


# By name.


def test_a_handler_is_found_by_its_name(project: Project) -> None:
    for name in ("greet", "mail"):
        project.write(f"app/{name}.py", ONE, name=name)
    project.write("app/__init__.py")
    handlers = collect(("app",), project.folder)
    assert find(handlers, "mail").name == "mail"
    with pytest.raises(HandlerUnknown, match=r"no handler named 'gret'; did you mean 'greet'\? there are: greet, mail"):
        find(handlers, "gret")
    with pytest.raises(HandlerUnknown, match="no handler named 'xyz'; there are: greet, mail"):
        find(handlers, "xyz")


# What goes with handlers.

LIFESPAN = """
    from runtime import lifespan

    @lifespan
    async def {name}(): yield 1
"""
MIDDLEWARE = """
    from runtime import middleware

    @middleware
    async def {name}_first(ctx, call_next): ...

    @middleware(queue="q")
    async def {name}_second(ctx, call_next): ...
"""


def test_the_lifespan_is_found_however_often_it_is_imported(project: Project) -> None:
    project.write("app/__init__.py", "from app.state import *\n")
    project.write("app/state.py", LIFESPAN, name="state")
    found = equipment(("app",), project.folder).lifespan
    assert found is not None
    assert found.name == "state"
    assert equipment(("app.state", "app"), project.folder).lifespan is found


def test_without_one_there_is_none(project: Project) -> None:
    project.write("jobs.py", ONE, name="greet")
    assert equipment(("jobs",), project.folder).lifespan is None
    assert equipment(("jobs",), project.folder).middleware == []


def test_two_lifespans_are_refused_with_both_places(project: Project) -> None:
    project.write("one.py", LIFESPAN, name="first")
    project.write("two.py", LIFESPAN, name="second")
    with pytest.raises(HandlerInvalid) as caught:
        equipment(("one", "two"), project.folder)
    for name, module in (("first", "one.py"), ("second", "two.py")):
        assert f"'{name}' at {project.folder / module}:4" in str(caught.value)
    assert [str(wrong) for wrong in inventory(("one", "two"), project.folder).wrong] == [str(caught.value)]


def test_middleware_goes_by_modules_and_then_by_declaration(project: Project) -> None:
    project.write("one.py", "from two import one_first\n" + dedent(MIDDLEWARE.format(name="late")))
    project.write("two.py", MIDDLEWARE, name="one")
    names = [each.name for each in equipment(("one", "two"), project.folder).middleware]
    assert names == ["one_first", "late_first", "late_second", "one_second"]
