"""Where the Redis of an arq application is, as the URL that everything else here connects by."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from arq.connections import ArqRedis, RedisSettings

from runtime.core.errors import HandlerInvalid


def url_of(settings: RedisSettings) -> str:
    """The address in `settings`. Raises `HandlerInvalid` for what has none: Sentinel."""
    if settings.sentinel or not isinstance(settings.host, str):
        raise HandlerInvalid(
            "redis_settings names sentinels, which this worker does not ask",
            hint="name the primary itself, or an address that follows it: RedisSettings(host=…)",
        )
    options = {
        "ssl_cert_reqs": _cert_reqs(settings.ssl_cert_reqs),
        "ssl_ca_certs": settings.ssl_ca_certs,
        "ssl_ca_data": settings.ssl_ca_data,
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
    }
    return _url(
        settings.unix_socket_path,
        settings.host,
        settings.port,
        settings.database,
        settings.username,
        settings.password,
        options if settings.ssl else None,
    )


def url_of_pool(pool: ArqRedis) -> str:
    """The address that an existing pool connects to."""
    connections: Any = pool.connection_pool
    said: Mapping[str, Any] = connections.connection_kwargs
    tls = connections.connection_class.__name__.startswith("SSL")
    options: dict[str, str | None] = {name: said.get(name) for name in _CERTIFICATES}
    options["ssl_cert_reqs"] = _cert_reqs(said.get("ssl_cert_reqs") or "required")
    return _url(
        said.get("path"),
        said.get("host", "localhost"),
        said.get("port", 6379),
        said.get("db") or 0,
        said.get("username"),
        said.get("password"),
        options if tls else None,
    )


_CERTIFICATES = ("ssl_ca_certs", "ssl_ca_data", "ssl_certfile", "ssl_keyfile")


def _url(
    path: str | None,
    host: str,
    port: int,
    database: int,
    username: str | None,
    password: str | None,
    tls: Mapping[str, str | None] | None,
) -> str:
    who = f"{quote(username or '', safe='')}:{quote(password, safe='')}@" if password else ""
    if path is not None:
        return f"unix://{who}{path}?db={database}"
    if ":" in host:  # an IPv6 address
        host = f"[{host}]"
    if tls is None:
        return f"redis://{who}{host}:{port}/{database}"
    options = urlencode({name: value for name, value in tls.items() if value})
    return f"rediss://{who}{host}:{port}/{database}?{options}"


def _cert_reqs(said: Any) -> str:
    name = str(getattr(said, "name", said)).lower().removeprefix("cert_")
    if name not in ("required", "none"):
        raise HandlerInvalid(
            f"redis_settings has ssl_cert_reqs={name!r}", hint="it is 'required', which is the default, or 'none'"
        )
    return name
