"""A worker that imports this sends a heartbeat every half second."""

from runtime.adapters.redis import heartbeats

heartbeats.BEAT_S = 0.5
