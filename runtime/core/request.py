"""A job to be: what an enqueue asks for, checked."""

from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime
from typing import Any, Generic, TypedDict, TypeVar

from runtime.core.errors import OptionInvalid
from runtime.core.priority import check_priority
from runtime.core.quota import Counted
from runtime.core.span import Span, seconds
from runtime.core.values import frozen

R = TypeVar("R")

NO_QUEUES = ("rt:", "arq:job:", "arq:in-progress:", "arq:retry:", "arq:result:", "arq:abort")
"""Keys of single jobs, and what else the store holds beside queues: jobs among them would be taken for that."""
LONGEST_S = 10 * 365 * 86400.0
"""Nobody means more; the store would not take it."""


class Options(TypedDict, total=False):
    """What an enqueue may say beside the arguments."""

    key: str
    """The job's id becomes `<handler>:<key>`: a second enqueue finds the first while it waits, runs or has a result."""
    priority: int
    """0 to 1000; higher first, in order of arrival within one. Default: the handler's."""
    delay: Span
    """Not before so long from now."""
    at: datetime
    """Not before this moment (with a time zone)."""
    expires: Span
    """A dead letter, if it has not been started so long after it is due."""
    queue: str
    """Another queue than the handler's."""
    unique_for: Span
    """For so long from the enqueue a second one of the same id finds the first, even if that has ended and no result
    was kept. Then the id is free, once the job has ended, whatever it has left. Without `key`, the arguments make one.
    Default: the handler's; 0 for none."""


@frozen
class Request(Generic[R]):
    """A handler's name, plain arguments that fit it, and options that keep their rules."""

    handler: str
    queue: str
    priority: int
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    options: Options
    read: Callable[[Any], R]
    """Makes what the handler's annotation says of a result's plain data."""
    counted: Counted | None = None
    """Whom it counts for, where the handler has a quota."""


def check_options(options: Options) -> None:
    """Raise `OptionInvalid` where an option breaks its rule."""
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        known = ", ".join(Options.__annotations__)
        raise OptionInvalid(f"there is no option {sorted(unknown)[0]!r}", hint=f"the options are {known}")
    check_priority(options.get("priority", 0))
    check_name("key", options.get("key", "-"))
    check_queue(options.get("queue", "-"))
    if "delay" in options and "at" in options:
        raise OptionInvalid("delay and at are both given", hint="say when the job is due in one of the two ways")
    spans = {"delay": options.get("delay", 0), "expires": options.get("expires", 0)}
    for name, span in {**spans, "unique_for": options.get("unique_for", 0)}.items():
        try:
            length_s = seconds(span)
        except (TypeError, ValueError) as error:
            raise OptionInvalid(f"{name}: {error}") from None
        if length_s > LONGEST_S:
            raise OptionInvalid(f"{name}={span!r}: it is more than ten years")
    _check_moment(options.get("at"))


def check_pause(queue: object, reason: object, length: Span | None) -> None:
    """Raise `OptionInvalid` for what makes no pause of a queue."""
    check_queue(queue)
    if reason != "":
        check_name("reason", reason)
    try:
        length_s = 1.0 if length is None else seconds(length)
    except (TypeError, ValueError) as error:
        raise OptionInvalid(f"for: {error}") from None
    if not 0 < length_s <= LONGEST_S:
        raise OptionInvalid(f"for={length!r}: a pause lasts longer than nothing, and ten years at most")


def check_queue(name: object) -> None:
    """Raise `OptionInvalid` for what makes no name of a queue: it is a key in Redis, and others have keys there."""
    check_name("queue", name)
    taken = next((start for start in NO_QUEUES if str(name).startswith(start)), None)
    if taken is not None:
        raise OptionInvalid(
            f"queue={name!r:.40}: what begins with {taken} is something else's key",
            hint="a queue's name is the key of its sorted set, such as arq:queue or mail",
        )


def check_name(option: str, name: object) -> None:
    """Raise `OptionInvalid` for what makes no name of a job or a queue."""
    if not isinstance(name, str) or not 1 <= len(name) <= 512:
        raise OptionInvalid(f"{option}={name!r:.40}: it is a text of 1 to 512 characters")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise OptionInvalid(f"{option}={name!a:.40}: it has half a character (a lone surrogate) in it")


def _check_moment(at: object) -> None:
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise OptionInvalid(f"at={at!r}: a moment is a datetime with a time zone", hint="datetime.now(timezone.utc)")
