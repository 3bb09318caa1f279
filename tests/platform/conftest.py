from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.platform.network import Network, NoNetwork
from tests.platform.sockets import Sockets


@pytest.fixture
def private() -> Iterator[Network]:
    """A network for one worker; the test is skipped where the machine allows none, as in many containers."""
    try:
        made = _network()
    except NoNetwork as why:
        pytest.skip(str(why))
    with made:
        yield made


@pytest.fixture
def network() -> Iterator[Network | Sockets]:
    """The same, or else a look at the worker's sockets. RUNTIME_TEST_NETWORK=sockets looks at them in any case."""
    try:
        made = Sockets() if os.environ.get("RUNTIME_TEST_NETWORK") == "sockets" else _network()
    except NoNetwork:
        made = Sockets()
    with made:
        yield made


def _network() -> Network:
    made = Network()
    made.up()
    return made
