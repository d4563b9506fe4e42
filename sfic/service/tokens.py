"""Signed tokens that say who a client is: JSON Web Tokens, Ed25519 or HS256.

What a role may do: `sfic.service.access`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sfic.errors import ConfigError, Unauthenticated
from sfic.roles import ROLES, Role
from sfic.service.tls import read_file

__all__ = ["TokenVerifier", "issue_token", "make_token_key"]

AUDIENCE: Final = "sfic"
_LEAST_SECRET: Final = 32
_LONGEST_TOKEN: Final = 4096


def make_token_key() -> tuple[bytes, bytes]:
    """A new Ed25519 key: the private one that signs and the public one that checks, in PEM."""
    private = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    return (
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def issue_token(key: Path, name: str, roles: Sequence[Role], seconds: float) -> str:
    """Sign a token for `name`, good for `seconds`. Raises `ConfigError` for a key that cannot."""
    secret = _read_key(key)
    if isinstance(secret, Ed25519PublicKey):
        raise ConfigError(f"{key} is a public key: it checks tokens and cannot sign them")
    now = time.time()
    claims = {"sub": name, "roles": list(roles), "aud": AUDIENCE, "iat": now, "exp": now + seconds}
    return jwt.encode(claims, secret, algorithm=_algorithm(secret))


class TokenVerifier:
    """Checks tokens with a key file, read once."""

    def __init__(self, key: Path) -> None:
        """Raises `ConfigError` for a key that cannot be used."""
        secret = _read_key(key)
        self._algorithm = _algorithm(secret)
        self._key = secret.public_key() if isinstance(secret, Ed25519PrivateKey) else secret

    def read(self, authorization: str) -> tuple[str, frozenset[Role]]:
        """Name and roles of the holder, from the header "Bearer TOKEN". Raises `Unauthenticated`.

        A role that is not known is passed over.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or len(token) > _LONGEST_TOKEN:
            raise Unauthenticated("authorization: must be Bearer and a token")
        try:
            claims = jwt.decode(
                token.strip(),
                self._key,
                algorithms=[self._algorithm],
                audience=AUDIENCE,
                options={"require": ["sub", "exp"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("the token has expired") from error
        except jwt.InvalidTokenError as error:
            raise Unauthenticated("the token is not valid here") from error
        named = claims.get("roles")
        held = set(named) if isinstance(named, list) else set()
        return str(claims["sub"]), frozenset(role for role in ROLES if role in held)


def _read_key(path: Path) -> Ed25519PrivateKey | Ed25519PublicKey | bytes:
    content = read_file(path)
    if b"-----BEGIN" not in content:
        if len(content) < _LEAST_SECRET:
            raise ConfigError(f"{path}: a shared secret needs at least {_LEAST_SECRET} bytes")
        return content
    try:
        key: object = (
            serialization.load_pem_private_key(content, None)
            if b"PRIVATE" in content
            else serialization.load_pem_public_key(content)
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        raise ConfigError(f"{path}: only Ed25519 keys sign tokens")
    return key


def _algorithm(key: Ed25519PrivateKey | Ed25519PublicKey | bytes) -> str:
    return "HS256" if isinstance(key, bytes) else "EdDSA"
