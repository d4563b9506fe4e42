"""Sealed layers: a layer's packet encrypted with a key of its own, used once.

    sealed = AES-128-CCM(key, packet), tag of 8 bytes            (NIST SP 800-38C, RFC 3610)

Because no key ever encrypts twice, the nonce is a constant and is not sent: a sealed layer is 8
bytes longer than its packet. The face's id and the layer are authenticated along, so that a sealed
layer opens as nothing but itself. What is read from a basic layer and has to travel is sealed with
a key that follows from the layer's, so that it goes when that one goes:

    sealed = nonce of 12 bytes + AES-128-GCM(HKDF-SHA256(key), nonce, result)

Where keys are kept and who gets them: `edge_encoder`. Not to be mixed up with `sfic.packet`, whose
check finds mistakes and keeps nothing secret.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sfic.errors import PacketError
from sfic.layers import layer_index

__all__ = [
    "KEY_BYTES",
    "TAG_BYTES",
    "new_layer_key",
    "open_layer",
    "open_result",
    "seal_layer",
    "seal_result",
]

KEY_BYTES: Final = 16
TAG_BYTES: Final = 8
# CCM leaves 15 - 12 = 3 bytes for the length: 16 MiB, far over a packet.
_NONCE: Final = bytes(12)
_RESULT_NONCE_BYTES: Final = 12


def new_layer_key() -> bytes:
    """A key for one layer of one face."""
    return secrets.token_bytes(KEY_BYTES)


def seal_layer(key: bytes, packet: bytes, face_id: str, layer: str) -> bytes:
    """The packet as it is kept and sent. `key` must be a fresh one of `new_layer_key`."""
    return AESCCM(key, TAG_BYTES).encrypt(_NONCE, packet, _bound_to(face_id, layer))


def open_layer(key: bytes, sealed: bytes, face_id: str, layer: str) -> bytes:
    """The packet. Raises `PacketError` when key, face or layer are others, or a bit was changed."""
    try:
        return AESCCM(key, TAG_BYTES).decrypt(_NONCE, sealed, _bound_to(face_id, layer))
    except (InvalidTag, ValueError) as error:
        raise PacketError(
            f"the sealed {layer} layer of face {face_id} does not open with this key",
            layer=layer,
            face_id=face_id,
        ) from error


def seal_result(key: bytes, result: bytes, face_id: str) -> bytes:
    """What was read from a basic layer, closed to all who have not that layer's key.

    A face may be read more than once, so that the nonce is random here.
    """
    nonce = secrets.token_bytes(_RESULT_NONCE_BYTES)
    return nonce + AESGCM(_result_key(key)).encrypt(nonce, result, face_id.encode())


def open_result(key: bytes, sealed: bytes, face_id: str) -> bytes:
    """The result. Raises `PacketError` when key or face are others, or a bit was changed."""
    nonce, body = sealed[:_RESULT_NONCE_BYTES], sealed[_RESULT_NONCE_BYTES:]
    try:
        return AESGCM(_result_key(key)).decrypt(nonce, body, face_id.encode())
    except (InvalidTag, ValueError) as error:
        raise PacketError(
            f"the sealed result of face {face_id} does not open with this key", face_id=face_id
        ) from error


def _result_key(key: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"sfic result").derive(key)


def _bound_to(face_id: str, layer: str) -> bytes:
    return bytes([layer_index(layer)]) + face_id.encode()
