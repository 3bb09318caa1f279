"""The jobs of the benchmark as handlers of this worker."""

from runtime import handler
from tests.benchmarks import jobs

noop = handler(jobs.noop)
nap = handler(jobs.nap)
marked = handler(jobs.marked)
