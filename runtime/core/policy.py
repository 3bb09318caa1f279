"""What happens after an attempt: from an exception to an outcome. Decisions only; the caller acts."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Literal

from runtime.core import errors
from runtime.core.errors import (
    Category,
    JobError,
    LeaseLost,
    LifespanMissing,
    Limited,
    LimitInvalid,
    ProgressInvalid,
    RetryLater,
    Snooze,
    Transient,
)
from runtime.core.job import (
    Call,
    Cancelled,
    Claim,
    Dead,
    Done,
    ErrorRecord,
    Failure,
    History,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Unreadable,
)
from runtime.core.redaction import Redactor
from runtime.core.retry import Retry
from runtime.core.span import spell
from runtime.core.spec import Spec
from runtime.core.values import frozen

MAX_CRASHES = 3
CRASH_DELAY_S = (0.0, 10.0)
"""How long a job waits after its first and its second crash, as `claim.lua` has it for leases that lapsed."""
SUSPECT_DELAY_S = (0.5, 5.0)
"""So long, by chance, a suspect waits for another one of the same worker to end. Were it the same for all, those that
were put off together would come back together, and one of them would run each time.
"""
UNKNOWN_FOR_S = 24 * 3600.0
"""So long a job waits for a worker that knows its handler."""
UNKNOWN_DELAY_S = (1.0, 300.0)
STALE_ABORT_MS = 5000
"""An abort flag that is older than its job by more than this was meant for an earlier job of the same id."""
ABORTED_PLACE = 1.0
"""The score that stock arq gives to a deferred job that is aborted, so that a worker sees it (arq 0.28 `jobs.py`)."""
TEXT_LIMIT = 2000
"""As much of a failure's text is kept, once it is redacted."""
_READ = 16_384
ERRORS_KEPT = 10


def suspect(claim: Claim) -> bool:
    """Whether the job has seen its workers die so often that the next time makes it a dead letter.

    It may be one of those that were only beside the one that does it. So it is run beside no other suspect.
    """
    return claim.history.crashes == MAX_CRASHES - 1


def before_run(claim: Claim, spec: Spec | None, *, beside_suspect: bool = False, chance: float = 0.0) -> Outcome | None:
    """What becomes of a claimed job without running it, or None to run it.

    `spec` is None for an unknown handler; `beside_suspect`: another suspect runs in this process. `chance` (in [0, 1))
    comes from the caller.
    """
    call, history = claim.call, claim.history
    if isinstance(call, Unreadable):
        return Dead("undecodable", Failure("Undecodable", call.reason, "validation"))
    if claim.abort_ms is not None and _meant(claim, call, claim.abort_ms):
        return Cancelled()
    if history.crashes >= MAX_CRASHES:
        text = f"the worker died or was out of reach {history.crashes} times while it ran this job"
        return Dead("crashed", Failure("Crashed", text, "resource"))
    if call.expires_ms is not None and claim.now_ms > call.expires_ms:
        return Dead("expired", Failure("Expired", "it was not started before its expiry", "permanent"))
    if spec is None:
        return _unknown(call, history, claim.now_ms)
    if _failures(claim) > spec.retry.attempts:
        text = f"started {claim.attempt} times, {history.crashes} crashes among them; allowed are {spec.retry.attempts}"
        return Dead("exhausted", Failure("Exhausted", text, "transient"))
    if beside_suspect and suspect(claim):
        least, most = SUSPECT_DELAY_S
        return Released("suspect", least + chance * (most - least))
    return None


def _meant(claim: Claim, call: Call, abort_ms: int) -> bool:
    """Whether a flag is for this job, and not for an earlier one of its id. Its time is by some client's clock."""
    return float(claim.place) == ABORTED_PLACE or abort_ms + STALE_ABORT_MS >= call.enqueued_ms


def _failures(claim: Claim) -> int:
    """Attempts that failed, the present one counted as if it had; a crash is not the job's failure until proven."""
    return claim.attempt - claim.history.crashes


def _unknown(call: Call, history: History, now_ms: int) -> Outcome:
    # It waits as long again as it has waited: the delay doubles, and no counter is needed.
    waited_s = 0.0 if history.unknown_since_ms is None else (now_ms - history.unknown_since_ms) / 1000
    if waited_s >= UNKNOWN_FOR_S:
        text = f"for {spell(waited_s)} no worker has known the handler {call.handler!r}"
        return Dead("unknown-handler", Failure("UnknownHandler", text, "permanent"))
    least, most = UNKNOWN_DELAY_S
    return Released("unknown-handler", min(max(waited_s, least), most))


