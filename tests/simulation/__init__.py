"""Whole histories of a few workers in virtual time, each drawn from the number of its seed and from nothing else.

A worker is what runs in production: supervisor, actors, `AsyncioRunner`, `RedisSource`, `Weather` and the keeper's
thread. Each has an event loop of its own, which takes a turn when its time has come, and stands still while the worker
is stopped. Behind the worker's connections there is no Redis: a network that delays, drops, cuts and delivers twice,
and the model of `tests/redis/model.py`, to which the real scripts are held by `tests/redis/test_model.py`.

    python -m tests.simulation --seeds 0-4999
    python -m tests.simulation --trace 137
"""
