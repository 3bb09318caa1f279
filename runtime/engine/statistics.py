"""What a worker has done since it started."""

from runtime.core.job import Done, Outcome, Retried
from runtime.core.policy import ended


class Statistics:
    """Counts of one worker, in memory; every count is of settled outcomes, except what is of the moment."""

    def __init__(self) -> None:
        self.processed = 0
        self.succeeded = 0
        self.failed = 0
        self.retried = 0
        self.running = 0
        self.begun = 0
        """Runs, whatever has become of them."""
        self.peak = 0
        self.suspect: str | None = None
        """The token of the run, if any, whose job is suspected of killing its workers."""

    def entered(self) -> None:
        self.running += 1
        self.begun += 1
        self.peak = max(self.peak, self.running)

    def left(self) -> None:
        self.running -= 1

    def count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Retried):
            self.retried += 1
        if not ended(outcome):
            return
        self.processed += 1
        if isinstance(outcome, Done):
            self.succeeded += 1
        else:
            self.failed += 1
