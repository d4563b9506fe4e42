"""How a client calls a service: over TLS or not, with a certificate, with a token.

What a server makes of it: `sfic.service.access`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509

from sfic.errors import ConfigError
from sfic.service.addresses import is_loopback
from sfic.service.tls import read_certificates, read_file, read_key_pair, stamps

__all__ = ["Identity"]

# What runs on a connection with an older certificate may still take so long.
_LONGEST_CALL_SECONDS = 60.0


@dataclass(frozen=True)
class Identity:
    """PEM files and a token of a client; none of them: a service on this machine without TLS.

    `ca` signs the servers' certificates, and turns TLS on. `certificate` and `key` are shown to a
    server that asks. `token` is a file, read for each call so that it can be renewed. `server_name`
    stands in for the host of the address when the server's certificate is checked.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    server_name: str = ""

    @classmethod
    def of_server(
        cls, certificate: Path | None, key: Path | None, client_ca: Path | None
    ) -> Identity:
        """What a server calls itself with, for health checks: its own certificate on both sides."""
        if certificate is None or key is None:
            return cls()
        shown = x509.load_pem_x509_certificate(read_certificates(certificate))
        try:
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound as error:
            raise ConfigError(f"{certificate} names no host") from error
        hosts = names.get_values_for_type(x509.DNSName)
        return cls(client_ca or certificate, certificate, key, None, hosts[0] if hosts else "")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials of a channel, from the files as they are now; None: without TLS.

        Raises `ConfigError` for files that cannot be used.
        """
        if self.ca is None:
            return None
        certificate, key = None, None
        if self.certificate is not None and self.key is not None:
            certificate, key = read_key_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(read_certificates(self.ca), key, certificate)

    def options(self) -> list[tuple[str, str]]:
        """Options of a channel."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []

    def channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        """Open a channel. Raises `ConfigError`, also rather than send a token in the clear."""
        if self.token is not None and self.ca is None and not is_loopback(address):
            raise ConfigError(f"a token is not sent to {address} without TLS: name the CA as well")
        if self.token is None and self.ca is None:
            return grpc.aio.insecure_channel(address, options=options)
        return _FollowingChannel(self, address, options)

    def files(self) -> list[Path]:
        """The files that a channel over TLS is made of."""
        return [path for path in (self.ca, self.certificate, self.key) if path is not None]


class _FollowingChannel(grpc.aio.Channel):  # type: ignore[misc]  # grpc has no types
    """A channel that follows its identity's files: the token of each call, and the certificates.

    gRPC reads a client's certificates once, and its own call credentials refuse channels without
    TLS, also those within one machine.
    """

    def __init__(self, identity: Identity, address: str, options: list[tuple[str, Any]]) -> None:
        self._identity = identity
        self._address = address
        self._options = [*options, *identity.options()]
        self._stamps = stamps(identity.files())
        self._inner = self._open()
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._caller("unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._caller("unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._caller("stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._caller("stream_stream", args, kwargs)

    def _caller(self, kind: str, made_of: Any, options: Any) -> Any:
        def call(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            self._follow()
            own = []
            if self._identity.token is not None:
                token = read_file(self._identity.token).decode("ascii", "replace").strip()
                own.append(("authorization", f"Bearer {token}"))
            method = getattr(self._inner, kind)(*made_of, **options)
            return method(*args, metadata=(*(metadata or ()), *own), **kwargs)

        return call

    def _follow(self) -> None:
        now = stamps(self._identity.files())
        if now == self._stamps:
            return
        try:
            fresh = self._open()
        except ConfigError:
            return  # Perhaps half written: the next call looks again.
        closing = asyncio.ensure_future(self._inner.close(_LONGEST_CALL_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._inner, self._stamps = fresh, now

    def _open(self) -> grpc.aio.Channel:
        credentials = self._identity.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self._address, options=self._options)
        return grpc.aio.secure_channel(self._address, credentials, options=self._options)

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(self._inner.close(grace), *self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> _FollowingChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