Stop = Literal["timeout", "abort", "shutdown", "lost"]
"""Why a run was asked to stop."""
CancelReason = Literal["user", "timeout", "shutdown", "lost lease"]
"""The same, as a handler is told."""
CANCEL_REASONS: Mapping[Stop, CancelReason] = {
    "abort": "user",
    "timeout": "timeout",
    "shutdown": "shutdown",
    "lost": "lost lease",
}


@frozen
class Ended:
    """How a run came to its end: with a value, or with an error; and whether it had been asked to stop."""

    value: object = field(default=None, repr=False)
    error: BaseException | None = None
    stop: Stop | None = None


def after_run(
    ended: Ended, claim: Claim, retry: Retry, now_ms: int, chance: float, *, aborted: bool = False
) -> Outcome | None:
    """The outcome of a run; None where the job is no longer ours to settle.

    A run that returns in spite of being asked to stop has done its work, and doing it again would help nobody.
    `aborted`: somebody has cancelled the job meanwhile, whatever the run was asked to stop for first. `now_ms` and
    `chance` (in [0, 1)) come from the caller.
    """
    if ended.stop == "lost" or isinstance(ended.error, LeaseLost):
        return None
    if ended.error is None:
        return Done(ended.value)
    if aborted or ended.stop == "abort":
        return Cancelled()
    if ended.stop == "shutdown":
        return Released("shutdown")
    return after_error(ended.error, claim, retry, now_ms, chance)


class Final(Exception):
    """Raised by an entry whose application has rules of its own: by those the job has failed for good, with `error`."""

    def __init__(self, error: BaseException, reason: Literal["permanent", "exhausted"] = "permanent") -> None:
        super().__init__(reason)
        self.error = error
        self.reason: Literal["permanent", "exhausted"] = reason


def after_error(error: BaseException, claim: Claim, retry: Retry, now_ms: int, chance: float) -> Outcome:
    """The outcome of an attempt that ended with `error`."""
    if isinstance(error, Snooze):
        return _snooze(error, claim, now_ms)
    if isinstance(error, Final):
        return Dead(error.reason, replace(describe(error.error), raised=error.error))
    failure = describe(error)
    failures = _failures(claim)
    wanted_s = _asked_delay_s(error)
    if wanted_s is None and (failure.category in ("permanent", "validation") or not isinstance(error, retry.on)):
        return Dead("permanent", failure)
    if failures >= retry.attempts:
        return Dead("exhausted", failure)
    return Retried(retry.delay_s(failures, chance) if wanted_s is None else wanted_s, failure)


def _snooze(ask: Snooze, claim: Claim, now_ms: int) -> Outcome:
    if isinstance(ask, Limited):
        return Snoozed(ask.delay_s, waits_for=ask.by)
    since_ms = claim.history.snoozed_since_ms or now_ms
    if ask.give_up_after_s is not None and now_ms - since_ms > ask.give_up_after_s * 1000:
        text = f"still not ready after snoozing for {spell((now_ms - since_ms) / 1000)}"
        return Dead("gave-up", Failure("Snooze", text, "transient"))
    return Snoozed(ask.delay_s)


def asks_for_another_run(error: BaseException) -> bool:
    """Whether this is a handler's way of asking to be run again: then nothing that it used need be broken."""
    return not isinstance(error, Transient) and (isinstance(error, Snooze) or _asked_delay_s(error) is not None)


def _asked_delay_s(error: BaseException) -> float | None:
    """The wait that the handler itself asked for: by `RetryLater`, `Transient(after=…)` or arq's `Retry`."""
    if isinstance(error, RetryLater):
        return error.delay_s
    if isinstance(error, Transient) and error.after_s is not None:
        return error.after_s
    # arq's own classes are known by name: a worker that serves no arq application never imports arq.
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if "arq.worker.Retry" in names:
        return float(getattr(error, "defer_score", None) or 0) / 1000
    return 0.0 if "arq.worker.RetryJob" in names else None


