from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.platform.network import Network, NoNetwork
from tests.platform.sleeping import own_network, some_network
from tests.platform.sockets import Sockets


@pytest.fixture
def private() -> Iterator[Network]:
    """A network for one worker; the test is skipped where the machine allows none, as in many containers."""
    try:
        made = own_network()
    except NoNetwork as why:
        pytest.skip(str(why))
    with made:
        yield made


@pytest.fixture
def network() -> Iterator[Network | Sockets]:
    """The same, or else a look at the worker's sockets. RUNTIME_TEST_NETWORK=sockets looks at them in any case."""
    with some_network() as made:
        yield made
