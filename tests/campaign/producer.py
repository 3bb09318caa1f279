"""Enqueues two jobs, and notes each as accepted once it is told so: python -m tests.campaign.producer runtime | arq"""

import os
import sys
from typing import cast

from tests.campaign.subjects import SUBJECTS, SubjectName
from tests.faults import jobs
from tests.faults.ledger import Ledger


def main(subject: str) -> None:
    ledger = Ledger(os.environ[jobs.LEDGER])
    for key in ("first", "second"):
        (job,) = SUBJECTS[cast("SubjectName", subject)].enqueue(
            os.environ["REDIS_URL"], jobs.work.options(key=key).request(0.05)
        )
        ledger.note("acked", job)


if __name__ == "__main__":
    main(*sys.argv[1:])
