"""A development CA and certificates of services and clients, as `sfic certs` makes them.

A certificate names its holder's roles in its subject alternative names, as addresses of the form
sfic://ROLE/NAME. An operator with a CA of their own issues the same there. Using certificates
belongs to `sfic.service`.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sfic.errors import InvalidInput
from sfic.roles import Role

__all__ = ["CA_NAME", "LOCAL_HOSTS", "issue", "make_ca", "role_address", "write_secret"]

CA_NAME = "ca"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_CA_DAYS = 3650
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MARGIN = datetime.timedelta(minutes=5)


def role_address(role: Role, name: str) -> str:
    """The address that gives a certificate's holder a role."""
    return f"sfic://{role}/{name}"


def make_ca(folder: Path) -> bool:
    """Make `ca.pem` and `ca-key.pem` in `folder`; False when a CA is there already."""
    certificate, key = _paths(folder, CA_NAME)
    if certificate.exists() and key.exists():
        return False
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfic development CA")])
    made = (
        _builder(subject, subject, private.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(private, hashes.SHA256())
    )
    _write(folder, CA_NAME, made, private)
    return True


def issue(
    folder: Path,
    name: str,
    roles: Sequence[Role] = (),
    *,
    hosts: Sequence[str] = LOCAL_HOSTS,
    days: int = 365,
) -> Path:
    """Issue NAME.pem and NAME-key.pem by the CA in `folder`; returns the certificate's path.

    `hosts`: names and addresses that the holder may serve on. Raises InvalidInput for a name that
    is none, and when there is no CA.
    """
    if not _NAME.fullmatch(name) or name == CA_NAME:
        raise InvalidInput(f"name {name!r}: must be 1..64 of A-Z a-z 0-9 . _ - and not {CA_NAME}")
    ca_path, ca_key_path = _paths(folder, CA_NAME)
    try:
        ca = x509.load_pem_x509_certificate(ca_path.read_bytes())
        ca_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), None)
    except FileNotFoundError as error:
        raise InvalidInput(f"no CA in {folder}: run sfic certs init first") from error
    except ValueError as error:
        raise InvalidInput(f"the CA in {folder} cannot be read: {error}") from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise InvalidInput(f"{ca_key_path} is not a key that sfic certs init has made")
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names: list[x509.GeneralName] = [_host(host) for host in hosts]
    names += [x509.UniformResourceIdentifier(role_address(role, name)) for role in roles]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        _builder(subject, ca.subject, private.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return _write(folder, name, made, private)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, at once and whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.pem", folder / f"{name}-key.pem"


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise InvalidInput(f"host {host!r}: not a name or an address") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _MARGIN)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> Path:
    path, key_path = _paths(folder, name)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write_secret(key_path, key.private_bytes(*form, serialization.NoEncryption()))
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path
