"""How a stand-in starts and how it ends."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.standins.process import ROOT, running


def test_it_says_where_it_listens_and_exits_with_0_when_told(capfd: pytest.CaptureFixture[str]) -> None:
    with running("openai") as standin:
        assert urlsplit(standin.url).hostname == "127.0.0.1"
        standin.process.terminate()
        assert standin.process.wait(5) == 0
        assert standin.process.stdout is not None
        assert standin.process.stdout.read() == ""
    assert capfd.readouterr().err == ""


def test_a_call_that_hangs_does_not_keep_it_from_stopping(capfd: pytest.CaptureFixture[str]) -> None:
    async def hang_on(url: str) -> None:
        async with aiohttp.ClientSession(url, headers={"api-key": "judit-standin"}) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get("/requests/any")

    async def scenario() -> None:
        with running("judit") as standin:
            standin.fault({"hang": True})
            call = asyncio.create_task(hang_on(standin.url))
            while not standin.log()["requests"]:
                await asyncio.sleep(0.01)
            standin.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(standin.process.wait, 5) == 0
            await call

    asyncio.run(scenario())
    assert capfd.readouterr().err == ""


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    program = """if True:
        import time
        from tests.standins.process import running
        with running("openai") as standin:
            print(standin.url, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        where = urlsplit(parent.stdout.readline().strip())
        assert where.port is not None
        assert _listens(where.port)
        parent.kill()
    deadline = time.monotonic() + 5
    while _listens(where.port):
        assert time.monotonic() < deadline, "it still listens"
        time.sleep(0.02)


def test_a_port_that_is_taken_is_said_in_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match="did not start"), running("openai", "--port", str(port)):
            pass
    assert capfd.readouterr().err == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:  # met in the act of closing
        return True
    return True
