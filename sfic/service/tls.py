"""TLS of a server: its certificate, the CA of its clients, and new files taken without a restart.

What a client shows: `sfic.service.client`. Who may do what: `sfic.service.access`. Making
certificates: `sfic.certificates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry, Gauge

from sfic.errors import ConfigError

__all__ = [
    "export_expiry",
    "read_certificates",
    "read_file",
    "read_key_pair",
    "server_credentials",
    "stamps",
]

log = structlog.get_logger(__name__)


def server_credentials(
    certificate: Path, key: Path, client_ca: Path | None
) -> grpc.ServerCredentials:
    """Credentials that follow their files: each new connection gets what lies there then.

    With `client_ca` a client has to show a certificate of that CA. Files that do not fit together
    raise `ConfigError` now; later they are logged, and the last good ones stay in use.
    """
    files = _ServerFiles(certificate, key, client_ca)
    return grpc.dynamic_ssl_server_credentials(
        files.read(), files.read_if_changed, require_client_authentication=client_ca is not None
    )


class _ServerFiles:
    """The PEM files of a server, and whether they have changed since they were last looked at."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._paths = [path for path in (certificate, key, client_ca) if path is not None]
        self._stamps = stamps(self._paths)

    def read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key = read_key_pair(self._certificate, self._key)
        client_ca = None if self._client_ca is None else read_certificates(self._client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC for each new connection; None keeps what is in use."""
        now = stamps(self._paths)
        if now == self._stamps:
            return None
        self._stamps = now
        try:
            configuration = self.read()
        except ConfigError as error:
            log.error("new certificate not taken, the old one stays", reason=error.message)
            return None
        log.info("new certificate taken", certificate=str(self._certificate))
        return configuration


def stamps(paths: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What changes when one of the files does; None for a file that is not there."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            state = path.expanduser().stat()
        except OSError:
            found.append(None)
        else:
            found.append((state.st_ino, state.st_mtime_ns, state.st_size))
    return found


def read_key_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """The bytes of a certificate's and a private key's PEM file.

    Raises `ConfigError`, naming the file, when one cannot be used or they do not belong together.
    """
    shown, secret = read_certificates(certificate), read_file(key)
    try:
        private = serialization.load_pem_private_key(secret, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: not a private key in PEM without a password") from error
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    public = x509.load_pem_x509_certificate(shown).public_key()
    if public.public_bytes(*form) != private.public_key().public_bytes(*form):
        raise ConfigError(f"{key} is not the key of {certificate}")
    return shown, secret


def read_certificates(path: Path) -> bytes:
    """The bytes of a PEM file with at least one certificate. Raises `ConfigError`."""
    content = read_file(path)
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ConfigError(f"{path}: not a certificate in PEM") from error
    return content


def export_expiry(certificate: Path, registry: CollectorRegistry) -> None:
    """Add a metric: when the certificate that lies in a file expires, read anew each time."""

    def expires() -> float:
        try:
            shown = x509.load_pem_x509_certificate(read_certificates(certificate))
        except ConfigError:
            return 0.0
        return shown.not_valid_after_utc.timestamp()

    Gauge(
        "sfic_tls_certificate_expires_timestamp_seconds",
        "When the service's certificate expires, Unix seconds; 0: its file cannot be read.",
        registry=registry,
    ).set_function(expires)


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises `ConfigError` when it cannot be read."""
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
