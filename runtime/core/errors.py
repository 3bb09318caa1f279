"""The exceptions people meet: mistakes they can mend, how a handler tells what went wrong, and how a job ended."""

from typing import ClassVar, Literal

from runtime.core.span import Span, seconds

Category = Literal["transient", "permanent", "resource", "validation"]
"""What kind of failure: worth another try, not worth one, short of something, or bad input."""


class Problem(Exception):
    """A mistake that a person can mend. It names the thing, the rule and the fix.

    `exit_code` is what a command that meets it exits with (the table is in the README).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        return "; ".join(part for part in (self.message, self.cause, self.hint) if part)


class UsageInvalid(Problem):
    """The command line cannot be understood."""

    exit_code = 2


class RedisUnreachable(Problem):
    """No answer from the Redis that the settings name."""

    exit_code = 69


class RedisRefused(Problem):
    """Redis is well and refused this alone: a key of the queue, the job or its quota is of a wrong type, say."""


class WaitTimedOut(Problem):
    """The time given was over first; what was waited for may still come."""

    exit_code = 75


class SettingsInvalid(Problem):
    """One or more settings are wrong; all of them are told at once."""

    exit_code = 78


class HandlerInvalid(Problem):
    """A handler module cannot be imported, or what it declares breaks a rule."""

    exit_code = 78


class HandlerUnknown(Problem):
    """No handler has this name."""

    exit_code = 2


class PayloadInvalid(Problem):
    """The arguments do not fit the handler's signature. Nothing was written."""

    exit_code = 2


class OptionInvalid(Problem):
    """An option of an enqueue breaks its rule. Nothing was written."""

    exit_code = 2


class LimitInvalid(Problem):
    """A limit is declared, or asked for, against its rules. Nothing was taken."""

    exit_code = 78


class ProgressInvalid(Problem):
    """What a handler tells of its progress is no number from 0, or no text. Nothing was shown."""

    exit_code = 78


class LifespanMissing(Problem):
    """A handler asks for `ctx.state`, and its worker has none."""

    exit_code = 78

    def __init__(self) -> None:
        super().__init__(
            "ctx.state: the worker has no state",
            cause="no lifespan is declared in the modules that it serves",
            hint="declare one: `@lifespan async def resources() -> AsyncIterator[State]: …; yield state`",
        )


class LifespanFailed(Problem):
    """The state of the handlers could not be opened, or ended by itself. The worker ends with it."""


class LimitUnknown(Problem):
    """No worker has told of a limit of this name."""

    exit_code = 2


class QuotaExceeded(Problem):
    """The job's user has enqueued too many in an hour, or has too many that have not ended. Nothing was written."""

    exit_code = 75

    def __init__(
        self,
        message: str,
        *,
        hint: str,
        quota: str,
        which: Literal["hourly", "pending"],
        limit: int,
        retry_after_s: float,
    ) -> None:
        super().__init__(message, hint=hint)
        self.quota = quota
        self.which = which
        self.limit = limit
        self.retry_after_s = retry_after_s
        """Hourly: until so many jobs are older than an hour that these fit in. Pending: 5 s, for nobody knows."""


class JobError(Exception):
    """Base of the four ways in which a handler says what kind of failure it met."""

    category: ClassVar[Category] = "transient"


class Transient(JobError):
    """It may work next time: retried by the handler's policy, or after so long if that is known."""

    def __init__(self, *args: object, after: Span | None = None) -> None:
        super().__init__(*args)
        self.after_s = None if after is None else seconds(after)


class Permanent(JobError):
    """It will never work: a dead letter at once."""

    category = "permanent"


class ResourceExhausted(JobError):
    """Something ran out (memory, disk, a quota of ours): retried by the handler's policy."""

    category = "resource"


class Invalid(JobError):
    """The input is wrong: a dead letter at once."""

    category = "validation"


class Snooze(Exception):
    """Raised by a handler: run this job again after `delay`. No slot is held meanwhile, no attempt is used.

    With `give_up_after`, a job that has been snoozing for longer becomes a dead letter.
    """

    def __init__(self, delay: Span, *, give_up_after: Span | None = None) -> None:
        self.delay_s = seconds(delay)
        self.give_up_after_s = None if give_up_after is None else seconds(give_up_after)
        super().__init__(f"run again in {self.delay_s:g} s")


class Limited(Snooze):
    """Raised by `ctx.limit`: it would have to wait for longer than its patience, or the provider's breaker is open.

    Nothing was taken. The job runs again when it could go on; no slot is held meanwhile, no attempt is used. `by` is
    the label of the bucket, or the breaker.
    """

    def __init__(self, by: str, delay: Span) -> None:
        super().__init__(delay)
        self.by = by


class RetryLater(Exception):
    """Raised by a handler: this attempt failed, try again after `delay` if an attempt is left."""

    def __init__(self, delay: Span) -> None:
        self.delay_s = seconds(delay)
        super().__init__(f"try again in {self.delay_s:g} s")


class LeaseLost(Exception):
    """This run no longer owns its job: another worker has it, or it was settled. Nothing it does is recorded."""


class JobFailed(Exception):
    """Raised by `Job.result()`: the job ended in failure.

    `error` is the type's name (`builtins.ValueError`), `text` its message.
    """

    def __init__(self, job_id: str, error: str, text: str) -> None:
        super().__init__(f"job {job_id} failed: {error}: {text}" if text else f"job {job_id} failed: {error}")
        self.job_id = job_id
        self.error = error
        self.text = text


class JobCancelled(JobFailed):
    """Raised by `Job.result()`: the job was aborted."""


class ResultUnknown(Exception):
    """Raised by `Job.result()`: there is no such job, or its result has expired."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} is not known: it never existed, kept no result, or its result has expired")
        self.job_id = job_id
