"""What users' tests import. The fixture `rt` comes from the pytest plugin (`runtime.testing.plugin`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.testing.harness import Failure, Harness

__all__ = ["Failure", "Harness"]

if not TYPE_CHECKING:  # the plugin is loaded into every test run, whether it has jobs or not

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'runtime.testing' has no attribute {name!r}")
        from runtime.testing import harness

        return getattr(harness, name)
