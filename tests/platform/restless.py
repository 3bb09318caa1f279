"""A worker that goes quiet after less than may be set, so that it can be watched doing so a thousand times.

`python -m tests.platform.restless MODULE`; apart from that it is `runtime serve`.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from runtime import app, groups, registry, settings
from tests.processes import Worker

AFTER_S = 1.1
"""Longer than the second in which it obeys only one ring. And no multiple of the governor's looks, of which there are
four a second: so it is always the same one that finds it idle."""


class Restless(Worker):
    """One of these, read, signalled and killed as a worker is."""

    program = ("tests.platform.restless",)


def main(module: str) -> int:
    config = replace(settings.read(), sleep_after_s=AFTER_S)
    assert config.redis_url is not None
    handlers = registry.collect([module])
    return app.serve(config, config.redis_url, handlers, groups.groups(handlers, [], config.concurrency))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
