"""NATS as services reach it: address, TLS, credentials, and its errors as those of our tree.

What lies in its streams: `sfic.service.streams`. Who publishes and who reads: `edge_encoder.outbox`
and `analytics_service.group`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfic.errors import ConfigError, MissingExtra, Unavailable
from sfic.service.tls import read_file

if TYPE_CHECKING:
    from nats.aio.client import Client

__all__ = ["NatsAccess", "check_address", "connected", "nats_errors"]

log = structlog.get_logger(__name__)

_CONNECT_SECONDS = 5
# A peer that is gone is noticed after two pings without an answer.
_PING_SECONDS = 10
_WATCH_SECONDS = 0.1
_CLOSE_SECONDS = 2.0
_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\s+(\S+)\s")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\s+(\S+)\s")
_SEED_BYTES = 32


@dataclass(frozen=True)
class NatsAccess:
    """Where a NATS server is, and as whom it is called. `ca`, or tls:// in `url`, turns TLS on."""

    url: str
    ca: Path | None = None
    credentials: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def server(self) -> str:
        """host:port, for messages."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def secure(self) -> bool:
        """Whether it is called over TLS."""
        return self.ca is not None or self.url.startswith("tls://")


def check_address(url: str) -> str:
    """host:port of a server's address; `ValueError` when it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("nats", "tls") or not parts.hostname or not parts.port:
        raise ValueError("must be nats://host:port or tls://host:port")
    return parts.netloc.rpartition("@")[2]


@contextlib.asynccontextmanager
async def connected(access: NatsAccess, name: str) -> AsyncIterator[tuple[Client, asyncio.Event]]:
    """A connection under a name that operators see, and an event that its loss sets.

    It is one connection: it does not come back by itself and sends nothing later that was asked for
    before, so that who uses it knows where they are. Raises `Unavailable`; `ConfigError` for files
    that cannot be used.
    """
    try:
        from nats.aio.client import Client
    except ModuleNotFoundError as error:
        raise MissingExtra("NATS needs: pip install 'sfic[nats]'") from error
    connection, lost = Client(), asyncio.Event()

    async def note(problem: Exception) -> None:
        log.info("nats", server=access.server, problem=str(problem) or type(problem).__name__)

    async def watch() -> None:
        while connection.is_connected:
            await asyncio.sleep(_WATCH_SECONDS)
        lost.set()

    options: dict[str, Any] = {}
    if access.credentials is not None:
        options["user_jwt_cb"], options["signature_cb"] = _signer(access.credentials)
    if access.secure:
        options["tls"] = _tls(access)
    with nats_errors(access):
        # The client can hang when a handshake fails; nothing of it may be waited for without end.
        await asyncio.wait_for(
            connection.connect(
                access.url,
                name=name,
                error_cb=note,
                allow_reconnect=False,
                connect_timeout=_CONNECT_SECONDS,
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=2,
                **options,
            ),
            2 * _CONNECT_SECONDS,
        )
    watching = asyncio.ensure_future(watch())
    try:
        yield connection, lost
    finally:
        watching.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(connection.close(), _CLOSE_SECONDS)


@contextlib.contextmanager
def nats_errors(access: NatsAccess) -> Iterator[None]:
    """Let what goes wrong with NATS inside the block come out as `Unavailable`."""
    from nats.errors import Error

    try:
        yield
    except (Error, OSError, asyncio.TimeoutError) as error:
        told = str(error) or type(error).__name__
        raise Unavailable(f"NATS at {access.server}: {told}") from error


def _tls(access: NatsAccess) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None and access.key is not None:
            context.load_cert_chain(access.certificate, access.key)
    except OSError as error:
        raise ConfigError(f"certificates for NATS at {access.server}: {error}") from error
    return context


def _signer(path: Path) -> tuple[Callable[[], bytes], Callable[[str], bytes]]:
    """What shows a user's JWT, and what signs a server's nonce; the file is read anew for each."""

    def read() -> tuple[bytes, Ed25519PrivateKey]:
        text = read_file(path).decode("ascii", "replace")
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise ConfigError(f"{path} is not a credentials file of NATS")
        try:
            # Two bytes say what it is a seed of, the last two are a check.
            raw = base64.b32decode(seed[1] + "=" * (-len(seed[1]) % 8))
            key = Ed25519PrivateKey.from_private_bytes(raw[2 : 2 + _SEED_BYTES])
        except (binascii.Error, ValueError) as error:
            raise ConfigError(f"{path} holds no seed of a NATS user") from error
        return jwt[1].encode(), key

    read()
    return (
        lambda: read()[0],
        lambda nonce: base64.b64encode(read()[1].sign(nonce.encode())),
    )
