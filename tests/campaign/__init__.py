"""The fault campaign: everything that may go wrong around a worker, done to ours and to stock arq, and judged alike.

    python -m tests.campaign [--quick | --full] [--only K1.2 …] [--seed N …]
                             [--against arq | runtime | both] [--report FILE]

A scenario is a function of a `Stage` that returns a verdict, and a row that says in words what it does:

    def drain(stage: Stage) -> Verdict:
        worker = stage.worker(slots=10).up()
        stage.acked(*(jobs.work.request(1.0) for _ in range(10)))
        ...
        return stage.judged(Terms(reclaim_s=12), drained_s=took)

    SCENARIOS = (
        Scenario("K1.5", "What is done.", "What must hold.", ("I1", "I10"), drain, deadline_s=60),
    )

The tuple's module is named in `registry.py`; that is all. What the stage gives (a server of its own, workers, a ledger
outside Redis) is gone when the function returns. What a test would assert is a `Breach`, or judged from the ledger by
`judge`; a wait that ends in an AssertionError is a breach too. What a machine cannot do is a `Need`; what means nothing
for one of the two subjects says so (`not_for`). `quick.py` makes tests of the quick ones, against ours.
"""
