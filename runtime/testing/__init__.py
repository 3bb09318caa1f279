"""What users' tests import. The fixture `rt` comes from the pytest plugin (`runtime.testing.plugin`)."""

from runtime.testing.harness import Failure, Harness

__all__ = ["Failure", "Harness"]
