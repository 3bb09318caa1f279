"""An application that was written for arq, served as it is: `runtime serve --arq package.module.WorkerSettings`.

arq's own objects (`func`, `cron`, `RedisSettings`, `ArqRedis`, `Retry`) are taken as they are, so this is the only part
that imports arq. What a job's end means is arq's (a plain exception or a timeout is final); how jobs are claimed, held,
given back and found again is ours.

    application   what a settings class says, checked
    address       where its Redis is, as a URL
    codec         how its bodies and results are written and read
    functions     its functions and cron jobs, as handlers
    session       what lives as long as the worker does: ctx, its ArqRedis, the hooks, the health key, burst mode
"""

from runtime.arq.application import Application, read
from runtime.arq.session import Session

__all__ = ["Application", "Session", "read"]
