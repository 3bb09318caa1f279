"""A function of an arq application as a handler: arq's rules for what becomes of its jobs."""

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from arq.cron import CronJob
from arq.utils import ms_to_datetime, to_unix_ms
from arq.worker import Function, JobExecutionFailed, RetryJob
from arq.worker import Retry as ArqRetry

from runtime.arq import crons
from runtime.core.errors import LeaseLost, RetryLater, Snooze
from runtime.core.policy import Final
from runtime.core.retry import Retry
from runtime.core.spec import Spec, declared_at
from runtime.declare import Handler
from runtime.engine.context import Context, untimed

if TYPE_CHECKING:
    from runtime.arq.application import Application
    from runtime.arq.session import Session

AS_OFTEN_AS_ASKED = Retry(2**31, on=())
"""No failure is repeated by itself. How often a function may ask for it is counted where its next run begins."""
HOOK_S = 300.0
"""So much of a hook's time is no part of the function's timeout. In arq none of it is, and a hook may take for ever."""
OURS = (Snooze, RetryLater, LeaseLost)
"""What a function may raise that begins to use what arq does not have."""


class ArqFunction(Handler[..., Any]):
    """Runs the hooks around the function, with one ctx for all of them, a dict of its own for each run."""

    def __init__(self, function: Function | CronJob, application: "Application", session: "Session") -> None:
        super().__init__(function.coroutine, _spec(function, application), {})
        self._max_tries = application.max_tries if function.max_tries is None else function.max_tries
        self._retry_jobs = application.retry_jobs
        self._session = session

    async def run(self, context: Context, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """As arq runs a job; raises `Final` for what has failed by arq's rules."""
        if context.attempt - context.crashes > self._max_tries:
            raise Final(JobExecutionFailed(f"max {self._max_tries} retries exceeded"), "exhausted")
        ctx = await self._session.enter(_job_ctx(context))
        await self._begin(context, ctx)
        try:
            return await self.function(ctx, *args, **kwargs)
        except (ArqRetry, RetryJob) as error:
            if self._retry_jobs:
                raise
            raise Final(error) from None
        except OURS:
            raise
        except Exception as error:
            raise Final(error) from None
        finally:
            await self._end(context, ctx)

    async def _begin(self, context: Context, ctx: dict[str, Any]) -> None:
        if self._session.has("on_job_start"):
            try:
                with untimed(context, HOOK_S):
                    await self._session.hook("on_job_start", ctx)
            except Exception as error:
                raise Final(error) from None

    async def _end(self, context: Context, ctx: dict[str, Any]) -> None:
        if self._session.has("on_job_end"):
            with untimed(context, HOOK_S), context.shield(HOOK_S):
                await self._session.try_hook("on_job_end", ctx)
        self._session.leave(context.job_id, context.attempt)


def _job_ctx(context: Context) -> dict[str, Any]:
    return {
        "job_id": context.job_id,
        "job_try": context.attempt,
        "enqueue_time": ms_to_datetime(to_unix_ms(context.enqueued_at)),
        "score": context["score"],
    }


def _spec(function: Function | CronJob, application: "Application") -> Spec:
    for_ever = application.keep_result_forever if function.keep_result_forever is None else function.keep_result_forever
    keep_s = application.keep_result_s if function.keep_result_s is None else function.keep_result_s
    if isinstance(function, CronJob) and function.unique and function.job_id is None:
        keep_s = max(keep_s, crons.KEEP_S)
    return Spec(
        name=function.name,
        queue=application.queue,
        timeout_s=application.job_timeout_s if function.timeout_s is None else function.timeout_s,
        retry=AS_OFTEN_AS_ASKED,
        keep_result_s=math.inf if for_ever else keep_s,
        where=declared_at(inspect.unwrap(function.coroutine)),
        timetable=crons.timetable(function, application.timezone) if isinstance(function, CronJob) else None,
        shared_id=function.job_id if isinstance(function, CronJob) else None,
    )
