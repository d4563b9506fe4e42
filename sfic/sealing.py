"""Sealed layers: a layer's packet encrypted with a key of its own, used once.

    sealed = AES-128-CCM(key, packet), tag of 8 bytes            (NIST SP 800-38C, RFC 3610)

Because no key ever encrypts twice, the nonce is a constant and is not sent: a sealed layer is 8
bytes longer than its packet. The face's id and the layer are authenticated along, so that a sealed
layer opens as nothing but itself. Where keys are kept and who gets them: `edge_encoder`. Not to be
mixed up with `sfic.packet`, whose check finds mistakes and keeps nothing secret.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from sfic.errors import PacketError
from sfic.layers import layer_index

__all__ = ["KEY_BYTES", "TAG_BYTES", "new_layer_key", "open_layer", "seal_layer"]

KEY_BYTES: Final = 16
TAG_BYTES: Final = 8
# CCM leaves 15 - 12 = 3 bytes for the length: 16 MiB, far over a packet.
_NONCE: Final = bytes(12)


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


def _bound_to(face_id: str, layer: str) -> bytes:
    return bytes([layer_index(layer)]) + face_id.encode()