def after_crash(claim: Claim, failure: Failure, now_ms: int) -> tuple[Outcome, History]:
    """What becomes of the job whose handler has made an end of its worker, where the worker could still tell how.

    That is a crash like any other, with a `failure` that says more.
    """
    crashes = claim.history.crashes + 1
    last = crashes >= MAX_CRASHES
    outcome = Dead("crashed", failure) if last else Retried(CRASH_DELAY_S[crashes - 1], failure)
    return outcome, replace(remember(claim, outcome, now_ms), crashes=crashes)


def remember(claim: Claim, outcome: Outcome, now_ms: int, trace: str | None = None) -> History:
    """What the job is to know at its next claim, or in its dead letter. `trace` is the run's, if it had one."""
    past = claim.history if trace is None else replace(claim.history, trace=trace)
    if isinstance(outcome, Released) and outcome.why == "unknown-handler":
        return replace(past, unknown_since_ms=past.unknown_since_ms or claim.now_ms)
    if past.unknown_since_ms or past.waits_for:
        past = replace(past, unknown_since_ms=None, waits_for=None)
    match outcome:
        case Retried(failure=failure) | Dead(failure=failure):
            record = ErrorRecord(claim.attempt, now_ms, failure.error, failure.text, failure.category)
            return replace(past, errors=(*past.errors, record)[-ERRORS_KEPT:])
        case Snoozed(waits_for=str()):
            return replace(past, waits_for=outcome.waits_for, snoozes=past.snoozes + 1)
        case Snoozed():
            return replace(past, snoozed_since_ms=past.snoozed_since_ms or now_ms, snoozes=past.snoozes + 1)
        case _:
            return past


def attempt_after(claim: Claim, outcome: Outcome) -> int:
    """The number of starts that the store is to keep: being stopped, snoozed or misrouted is not failing."""
    return claim.attempt if isinstance(outcome, Retried) else claim.attempt - 1


CANCELLED_S = 60.0
"""So long it can be seen that a job was cancelled, also where its handler keeps no results: somebody asked for it."""


def kept_s(outcome: Outcome, keep_result_s: float) -> float:
    """How long the result of a job with this outcome is kept."""
    return max(keep_result_s, CANCELLED_S) if isinstance(outcome, Cancelled) else keep_result_s


def failed(outcome: Outcome) -> bool:
    """The job ended, and not well."""
    return isinstance(outcome, Dead | Cancelled)


def ended(outcome: Outcome) -> bool:
    """The job will not run again."""
    return isinstance(outcome, Done | Dead | Cancelled)


def describe(error: BaseException) -> Failure:
    """`error` as names and text, not yet redacted. Never raises, whatever the exception's own methods do."""
    kind = type(error)
    builtin = kind.__module__ == "builtins"
    try:
        text = str(error)[:_READ].encode("utf-8", "backslashreplace").decode()
    except BaseException:  # its __str__ is the user's code
        text = "(its text cannot be read)"
    module = "runtime" if kind.__module__ == errors.__name__ else kind.__module__  # as their users import them
    name = kind.__qualname__ if builtin else f"{module}.{kind.__qualname__}"
    return Failure(name, text, categorise(error), builtin)


def redacted(outcome: Outcome, redact: Redactor) -> Outcome:
    """`outcome` fit to be written down and shown: its text without secrets, and not too long."""
    if not isinstance(outcome, Retried | Dead):
        return outcome
    failure = outcome.failure
    text = redact.text(failure.text, TEXT_LIMIT - 1)  # and a mark where it was cut
    if text == failure.text:
        return outcome
    raised = failure.raised if redact.text(failure.text) == failure.text else None  # it would tell what is not to be
    return replace(outcome, failure=replace(failure, text=text, raised=raised))


def categorise(error: BaseException) -> Category:
    """The kind of failure: said by the handler, or read from an HTTP status, or from the type; `transient` in doubt."""
    if isinstance(error, JobError):
        return error.category
    if isinstance(error, MemoryError):
        return "resource"
    if isinstance(error, LimitInvalid | ProgressInvalid | LifespanMissing):
        return "permanent"
    status = _http_status(error)
    if status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429):
        return "permanent"
    return "transient"


def _http_status(error: BaseException) -> int | None:
    """The HTTP status an exception carries, as aiohttp (`status`), OpenAI (`status_code`) and httpx (`response`) do."""
    try:
        for holder in (error, getattr(error, "response", None)):
            for name in ("status", "status_code"):
                value = getattr(holder, name, None)
                if isinstance(value, int):
                    return value
    except BaseException:  # a property of the user's exception
        return None
    return None
