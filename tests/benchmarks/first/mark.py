"""What the job does: it leaves a trace outside of the worker."""

import time


def leave(path: str) -> None:
    """Write down when."""
    with open(path, "w") as file:
        file.write(f"{time.monotonic()}\n")
