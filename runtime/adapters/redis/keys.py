"""Every key, and how long it lives. The scripts compute the keys of single jobs from the prefixes here.

arq's keys (arq 0.28 `constants.py`): ids are global over all queues of a database.

| key | type | lives |
|---|---|---|
| `<queue>` | zset: id → ms | as long as it holds jobs; a queue's name is its key |
| `arq:job:<id>` | string: body | ours 90 days or its expiry plus 7 days; stock 24 h after it is due |
| `arq:in-progress:<id>` | string: token | the lease |
| `arq:retry:<id>` | string: starts | 8 days (arq keeps it for 88 400 s) |
| `arq:result:<id>` | string: result | 1 h, or as the handler says; none where arq's `keep_result_forever` does |
| `arq:abort` | zset: id → ms | as long as it holds flags: until their jobs end, or for 8 days |

Ours, all under `rt:`:

| key | type | lives |
|---|---|---|
| `rt:<queue>:later` | zset: `token|place|id` → ms | while a job is leased, or deferred with a priority |
| `rt:<queue>:mark` | zset: `0` | while there is something nobody has looked at |
| `rt:<queue>:unknown` | hash: id → handler | while such jobs wait |
| `rt:<queue>:dead` | zset: id → ms | while there are letters (30 days, at most 10 000) |
| `rt:<queue>:paused` | string: why, and since when (`queues.py`) | until the pause ends, or is ended |
| `rt:<queue>:count` | hash: completed, failed | for ever: two counters |
| `rt:<queue>:schedule` | zset: schedule → ms of the next occurrence, or `inf` | 30 days after a worker last fired it |
| `rt:<queue>:timetable` | hash: `said|`, `fired|`, `paused|` and schedule → text, ms, why | likewise |
| `rt:dead:<id>` | hash: letter, body | 30 days |
| `rt:own:<id>` | string: `crashes|history` | 8 days |
| `rt:awaited:<id>` | string: names of who waits for its end | until it has ended; 1 minute after the last look |
| `rt:progress:<id>` | string: `token|ms|progress` | 10 minutes after it was written, again and again while it runs |
| `rt:unique:<id>` | string: of whose enqueue | as long as the enqueue said; until its job is cancelled or purged |
| `rt:once:<id>` | hash: step → state | 30 days, or until the job is done |
| `rt:w:<incarnation>:<queue>` | string: last settled batch | 10 minutes |
| `rt:workers` | hash: incarnation → heartbeat | until that worker stops; after a crash 1 h, then till one boots |
| `rt:retired:<incarnation>` | string: nothing | 8 days after that worker was told to stop, as starts are remembered |
| `rt:rouse:<incarnation>:<number>` | zset: `0` | until that wait has ended, 1 minute at most |
| `rt:try:<incarnation>` | string: nothing | 1 s: whether a server that refused may be written to again |

Channels: to `rt:<queue>:here` each awake worker of the queue is subscribed, and nothing is ever published; to
`rt:stop:<incarnation>` that worker alone, to be told of runs that are to stop, by the tokens of their leases; to
`rt:reply:<name>` a process that waits for the ends of jobs, whose ids are published there, also when there is news of
their progress.

Of limits. They share a hash tag, as one script asks several of them: a cluster keeps them on one node.

| key | type | lives |
|---|---|---|
| `rt:{limit}:bucket:<label>` | string: its schedule (`lua/schedule.lua`) | until the bucket is full |
| `rt:{limit}:set:<name>` | string: rule set by an operator | as they said, else until it is reset |
| `rt:{limit}:breaker:<name>` | string: its state (`lua/schedule.lua`) | 1 h after it was last told of a failure |
| `rt:{limit}:known` | hash: name → rule as declared | 30 days after a worker with a limit last ran |
| `rt:{limit}:count:<name>` | hash: how often, how long, how many (`tally.py`) | 30 days after the last |
| `rt:{limit}:quota:<quota>:<user>` | zset: `sha1 of the body|id` → ms | an hour, or as long as a body that counts |
| `rt:{limit}:held:<label>` | zset: permit → 0, or ms (`lua/permits.lua`) | while held; if one died, 30 days at most |
| `rt:{limit}:waiting:<label>` | zset: permit → turn | while waited for; if who waits died, 5 minutes at most |
| `rt:{limit}:handed:<incarnation>` | list: permits handed to that process | until it reads them, 1 minute at most |
| `rt:{limit}:concurrency` | hash: name → most, as declared | 30 days after a worker with such a limit last ran |
"""

