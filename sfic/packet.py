"""One layer on the wire: 3 bytes of header, the payload of the range coder, 2 bytes of check.

    byte 0      version (2 bits) | layer (2 bits) | rate (4 bits)
    bytes 1-2   bundle id: the first two bytes of the model bundle's hash
    ...         payload
    last two    check, big-endian

The check is CRC-16/IBM-3740 (polynomial 0x1021, initial value 0xFFFF, no reflection), C code in the
standard library. It runs over the header and the *decoded symbols* of this layer and of all lower
ones, so it notices what no check over the bytes would: an encoder and a decoder that disagree, and
a layer that belongs to another face. Symbols enter it in one form: for each layer, lowest first,
their number as little-endian uint32, then each as little-endian int32. A changed packet that
decodes at all slips through with probability 2**-16.

Coding symbols into the payload belongs in `sfic.entropy`; several packets of a face in
`sfic.container`.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sfic.errors import BundleMismatch, InvalidInput, PacketError
from sfic.layers import LAYERS, Layer, layer_index

__all__ = [
    "MAX_PACKET_BYTES",
    "OVERHEAD_BYTES",
    "RATES",
    "VERSION",
    "OpenedPacket",
    "PacketHeader",
    "bundle_hex",
    "check_bundle",
    "open_packet",
    "parse_header",
    "seal_packet",
    "symbol_check",
    "verify",
]

VERSION: Final = 1
RATES: Final = range(1, 10)
HEADER_BYTES: Final = 3
CHECK_BYTES: Final = 2
OVERHEAD_BYTES: Final = HEADER_BYTES + CHECK_BYTES
MAX_PACKET_BYTES: Final = 1 << 16
CRC_START: Final = 0xFFFF


def bundle_hex(bundle: bytes) -> str:
    """The first two bytes of a bundle hash as 4 hex digits, as error messages and `info` show
    it."""
    return bytes(bundle[:2]).hex()


@dataclass(frozen=True)
class PacketHeader:
    """What a packet says of itself. `rate` is 1..9, `bundle` the first 2 bytes of the bundle hash.

    Raises InvalidInput when a field is out of its range.
    """

    layer: Layer
    rate: int
    bundle: bytes

    def __post_init__(self) -> None:
        """Refuse what the three bytes cannot say."""
        layer_index(self.layer)
        if self.rate not in RATES:
            raise InvalidInput(f"rate {self.rate!r} is not in 1..9")
        if not isinstance(self.bundle, bytes) or len(self.bundle) != 2:
            raise InvalidInput(f"a bundle id is 2 bytes, not {self.bundle!r}")

    @property
    def bundle_hex(self) -> str:
        """The bundle id as 4 hex digits."""
        return bundle_hex(self.bundle)

    def to_bytes(self) -> bytes:
        """The 3 bytes as sent."""
        return bytes((VERSION << 6 | layer_index(self.layer) << 4 | self.rate,)) + self.bundle


class OpenedPacket(NamedTuple):
    """The three parts of a packet; nothing in `payload` is verified yet."""

    header: PacketHeader
    payload: bytes
    check: int


def parse_header(packet: bytes) -> PacketHeader:
    """Header of a packet. PacketError when it is cut, too long, or of a form that we do not
    know."""
    size = len(packet)
    if size < OVERHEAD_BYTES:
        raise PacketError(f"packet is cut: {size} bytes, at least {OVERHEAD_BYTES} are needed")
    if size > MAX_PACKET_BYTES:
        raise PacketError(f"packet is too long: {size} bytes, over {MAX_PACKET_BYTES}")
    version, layer, rate = packet[0] >> 6, packet[0] >> 4 & 3, packet[0] & 15
    if version != VERSION:
        raise PacketError(f"unknown packet version {version}, this release reads {VERSION}")
    if layer >= len(LAYERS):
        raise PacketError(f"packet names layer number {layer}, which does not exist")
    if rate not in RATES:
        raise PacketError(f"packet names rate {rate}, which is not in 1..9")
    return PacketHeader(LAYERS[layer], rate, bytes(packet[1:HEADER_BYTES]))


def check_bundle(header: PacketHeader, bundle: bytes) -> None:
    """BundleMismatch, naming both, unless the packet was made with the bundle hash `bundle`."""
    if header.bundle != bundle[:2]:
        raise BundleMismatch(
            f"packet was made with model bundle {header.bundle_hex}..., "
            f"the one loaded is {bundle_hex(bundle)}...",
            packet_bundle=header.bundle_hex,
            loaded_bundle=bundle_hex(bundle),
        )


def open_packet(
    packet: bytes, *, layer: str | None = None, bundle: bytes | None = None
) -> OpenedPacket:
    """Take a packet apart.

    `layer`: the layer that has to come here; PacketError when it is another one. `bundle`: the hash
    (2 bytes or more) of the bundle that is loaded; BundleMismatch when the packet names another.
    """
    header = parse_header(packet)
    if layer is not None and header.layer != layer:
        raise PacketError(f"layer out of order: {layer} was expected, the packet is {header.layer}")
    if bundle is not None:
        check_bundle(header, bundle)
    payload = bytes(packet[HEADER_BYTES:-CHECK_BYTES])
    return OpenedPacket(header, payload, int.from_bytes(packet[-CHECK_BYTES:], "big"))


def symbol_check(header: PacketHeader, symbols: Sequence[npt.NDArray[Any]]) -> int:
    """CRC-16 over the header and the symbols of the layers basic .. header.layer, lowest first.

    Each array is of any integer type and shape (it is read flat, in C order), values within int32.
    Raises InvalidInput when the number of layers is wrong or a value does not fit.
    """
    if len(symbols) != layer_index(header.layer) + 1:
        raise InvalidInput(
            f"the check of a {header.layer} packet needs the symbols of "
            f"{layer_index(header.layer) + 1} layers, not {len(symbols)}"
        )
    crc = binascii.crc_hqx(header.to_bytes(), CRC_START)
    for array in symbols:
        if array.dtype.kind not in "iu":
            raise InvalidInput(f"symbols are integers, not {array.dtype}")
        canonical = np.ascontiguousarray(array, dtype="<i4")
        if array.dtype != np.int32 and not np.array_equal(canonical, array):
            raise InvalidInput("a symbol does not fit into 32 bits")
        crc = binascii.crc_hqx(canonical.size.to_bytes(4, "little"), crc)
        crc = binascii.crc_hqx(canonical.tobytes(), crc)
    return crc


def seal_packet(header: PacketHeader, payload: bytes, symbols: Sequence[npt.NDArray[Any]]) -> bytes:
    """The packet as sent. `symbols`: those of all layers up to this one, lowest first."""
    if len(payload) + OVERHEAD_BYTES > MAX_PACKET_BYTES:
        raise InvalidInput(f"payload of {len(payload)} bytes does not fit into a packet")
    check = symbol_check(header, symbols)
    return header.to_bytes() + payload + check.to_bytes(CHECK_BYTES, "big")


def verify(check: int, header: PacketHeader, symbols: Sequence[npt.NDArray[Any]]) -> None:
    """PacketError unless `check` is that of these symbols (all layers up to this, lowest first)."""
    if symbol_check(header, symbols) != check:
        raise PacketError(
            f"check of the {header.layer} packet failed: it was changed on the way, "
            "or belongs to other lower layers"
        )
