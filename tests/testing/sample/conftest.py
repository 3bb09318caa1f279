from collections.abc import Sequence

import pytest

from runtime.testing.declared import Given


@pytest.fixture
def rt_handlers() -> Sequence[Given]:
    return ["tests.testing.sample.handlers"]