JOB = "arq:job:"
IN_PROGRESS = "arq:in-progress:"
RETRY = "arq:retry:"
RESULT = "arq:result:"
ABORT = "arq:abort"
OWN = "rt:own:"
ONCE = "rt:once:"
UNIQUE = "rt:unique:"
LETTER = "rt:dead:"
AWAITED = "rt:awaited:"
PROGRESS = "rt:progress:"
WORKERS = "rt:workers"
LIMIT = "rt:{limit}:"
"""What all limits begin with: one script may touch several of them, and in a cluster they are together."""
LIMITS_KNOWN = f"{LIMIT}known"
CONCURRENCY_KNOWN = f"{LIMIT}concurrency"

DAY_S = 86400
BODY_S = 90 * DAY_S
"""A body without an expiry: long enough for any backlog, and yet an id is not blocked for ever if its queue is lost."""
BODY_AFTER_EXPIRY_S = 7 * DAY_S
ONCE_S = 30 * DAY_S
AWAITED_S = 60
PROGRESS_S = 600
RETIRED_S = 8 * DAY_S
"""As long as a job remembers its starts (`lua/common.lua`): who has slept meanwhile takes it for no crash either."""


def of(prefix: str, job_id: str) -> bytes:
    """The key of a single job."""
    return prefix.encode() + id_bytes(job_id)


def id_text(raw: bytes) -> str:
    """A job's id as text. One that is no Unicode keeps its bytes, for `id_bytes` to give back."""
    return raw.decode("utf-8", "surrogateescape")


def id_bytes(job_id: str) -> bytes:
    """A job's id as the store has it."""
    return job_id.encode("utf-8", "surrogateescape")


def later(queue: str) -> str:
    return f"rt:{queue}:later"


def mark(queue: str) -> str:
    return f"rt:{queue}:mark"


def unknown(queue: str) -> str:
    return f"rt:{queue}:unknown"


def dead(queue: str) -> str:
    return f"rt:{queue}:dead"


def count(queue: str) -> str:
    return f"rt:{queue}:count"


def paused(queue: str) -> str:
    return f"rt:{queue}:paused"


def schedule(queue: str) -> str:
    return f"rt:{queue}:schedule"


def timetable(queue: str) -> str:
    return f"rt:{queue}:timetable"


def quota(name: str, user: str) -> str:
    return f"{LIMIT}quota:{name}:{user}"


def here(queue: str) -> str:
    """The channel that the workers of `queue` that are awake are subscribed to. Nothing is published there."""
    return f"rt:{queue}:here"


def stop(incarnation: str) -> str:
    """The channel on which this worker is told that one of its runs is to stop."""
    return f"rt:stop:{incarnation}"


def reply(name: str) -> str:
    """The channel on which the process of this name is told of the jobs whose ends it waits for."""
    return f"rt:reply:{name}"


def retired(incarnation: str) -> str:
    """Says that this worker was told to stop."""
    return f"rt:retired:{incarnation}"


def rouse(incarnation: str, number: int) -> str:
    """What a worker announces to itself: the end of its wait of this number."""
    return f"rt:rouse:{incarnation}:{number}"


def trial(incarnation: str) -> str:
    return f"rt:try:{incarnation}"


def bucket(label: str) -> str:
    return f"{LIMIT}bucket:{label}"


def bucket_set(name: str) -> str:
    return f"{LIMIT}set:{name}"


def bucket_count(name: str) -> str:
    return f"{LIMIT}count:{name}"


def breaker(name: str) -> str:
    return f"{LIMIT}breaker:{name}"


def held(label: str) -> str:
    return f"{LIMIT}held:{label}"


def waiting(label: str) -> str:
    return f"{LIMIT}waiting:{label}"


def handed(incarnation: str) -> str:
    return f"{LIMIT}handed:{incarnation}"


def batch(queue: str, incarnation: str) -> str:
    return f"rt:w:{incarnation}:{queue}"
