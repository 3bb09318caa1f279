"""What a declaration says, and what it refuses where it stands."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runtime import Context, Invalid, Retry, handler, lifespan, middleware
from runtime.core.errors import HandlerInvalid, OptionInvalid, PayloadInvalid
from runtime.core.request import check_options
from runtime.core.spec import DEFAULT_QUEUE
from runtime.declare import Handler

HERE = Path(__file__).name


@handler
async def plain(ctx: Context, number: int, twice: bool = False) -> int:
    """Doubles a number."""
    return 2 * number if twice else number


@handler(
    name="wire-name", queue="other", timeout="2m", retry=Retry(5), priority=10, keep_result=timedelta(days=1)
)  # fmt: skip
async def full(ctx: Context) -> None: ...


def test_a_bare_declaration_takes_the_functions_name_and_the_defaults() -> None:
    spec = plain.spec
    assert (spec.name, spec.queue, spec.timeout_s, spec.priority) == ("plain", DEFAULT_QUEUE, None, 0)
    assert (spec.retry.attempts, spec.keep_result_s) == (3, 3600)
    assert re.fullmatch(rf".*{HERE}:\d+", spec.where)


def test_every_option_is_kept() -> None:
    spec = full.spec
    assert (spec.name, spec.queue, spec.timeout_s, spec.priority) == ("wire-name", "other", 120, 10)
    assert (spec.retry.attempts, spec.keep_result_s) == (5, 86400)


def test_a_declared_handler_looks_like_its_function() -> None:
    assert (plain.__name__, plain.__doc__, plain.__module__) == ("plain", "Doubles a number.", __name__)
    assert plain.name == "plain"
    assert repr(plain).startswith("<Handler plain of queue arq:queue at ")


async def _never(ctx: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"timeout": 0}, "longer than nothing"),
        ({"timeout": "0s"}, "longer than nothing"),
        ({"timeout": -1}, "finite and not negative"),
        ({"timeout": "soon"}, "not a length of time"),
        ({"timeout": True}, "a length of time is a timedelta"),
        ({"keep_result": "for ever"}, "not a length of time"),
        ({"keep_result": None}, "a length of time is"),
        ({"unique_for": "for ever"}, "not a length of time"),
        ({"unique_for": None}, "a length of time is"),
    ],
)
def test_a_wrong_option_is_refused_where_it_stands(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(HandlerInvalid, match=rule) as caught:
        handler(**options)(_never)
    assert "'_never'" in str(caught.value)
    assert HERE in str(caught.value)


@pytest.mark.parametrize("priority", [-1, 1001, 1.5, "1", None, True])
def test_a_priority_is_a_whole_number_from_0_to_1000(priority: Any) -> None:
    with pytest.raises(OptionInvalid, match="whole number from 0 to 1000"):
        handler(priority=priority)


def test_no_result_may_be_kept() -> None:
    assert handler(keep_result="0s")(_never).spec.keep_result_s == 0


def test_a_handler_without_a_time_to_be_unique_for_asks_for_none() -> None:
    once = handler(unique_for="24h")(_never)
    assert once.spec.unique_for_s == 86400
    assert "key" not in handler(_never).request().options
    assert "key" not in once.options(unique_for="0s").request().options
    assert once.options(key="k").request().options == {"key": "k", "unique_for": 86400}


def test_arguments_of_which_no_key_can_be_made_are_refused_without_being_quoted() -> None:
    @handler(unique_for="1h")
    async def odd(ctx: Any, value: Any) -> None: ...

    with pytest.raises(PayloadInvalid, match="no key can be made of the arguments") as caught:
        odd.request(Secret())
    assert "s3cret" not in str(caught.value)


def test_a_key_of_sets_is_the_same_in_each_process() -> None:
    @handler(unique_for="1h")
    async def tagged(ctx: Any, tags: set[str], kind: frozenset[str] = frozenset("xyz")) -> None: ...

    text = b'{"kind":["x","y","z"],"tags":["a","b","c","d","e"]}'
    expected = hashlib.sha256(text).hexdigest()[:32]
    for request in (tagged.request(set("edcba")), tagged.request(set("abcde"), kind=frozenset("zyx"))):
        assert request.options.get("key") == expected


class Secret:
    def __repr__(self) -> str:
        return "s3cret"


@pytest.mark.parametrize("name", ["\ud800", "n" * 513])
def test_a_name_that_could_not_travel_is_refused(name: str) -> None:
    async def task(ctx: Context) -> None: ...

    with pytest.raises(HandlerInvalid, match=f"{HERE}:\\d+: name="):
        handler(name=name)(task)


def test_a_generator_is_refused() -> None:
    async def many(ctx: Any) -> Any:
        yield 1

    def more(ctx: Any) -> Any:
        yield 1

    for function in (many, more):
        for declare in (handler, handler(queue="other")):
            with pytest.raises(
                HandlerInvalid, match=rf"'{function.__name__}'.*is a generator.*return the result"
            ) as no:
                declare(function)
            assert HERE in str(no.value)


def test_an_object_that_is_called_asynchronously_may_be_a_handler() -> None:
    class Greeter:
        __name__ = "greeter"

        async def __call__(self, ctx: Any, name: str) -> str:
            return f"hello {name}"

    assert handler(name="greet")(Greeter()).spec.name == "greet"


def test_a_callable_without_a_name_is_refused_with_a_sentence() -> None:
    class Nameless:
        async def __call__(self, ctx: Any) -> None: ...

    with pytest.raises(HandlerInvalid):
        handler(Nameless())


def test_what_is_no_function_is_refused_with_the_fix() -> None:
    class Job:
        def __init__(self, ctx: Any) -> None: ...

    with pytest.raises(HandlerInvalid, match=r"'Job' is a class.*write a function"):
        handler(Job)
    with pytest.raises(HandlerInvalid, match=r"'exports', which is no function.*name its options"):
        handler("exports")  # type: ignore[call-overload]


def test_a_part_of_a_function_is_declared_where_the_function_is() -> None:
    async def both(ctx: Any, a: int, b: int) -> int:
        return a + b

    assert HERE in handler(name="half")(functools.partial(both, b=2)).spec.where


@pytest.mark.parametrize(("option", "value"), [("queue", ""), ("queue", None), ("queue", 5), ("name", 5), ("retry", 3)])
def test_a_queue_and_a_name_are_texts_and_a_retry_is_a_policy(option: str, value: Any) -> None:
    with pytest.raises((HandlerInvalid, OptionInvalid)):
        handler(**{option: value})(_never)


def test_a_function_that_takes_no_context_is_refused() -> None:
    async def bare() -> None: ...

    with pytest.raises(HandlerInvalid):
        handler(bare)  # type: ignore[arg-type]


# Options of an enqueue.


def test_options_make_another_handler_and_leave_the_first_alone() -> None:
    urgent = plain.options(priority=5, key="k")
    later = urgent.options(delay="5m", priority=7)
    assert urgent is not plain
    assert urgent.request(1).options == {"priority": 5, "key": "k"}
    assert later.request(1).options == {"priority": 7, "key": "k", "delay": "5m"}
    assert plain.request(1).options == {}
    assert later.spec is plain.spec


def test_a_request_is_a_value_of_plain_data() -> None:
    request = plain.request(1, twice=True)
    assert (request.handler, request.queue, request.priority) == ("plain", DEFAULT_QUEUE, 0)
    assert (*request.args, *request.kwargs.values()) == (1, True)
    assert request.read(5) == 5


def test_a_request_goes_to_the_handlers_queue_with_its_priority_unless_an_option_says_otherwise() -> None:
    request = full.request()
    assert (request.handler, request.queue, request.priority) == ("wire-name", "other", 10)
    request = full.options(queue="elsewhere", priority=0).request()
    assert (request.queue, request.priority) == ("elsewhere", 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": "k" * 512},
        {"priority": 1000},
        {"delay": "5m", "expires": timedelta(hours=1), "queue": "other"},
        {"queue": "arq:mail"},
        {"at": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
)
def test_options_that_keep_their_rules_are_taken(options: Any) -> None:
    check_options(options)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"key": ""}, "1 to 512 characters"),
        ({"queue": ""}, "1 to 512 characters"),
        ({"queue": 5}, "1 to 512 characters"),
        ({"queue": None}, "1 to 512 characters"),
        ({"queue": "rt:arq:queue:later"}, "is something else's key"),
        ({"queue": "arq:abort"}, "is something else's key"),
        ({"queue": "arq:result:1"}, "is something else's key"),
        ({"key": "k" * 513}, "1 to 512 characters"),
        ({"key": 5}, "1 to 512 characters"),
        ({"priority": -1}, "whole number from 0 to 1000"),
        ({"priority": True}, "whole number from 0 to 1000"),
        ({"delay": "soon"}, "delay: "),
        ({"delay": -1}, "delay: "),
        ({"expires": None}, "expires: "),
        ({"at": datetime(2030, 1, 1)}, "with a time zone"),
        ({"at": 1_800_000_000}, "with a time zone"),
        ({"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)}, "delay and at are both given"),
        ({"prio": 1}, "there is no option 'prio'.*the options are key, priority, delay, at, expires, queue"),
    ],
)
def test_options_that_break_a_rule_are_refused_in_a_sentence(options: Any, rule: str) -> None:
    with pytest.raises(OptionInvalid, match=rule) as caught:
        plain.options(**options)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 200


# Arguments.


def test_arguments_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    wrong: list[tuple[Any, Any]] = [((), {}), (("one",), {}), ((1,), {"thrice": True})]
    for args, kwargs in wrong:
        with pytest.raises(PayloadInvalid, match=r"^plain: .*its arguments are plain\(number"):
            plain.request(*args, **kwargs)


def run(declared: Handler[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a job's run gives, without an event loop: these handlers wait for nothing."""
    coroutine = declared.run(None, args, kwargs)
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


