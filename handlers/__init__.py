"""The handlers that this worker serves: `runtime serve` takes every module of this package."""
