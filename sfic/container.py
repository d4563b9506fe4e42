"""The .sfic file: the faces of one picture, each with its packets and its place in the picture.

    magic "SFIC", version 1 (one byte), number of faces (varint)
    for each face:
        flags (one byte)  1: middle follows, 2: enhanced follows, 4: placement, 8: source size,
                          16: brightened
        face score        float32
        source size       float32, if flagged
        brightened        float32, over 1 to 8, if flagged
        placement         width, height (varint), crop -> picture affine as 6 float32, if flagged
        packets           length (varint) and bytes of each, lowest layer first
    CRC-32 of everything before it

Numbers are little-endian, varints LEB128 in their shortest form; floats are rounded to float32. The
file's CRC guards against broken storage, each packet keeps its own check. What is inside a packet
belongs in `sfic.packet`.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from sfic.alignment import Placement
from sfic.errors import InvalidInput, PacketError
from sfic.face import MOST_BRIGHTENED, EncodedFace
from sfic.layers import LAYERS
from sfic.packet import MAX_PACKET_BYTES, PacketHeader, open_packet

__all__ = [
    "MAX_FACES",
    "MAX_FILE_BYTES",
    "pack_faces",
    "read_container",
    "unpack_faces",
    "write_container",
]

MAGIC: Final = b"SFIC"
VERSION: Final = 1
CRC_BYTES: Final = 4
MAX_FACES: Final = 4096
MAX_FILE_BYTES: Final = 64 << 20
MAX_SIDE: Final = (1 << 28) - 1
HAS_MIDDLE, HAS_ENHANCED, HAS_PLACEMENT, HAS_SOURCE_SIZE, BRIGHTENED = 1, 2, 4, 8, 16
ALL_FLAGS: Final = 31
_UNCHANGED: Final = struct.pack("<f", 1.0)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _float32(number: float, what: str) -> bytes:
    if not math.isfinite(number):
        raise InvalidInput(f"{what} is not a finite number")
    try:
        return struct.pack("<f", number)
    except (struct.error, OverflowError) as error:
        raise InvalidInput(f"{what} does not fit: {error}") from error


def _check_layers(face: EncodedFace) -> None:
    """PacketError unless the packets are those of one face: right order, one bundle, one rate."""
    first: PacketHeader | None = None
    for layer, packet in face.layers.items():
        header = open_packet(packet, layer=layer).header
        first = first or header
        if (header.bundle, header.rate) != (first.bundle, first.rate):
            raise PacketError(f"the {layer} layer is of another bundle or rate than the basic one")


def _pack_face(face: EncodedFace) -> bytes:
    _check_layers(face)
    flags = HAS_MIDDLE * (face.middle is not None) | HAS_ENHANCED * (face.enhanced is not None)
    fields = [_float32(face.face_score, "face score")]
    if face.source_size is not None:
        flags |= HAS_SOURCE_SIZE
        fields.append(_float32(face.source_size, "source size"))
    brightened = _float32(face.brightened, "brightened")
    if brightened != _UNCHANGED:
        flags |= BRIGHTENED
        fields.append(brightened)
    if face.placement is not None:
        flags |= HAS_PLACEMENT
        for side in (face.placement.width, face.placement.height):
            if not 1 <= side <= MAX_SIDE:
                raise InvalidInput(f"a picture side of {side} is not in 1..{MAX_SIDE}")
            fields.append(_varint(side))
        fields += [_float32(value, "placement") for row in face.placement.matrix for value in row]
    for packet in face.layers.values():
        fields += [_varint(len(packet)), packet]
    return bytes((flags,)) + b"".join(fields)


def pack_faces(faces: Sequence[EncodedFace]) -> bytes:
    """The bytes of a .sfic file. InvalidInput or PacketError when a face cannot be stored."""
    if not 1 <= len(faces) <= MAX_FACES:
        raise InvalidInput(f"a file holds 1 to {MAX_FACES} faces, not {len(faces)}")
    body = MAGIC + bytes((VERSION,)) + _varint(len(faces)) + b"".join(map(_pack_face, faces))
    if len(body) + CRC_BYTES > MAX_FILE_BYTES:
        raise InvalidInput(f"a file of {len(body)} bytes is over the limit of {MAX_FILE_BYTES}")
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


class _Reader:
    """Takes fields off the front of the bytes; PacketError where they end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise PacketError(".sfic file ends in the middle of a field")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self, limit: int, what: str) -> int:
        number = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    break
                if number > limit:
                    raise PacketError(f"{what} in the .sfic file is {number}, over {limit}")
                return number
        raise PacketError(f"{what} in the .sfic file is not a number in its shortest form")

    def float32(self, what: str) -> float:
        (number,) = struct.unpack("<f", self.take(4))
        if not math.isfinite(number):
            raise PacketError(f"{what} in the .sfic file is not a finite number")
        return float(number)