def test_a_run_checks_the_arguments_and_calls_the_function() -> None:
    assert run(plain, 21, twice=True) == 42
    for args in ((), ("one",), (1, True, 3)):
        with pytest.raises(Invalid):
            run(plain, *args)


def test_what_the_function_itself_raises_is_not_taken_for_wrong_arguments() -> None:
    @handler
    async def fails(ctx: Any) -> None:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        run(fails)


def test_a_handler_can_be_called_like_its_function() -> None:
    coroutine = plain(None, 4, twice=True)
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    assert end.value.value == 8


# What goes with handlers.


def test_a_lifespan_is_an_async_generator_without_arguments() -> None:
    async def no_generator() -> Any: ...

    async def wants(something: int) -> AsyncIterator[int]:
        yield something

    with pytest.raises(HandlerInvalid, match=r"'no_generator'.*no async generator.*yield"):
        lifespan(no_generator)  # type: ignore[arg-type]
    with pytest.raises(HandlerInvalid, match=r"'no_generator'.*no async generator"):
        lifespan(asynccontextmanager(no_generator))  # type: ignore[arg-type]
    with pytest.raises(HandlerInvalid, match=r"'wants'.*takes arguments"):
        lifespan(wants)  # type: ignore[arg-type]


def test_a_middleware_says_for_which_queue_it_is() -> None:
    async def around(ctx: Any, call_next: Any) -> Any:
        return await call_next()

    assert middleware(around).queue is None
    assert middleware(queue="q")(around).queue == "q"
    assert HERE in middleware(around).where
    with pytest.raises(OptionInvalid, match="queue="):
        middleware(queue="")


def test_what_is_no_middleware_is_refused() -> None:
    def blocking(ctx: Any, call_next: Any) -> Any: ...

    async def lone(ctx: Any) -> Any: ...

    with pytest.raises(HandlerInvalid, match=r"'blocking'.*is not async"):
        middleware(blocking)
    with pytest.raises(HandlerInvalid, match=r"'lone'.*does not take two parameters"):
        middleware(lone)  # type: ignore[arg-type]
