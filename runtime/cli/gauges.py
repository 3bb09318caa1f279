"""How the limits stand, as documents: for `runtime limit` and `runtime inspect`."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from runtime.adapters.redis import buckets, controls, holders, tally
from runtime.adapters.redis.buckets import BreakerState, Level
from runtime.adapters.redis.tally import Counts
from runtime.cli.display import moment
from runtime.core.errors import LimitUnknown
from runtime.core.limits import Bucket, Rule, spell_rate

Document = dict[str, Any]
AT_ONCE = 100
"""Buckets that are looked at in one call: the server serves nobody else meanwhile."""


async def read(redis: Any) -> Document:
    """All limits that are known, and the breakers of their APIs: a few round trips, and two if there is none."""
    known, most = await controls.known(redis), await holders.declared(redis)
    return {
        **await _rates(redis, list(known.values()), sorted({api_of(name) for name in known})),
        "concurrency": await _concurrency(redis, most),
    }


async def read_one(redis: Any, label: str) -> Document:
    """What `label` means to an operator, as `choose` has it, or a limit on concurrency. Raises as `choose` does."""
    known, most = await controls.known(redis), await holders.declared(redis)
    name, _ = split(label)
    concurrency = await _concurrency(redis, {label: most[name]} if name in most else {})
    chosen, api = choose(known, label, most) if not concurrency or meant(known, name) else ([], "")
    return {**await _rates(redis, chosen, [api]), "concurrency": concurrency}


async def _concurrency(redis: Any, most: Mapping[str, int]) -> list[Document]:
    found = await holders.standing(redis, list(most))
    return [
        {
            "limit": one.label,
            "most": most[one.label],
            "held": sum(holder.live for holder in one.holders),
            "waiting": one.waiting,
            "jobs": [holder.job_id for holder in one.holders if holder.live],
        }
        for one in found
    ]


async def _rates(redis: Any, chosen: Sequence[Bucket], breakers: Sequence[str]) -> Document:
    if not chosen:
        return {"limits": [], "breakers": []}
    levels: list[Level] = []
    states: list[BreakerState] = []
    for at in range(0, max(len(chosen), len(breakers)), AT_ONCE):
        some = await buckets.look(redis, chosen[at : at + AT_ONCE], breakers[at : at + AT_ONCE])
        levels += some[0]
        states += some[1]
    names = [bucket.name for bucket in chosen]
    counts = dict(zip([*names, *breakers], await tally.read(redis, [*names, *breakers]), strict=True))
    return {
        "limits": [_limit(*one, counts[one[0].name]) for one in zip(chosen, levels, strict=True)],
        "breakers": [_breaker(name, one, counts[name]) for name, one in zip(breakers, states, strict=True)],
    }


def api_of(name: str) -> str:
    """The API whose limit this is, as `runtime.apis` has it; its breaker has the same name."""
    return name.partition(".")[0]


def choose(known: Mapping[str, Bucket], label: str, others: Collection[str] = ()) -> tuple[list[Bucket], str]:
    """The buckets that an operator means, and the API: `openai` stands for all of its limits, `judit[tenant-42]` for
    the bucket of a key. Raises `LimitUnknown`, and `LimitInvalid` for what is no key."""
    name, key = split(label)
    if not meant(known, name) or (key is not None and name not in known):
        raise unknown({*known, *map(api_of, known), *others}, name)
    return [known[name][key]] if key is not None else [known[one] for one in meant(known, name)], api_of(name)


def meant(known: Collection[str], name: str) -> list[str]:
    """The buckets of a name, which may be that of an API."""
    return [one for one in known if name in (one, api_of(one))]


def split(label: str) -> tuple[str, str | None]:
    """The name and the key in a label."""
    found = re.fullmatch(r"([^\[]*)\[(.+)\]", label, re.DOTALL)
    return (found[1], found[2]) if found else (label, None)


def unknown(names: Collection[str], name: str) -> LimitUnknown:
    import difflib

    near = difflib.get_close_matches(name, list(names), 1)
    hint = f"there are: {', '.join(sorted(names))}" if names else "workers tell of their limits when they start"
    return LimitUnknown(f"no limit named {name!r:.80}", hint=(f"did you mean {near[0]!r}? " if near else "") + hint)


def _limit(bucket: Bucket, level: Level, counts: Counts) -> Document:
    return {
        "limit": bucket.label,
        "tokens": level.tokens,
        **_rule(level.rule),
        "declared": _rule(bucket.rule),
        "set": level.set,
        "set_for_s": level.set_for_s,
        "next_s": level.next_s,
        "closed_s": level.closed_s or None,
        "waiting": level.waiting,
        "counts": {
            "takes": counts.takes,
            "tokens": counts.tokens,
            "used": counts.tokens + counts.more - counts.less,
            "estimate_error": (counts.more + counts.less) / counts.tokens if counts.tokens else None,
            "waits": counts.waits,
            "waited_s": counts.waited_ms / 1000,
            "refused": counts.refused,
            "met": counts.met,
            "met_at": moment(counts.met_ms),
        },
    }


def _rule(its: Rule) -> Document:
    return {"rate": spell_rate(its), "burst": its.burst}


def _breaker(name: str, its: BreakerState, counts: Counts) -> Document:
    return {
        "breaker": name,
        "state": its.state,
        "open_s": its.opens_in_s or None,
        "failures": its.failures,
        "probing": its.probing,
        "reason": its.reason or None,
        "kept_back": counts.kept_back,
    }
