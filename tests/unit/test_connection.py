"""What people are told of a Redis error, and how connections are made."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
import redis
from redis._parsers.base import BaseParser

from runtime.adapters.redis import connection
from runtime.adapters.redis.connection import away_of, cause_of, concerns_the_server, connect, connect_blocking

SAID = {
    "LOADING Redis is loading the dataset in memory": "still loading its data (LOADING)",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "(MASTERDOWN)",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "(BUSY)",
    "CLUSTERDOWN Hash slot not served": "(CLUSTERDOWN)",
    "MOVED 3999 10.0.0.7:6381": "(MOVED)",
    "ASK 3999 10.0.0.7:6381": "(MOVED)",
    "NOAUTH Authentication required.": "wants a password (NOAUTH)",
    "WRONGPASS invalid username-password pair or user is disabled.": "wrong password or user",
    "ERR invalid password": "wrong password or user",
    "ERR Client sent AUTH, but no password is set": "wrong password or user",
    "NOPERM this user has no permissions to run the 'evalsha' command": "lacks a permission (NOPERM)",
    "ERR The user executing the script can't run this command or subcommand": "(NOPERM)",
    "ERR ACL failure in script: User p has no permissions to run the 'set' command script: on @user_script:1.": (
        "(NOPERM)"
    ),
    "READONLY You can't write against a read only replica.": "is a replica (READONLY)",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": "(READONLY)",
    "OOM command not allowed when used memory > 'maxmemory'.": "out of memory (OOM)",
    "ERR Error running script (call to f_0af): @user_script:9: -OOM command not allowed": "out of memory (OOM)",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": "(MISCONF)",
    "NOREPLICAS Not enough good replicas to write.": "(NOREPLICAS)",
    "ERR max number of clients reached": "too many clients",
    "ERR max concurrent connections exceeded": "limit of connections",
    "ERR max daily request limit exceeded. Limit: 10000, Usage: 10000.": "quota of requests",
    "ERR max requests limit exceeded. Limit: 500000, Usage: 500000.": "quota of requests",
    "ERR DB capacity quota exceeded": "quota of memory",
    "ERR max request size exceeded": "larger than the plan allows",
    "ERR max single record size exceeded": "larger than the plan allows",
    "ERR max key size exceeded. Limit: 32768 bytes, Actual: 40000 bytes": "larger than the plan allows",
    # No weather, or none that is known: the code, and nothing of the rest.
    "WRONGTYPE Operation against a key holding the wrong kind of value": "the server answered WRONGTYPE",
    "Command # 1 (GET A) of pipeline caused error: WRONGTYPE Operation against a key": "the server answered WRONGTYPE",
    "Command # 1 (GET A) of pipeline caused error: ('WRONGTYPE Operation against',)": "the server answered WRONGTYPE",
    "Command # 1 (SET A) of pipeline caused error: ('MISCONF Redis is configured',)": (
        "the server cannot save its data, and takes none (MISCONF)"
    ),
    "ERR unknown command 'BZPOPMIN', with args beginning with: OOM secret ": "the server refused a command",
    "no code at all: secret": "the server refused a command",
}
MET: dict[BaseException, str] = {
    redis.TimeoutError("Timeout reading from h:1"): "no answer in time",
    TimeoutError(): "no answer in time",
    redis.ConnectionError("Error 111 connecting to h:1. Connect call failed ('10.0.0.7', 1)."): "connection refused",
    redis.ConnectionError(
        "Error Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed "
        "('127.0.0.1', 1) connecting to localhost:1."
    ): "connection refused",
    ConnectionRefusedError(): "connection refused",
    ConnectionResetError(): "connection reset",
    redis.ConnectionError("Error while reading from h:1 : (104, 'Connection reset by peer')"): "connection reset",
    redis.ConnectionError("Error 32 while writing to socket. Broken pipe."): "connection reset",
    redis.ConnectionError("Connection closed by server."): "connection closed",
    redis.ConnectionError("Error UNKNOWN while writing to socket. Connection lost."): "connection closed",
    redis.ConnectionError("No connection available."): "all connections are in use",
    redis.ConnectionError("Error while reading from h:1 : (110, 'timed out')"): os.strerror(110).lower(),
    redis.ConnectionError("Error 2 connecting to unix:/x/s. No such file."): os.strerror(2).lower(),
    OSError(113, "No route to host"): os.strerror(113).lower(),
    redis.ConnectionError("Error -2 connecting to h:1. Name or service not known."): "the host's name is not known",
    socket.gaierror(-3, "Temporary failure in name resolution"): "the host's name is not known",
    redis.ConnectionError(
        "Error 1 connecting to h:1. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed."
    ): "the server's certificate is not trusted",
    redis.ConnectionError(
        "Error 1 connecting to h:1. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch."
    ): "the server's certificate is for another host",
    redis.ConnectionError(
        "Error 1 connecting to h:1. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired"
    ): "the server's certificate has expired",
    redis.ConnectionError(
        "Error while reading from h:1 : (1, '[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert')"
    ): "the server wants a certificate of ours",
    redis.ConnectionError(
        "Error 136 connecting to h:1. [X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate or crl found."
    ): "a certificate or key of ours cannot be read",
    redis.ConnectionError("Error 1 connecting to h:1. [SSL: WRONG_VERSION_NUMBER] wrong."): "no TLS with the server",
    # OpenSSL's numbers are not the system's.
    redis.ConnectionError(
        "Error 8 while writing to socket. EOF occurred in violation of protocol (_ssl.c:2427)."
    ): "connection closed",
    redis.ConnectionError("Error 5 connecting to h:1. Something else (_ssl.c:1006)."): "no TLS with the server",
    redis.ConnectionError("No TLS in time"): "no answer to TLS in time",
    redis.InvalidResponse("Protocol error, got secret"): "what answers is no Redis, or speaks TLS",
    redis.ConnectionError("who knows: secret"): "ConnectionError",
}


def _error(text: str) -> BaseException:
    """As redis-py makes it of an answer."""
    error: BaseException = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize("text", SAID)
def test_what_the_server_says_is_told_in_a_few_words(text: str) -> None:
    assert SAID[text] in cause_of(_error(text))
    assert not {"secret", "10.0.0.7"} & set(cause_of(_error(text)).split())


@pytest.mark.parametrize("error", MET, ids=lambda error: str(error)[:60] or type(error).__name__)
def test_what_happens_on_the_way_is_told_in_a_few_words(error: BaseException) -> None:
    assert cause_of(error) == MET[error]


@pytest.mark.parametrize("row", range(len(connection._CAUSES)), ids=lambda row: connection._CAUSES[row].said)
def test_every_row_of_the_table_is_needed(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CAUSES", connection._CAUSES[:row] + connection._CAUSES[row + 1 :])
    told = [SAID[text] in cause_of(_error(text)) for text in SAID]
    assert not all(told + [cause_of(error) == MET[error] for error in MET])


def test_a_refusal_is_told_from_a_loss_and_a_keys_trouble_from_the_servers() -> None:
    readonly, wrong = redis.ReadOnlyError("no"), redis.ResponseError("WRONGTYPE no")
    lost = redis.ConnectionError("Connection closed by server.")
    assert [away_of(error, "claim").refused for error in (readonly, wrong, lost)] == [True, True, False]
    large = redis.ResponseError("max request size exceeded")
    assert [concerns_the_server(error) for error in (readonly, wrong, lost, large)] == [True, False, True, False]
    away = away_of(lost, "claim")
    assert (str(away), away.cause) == ("claim: connection closed", "connection closed")


def test_time_outs_retries_and_the_size_of_the_pool_are_ours_and_not_redis_pys() -> None:
    pool = connect("redis://h:1").connection_pool
    assert (pool.max_connections, pool.timeout) == (8, 4.0)
    for made in (
        pool.make_connection(),
        connect_blocking("redis://h:1", reply_s=4.0).connection_pool.make_connection(),
    ):
        assert (made.socket_timeout, made.socket_connect_timeout) == (4.0, 3.0)
        assert made.retry._retries == 0
        assert made.protocol == 2
        assert made.health_check_interval == 0
        assert made.socket_keepalive
        assert made.socket_keepalive_options == {
            socket.TCP_KEEPIDLE: 5,
            socket.TCP_KEEPINTVL: 2,
            socket.TCP_KEEPCNT: 3,
        }


def test_a_socket_is_kept_alive_by_the_kernel(tcp_url: str) -> None:
    async def main() -> None:
        client = connect(tcp_url)
        made = await client.connection_pool.get_connection()
        try:
            held = made._writer.get_extra_info("socket")
            assert held.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
        finally:
            await client.connection_pool.release(made)
            await client.aclose()

    asyncio.run(main())
