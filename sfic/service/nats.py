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
_RETRY_SECONDS = 1
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
async def connected(
    access: NatsAccess, name: str, *, lost: asyncio.Event | None = None
) -> AsyncIterator[Client]:
    """A connection under a name that operators see.

    It waits for the server, also the first time, and comes back by itself after each loss. With
    `lost` it ends with the first one, sets the event, and sends nothing later that was asked for
    before. Raises `Unavailable`; `ConfigError` for files that cannot be used.
    """
    try:
        from nats.aio.client import Client
    except ModuleNotFoundError as error:
        raise MissingExtra("NATS needs: pip install 'sfic[nats]'") from error
    connection = Client()

    async def note(problem: Exception) -> None:
        log.info("nats", server=access.server, problem=str(problem) or type(problem).__name__)

    async def ended() -> None:
        if lost is not None:
            lost.set()

    options: dict[str, Any] = {}
    if access.credentials is not None:
        options["user_jwt_cb"], options["signature_cb"] = _signer(access.credentials)
    if access.secure:
        options["tls"] = _tls(access)
    with nats_errors(access):
        await connection.connect(
            access.url,
            name=name,
            error_cb=note,
            closed_cb=ended,
            allow_reconnect=lost is None,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RETRY_SECONDS,
            connect_timeout=_CONNECT_SECONDS,
            ping_interval=_PING_SECONDS,
            max_outstanding_pings=2,
            **options,
        )
    try:
        yield connection
    finally:
        with contextlib.suppress(Exception):
            await connection.close()


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