def _placement(reader: _Reader) -> Placement:
    width = reader.varint(MAX_SIDE, "picture width")
    height = reader.varint(MAX_SIDE, "picture height")
    a, b, c, d, e, f = (reader.float32("placement") for _ in range(6))
    try:
        return Placement(((a, b, c), (d, e, f)), width, height)
    except InvalidInput as error:
        raise PacketError(f"placement in the .sfic file: {error.message}") from error


def _face(reader: _Reader) -> EncodedFace:
    flags = reader.take(1)[0]
    if flags & ~ALL_FLAGS or flags & HAS_ENHANCED and not flags & HAS_MIDDLE:
        raise PacketError(f"face flags {flags:#04x} in the .sfic file mean nothing")
    face_score = reader.float32("face score")
    source_size = reader.float32("source size") if flags & HAS_SOURCE_SIZE else None
    brightened = reader.float32("brightened") if flags & BRIGHTENED else 1.0
    if flags & BRIGHTENED and not 1.0 < brightened <= MOST_BRIGHTENED:
        raise PacketError(f"brightened in the .sfic file is {brightened}, not over 1 to 8")
    placement = _placement(reader) if flags & HAS_PLACEMENT else None
    held = (True, bool(flags & HAS_MIDDLE), bool(flags & HAS_ENHANCED))
    packets = [
        reader.take(reader.varint(MAX_PACKET_BYTES, f"length of the {layer} layer"))
        if has
        else None
        for layer, has in zip(LAYERS, held, strict=True)
    ]
    basic, middle, enhanced = packets
    if not basic:
        raise PacketError("basic layer in the .sfic file is empty")
    face = EncodedFace(
        basic, middle, enhanced, placement, face_score, source_size, brightened
    )
    _check_layers(face)
    return face


def unpack_faces(data: bytes) -> list[EncodedFace]:
    """The faces in the bytes of a .sfic file; PacketError when they are anything else."""
    if len(data) > MAX_FILE_BYTES:
        raise PacketError(f".sfic file is over the limit of {MAX_FILE_BYTES} bytes")
    if data[: len(MAGIC)] != MAGIC:
        raise PacketError("not a .sfic file: it does not start with SFIC")
    if len(data) < len(MAGIC) + 2 + CRC_BYTES:
        raise PacketError(f".sfic file is cut: it has {len(data)} bytes")
    if data[len(MAGIC)] != VERSION:
        raise PacketError(f"unknown .sfic version {data[len(MAGIC)]}, this release reads {VERSION}")
    body, crc = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")
    if zlib.crc32(body) != crc:
        raise PacketError(".sfic file is cut or was changed: its CRC does not match")
    reader = _Reader(body[len(MAGIC) + 1 :])
    count = reader.varint(MAX_FACES, "number of faces")
    if not count:
        raise PacketError(".sfic file holds no face")
    faces = [_face(reader) for _ in range(count)]
    if reader.left:
        raise PacketError(f".sfic file has {reader.left} bytes after its last face")
    return faces


def write_container(faces: Sequence[EncodedFace], target: str | Path | BinaryIO) -> None:
    """Write a .sfic file, whole or not at all, to a path or a binary file.

    Raises what `pack_faces` does, and InvalidInput when the path cannot be written.
    """
    data = pack_faces(faces)
    if not isinstance(target, (str, Path)):
        target.write(data)
        return
    path = Path(target)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}") from error


def read_container(source: str | Path | bytes | BinaryIO) -> list[EncodedFace]:
    """Read a .sfic file from a path, from its bytes, or from a binary file.

    PacketError when it is not one, or is over MAX_FILE_BYTES; InvalidInput when it cannot be read.
    """
    if isinstance(source, bytes):
        return unpack_faces(source)
    if not isinstance(source, (str, Path)):
        return unpack_faces(source.read(MAX_FILE_BYTES + 1))
    try:
        with Path(source).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read {source}: {error.strerror or error}") from error
    return unpack_faces(data)
