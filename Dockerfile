# syntax=docker/dockerfile:1
# The worker as an image: `docker build -t worker .`, and `make image` where there is no engine.
# No HEALTHCHECK: platforms ask /health over HTTP, and each look by a process of its own would cost a Python's start.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /app
RUN python3 -m venv /venv
COPY requirements.lock .
# Without the embedded server: a store inside the container would die with it.
RUN /venv/bin/python -m pip install --no-cache-dir --no-compile --require-hashes -r requirements.lock \
 && /venv/bin/python -m pip uninstall -q -y pip setuptools
COPY pyproject.toml ./
COPY runtime runtime
COPY handlers handlers
# Bytecode that holds whatever time stamps the files get on their way: else each start would compile everything again.
RUN /venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /venv/lib /app

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin worker
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
EXPOSE 3002
# Python is process 1 and gets the signals itself. It reaps the programs that handlers start, but not what those leave
# behind when they are killed (a browser's helpers): such an image wants `docker run --init`, or tini in front.
ENTRYPOINT ["python", "-m", "runtime"]
CMD ["serve"]
