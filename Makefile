# The README's two commands are `make run` and `make test`; both build what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: run test check campaign weather limits sleep bench bench-limits image model mutants lock clean

run: $(VENV)/run.stamp
	@$(BIN)/python -m tests.standins.demo

test: check
	$(BIN)/python -m pytest -q -n 5 --dist loadfile

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/basedpyright

# Everything that may go wrong, against this worker and stock arq, five seeds where chance plays a part: 45 minutes at
# most. It writes docs/faults.md; `python -m tests.campaign --help` says what else it can.
campaign: $(VENV)/dev.stamp
	$(BIN)/python -m tests.campaign --full --report docs/faults.md

# Everything that Redis may do to a worker; `make test` tries the commonest.
weather: $(VENV)/dev.stamp
	RUNTIME_TEST_WEATHER=all $(BIN)/python -m pytest -q tests/faults/test_weather.py

# Eight processes that want the tokens of one bucket, for 20 s each: calm, kills, restarts, storms; `make test` tries some.
limits: $(VENV)/dev.stamp
	$(BIN)/python -m tests.campaign --only K5.5 --against runtime
	RUNTIME_TEST_LIMITS=all $(BIN)/python -m pytest -q -s tests/limits

# A simulated platform puts workers to sleep, and wakes them; eleven minutes at the server's default keepalive.
sleep: $(VENV)/dev.stamp
	RUNTIME_TEST_SLEEP=all $(BIN)/python -m pytest -q -s --timeout=900 tests/platform

# Beside arq, BullMQ (where Node is) and the floor of the wire format: fifteen minutes at most. What else it can: --help.
bench: $(VENV)/dev.stamp
	$(BIN)/python -m tests.benchmarks

# The bucket beside the limiters of others, which it names when they are not installed.
bench-limits: $(VENV)/dev.stamp
	$(BIN)/python -m tests.benchmarks.limits

# Builds the Dockerfile and runs what it built, without an engine: as root, with Debian's buildah and mmdebstrap.
image: $(VENV)/dev.stamp
	RUNTIME_TEST_IMAGE=1 $(BIN)/python -m pytest -q tests/image

# The queue's and the buckets' scripts against their models, over other histories at each run; and whole workers over the
# queue's model, in virtual time.
EXAMPLES ?= 5000
model: $(VENV)/dev.stamp
	MODEL_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q --timeout=0 tests/redis/test_model.py tests/redis/test_bucket_model.py
	$(BIN)/python -m tests.simulation --seeds 0-$(EXAMPLES)

# Each guard of the scripts taken away: a test must fail.
mutants: $(VENV)/dev.stamp
	$(BIN)/python -m tests.mutations

# Hashed, and without the address of any index. The first is the image's, the second `make run`'s.
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate --no-header --allow-unsafe
lock: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet pip-tools
	$(COMPILE) --extra otlp --output-file requirements.lock pyproject.toml requirements.in
	$(COMPILE) --extra otlp --extra embedded --output-file requirements-run.lock pyproject.toml requirements.in
	$(COMPILE) --extra otlp --extra embedded --extra dev --output-file requirements-dev.lock pyproject.toml requirements.in

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements-run.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-run.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(BIN)/python -m compileall -q runtime handlers   # where PYTHONDONTWRITEBYTECODE is set, each start would do it
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) .bench build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
