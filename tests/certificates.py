"""Certificates made by the command `openssl`, good ones and bad ones, and a server that shows one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import Server, free_port

BINARY = shutil.which("redis-server")
"""The embedded server speaks no TLS; this one is built with it, as distributions build theirs."""
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
HERE = "DNS:localhost,IP:127.0.0.1"


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    path: Path
    key: Path


class Authority:
    """A private one: no system trusts it that was not told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.own = self.by_itself("authority")

    @property
    def path(self) -> Path:
        return self.own.path

    def by_itself(self, name: str) -> Certificate:
        """A certificate that nobody else vouches for."""
        made = self._named(name)
        _openssl(
            *("req", "-x509", *KEY, "-keyout", made.key, "-out", made.path),
            *("-days", 2, "-subj", f"/CN={name}", "-addext", f"subjectAltName={HERE}"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"),  # Python 3.13 wants an authority's
        )
        return made

    def issue(self, name: str, *, hosts: str = HERE, days: int = 2) -> Certificate:
        """A certificate for these hosts; with negative `days` it has expired."""
        made, wish = self._named(name), self._folder / f"{name}.csr"
        _openssl(
            *("req", *KEY, "-keyout", made.key, "-out", wish, "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={hosts}"),
        )
        _openssl(
            *("x509", "-req", "-in", wish, "-CA", self.own.path, "-CAkey", self.own.key),
            *("-days", days, "-copy_extensions", "copy", "-out", made.path),
        )
        return made

    def _named(self, name: str) -> Certificate:
        return Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")


@contextmanager
def served(certificate: Certificate, *options: str) -> Iterator[tuple[Server, str]]:
    """A server that speaks TLS with this certificate; and its address, without options."""
    if BINARY is None or shutil.which("openssl") is None:
        pytest.skip("openssl and a redis-server with TLS are wanted")
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", str(certificate.path), "--tls-key-file", str(certificate.key))
    with Server(binary=BINARY, options=(*tls, *(options or ("--tls-auth-clients", "no")))) as server:
        yield server, f"rediss://localhost:{port}"
