"""What must hold whatever happens."""

INVARIANTS = {
    "I1": "No loss: each job that was accepted ends once (done, failed, cancelled, a dead letter) or is still queued.",
    "I2": "One settlement: of each enqueued job one outcome at most is accepted.",
    "I3": "Executions: no more than one, and one for each crash, lapse, release and failure of that job.",
    "I4": "Fencing: once a job is claimed again, nothing that its earlier claim writes is accepted.",
    "I5": "Reclaim: a killed worker's job starts again within 12 s, whatever its timeout; after more crashes, later.",
    "I6": "Bounds: never more jobs at once than there are slots.",
    "I7": "Nothing left: with an empty queue no key of a single job remains.",
    "I8": "Isolation: beside a bad job all others finish within twice their time.",
    "I9": "Weather: no trouble ends the process or loses an outcome, readiness tells, progress comes back within 5 s.",
    "I10": "Tries: deploys, drains and releases cost no attempt; three crashes make a dead letter.",
    "I11": "Secrets: none appears in anything that leaves the worker.",
    "I12": "Interop: stock clients keep their meaning; nobody starts what another worker holds.",
    "I13": "Rates: never more calls in any window than the limit.",
    "I14": "Sleep: quiet means no packet, no job due, no lease; enqueue and wake mean a start.",
    "I15": "Memory: no slope over many jobs, descriptors and tasks back to where they were.",
    "I16": "Inputs are data: nothing that a body names is imported, opened or run, no id is more than a text.",
    "I17": "Clocks: when a job is due is decided by the server's alone, how long it took by none that can be set.",
    "I18": "Schedules: each occurrence is fired once, whoever dies, sleeps, or has a wrong clock.",
}
