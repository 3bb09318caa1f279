"""Which queues a worker serves together, and with how many slots."""

from collections.abc import Sequence

from runtime import registry
from runtime.core.errors import OptionInvalid
from runtime.core.request import check_queue
from runtime.core.values import frozen
from runtime.registry import Handlers


@frozen
class Group:
    """Queues that share slots."""

    queues: tuple[str, ...]
    slots: int


def groups(handlers: Handlers, wanted: Sequence[str], concurrency: int) -> list[Group]:
    """Which queues are served with how many slots: those of the handlers, or as `NAME` or `NAME=SLOTS` says.

    Queues without a number share `concurrency` slots. Raises `OptionInvalid`.
    """
    shared: list[str] = []
    own: list[Group] = []
    if not wanted:
        declared = tuple(registry.queues(handlers))  # as they are: only in an option a name ends at the "="
        return [Group(declared, concurrency)] if declared else []
    for word in wanted:
        name, _, slots = word.partition("=")
        if slots and (not slots.isdigit() or not 1 <= int(slots) <= 1000):
            raise OptionInvalid(
                f"-Q {word}: slots are a whole number from 1 to 1000", hint="write -Q NAME or -Q NAME=SLOTS"
            )
        if not name or name in shared or any(name in group.queues for group in own):
            raise OptionInvalid(f"-Q {word}: a queue is named once, by the key of its sorted set")
        check_queue(name)
        if slots:
            own.append(Group((name,), int(slots)))
        else:
            shared.append(name)
    return ([Group(tuple(shared), concurrency)] if shared else []) + own
