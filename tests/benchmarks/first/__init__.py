"""The first job of a worker, for `tests.benchmarks.start`: each contender imports its own module and no other's."""
