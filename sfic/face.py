"""One encoded face: its layers as sent and what the encoder knows of where it came from.

Pure data. Coding belongs in `sfic.codec`, files of faces in `sfic.container`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sfic.errors import InvalidInput, LayerMissing
from sfic.layers import LAYERS, Layer, layer_index, up_to
from sfic.packet import PacketHeader, parse_header

if TYPE_CHECKING:
    from sfic.alignment import Placement
    from sfic.v1.common_pb2 import FaceInfo

__all__ = ["MOST_BRIGHTENED", "EncodedFace", "brightened"]

MOST_BRIGHTENED: Final = 8.0  # in less light there is little but noise


@dataclass(frozen=True)
class EncodedFace:
    """Layers of one face, before sealing, and its place in the picture.

    `basic`, `middle`, `enhanced`: packets; the higher ones are None when they are not held.
    `placement`: where the crop lay in its picture, None for a crop without one.
    `face_score`: how usable the face is, 0..1. `source_size`: side of the face crop in the source,
    in pixels, None when unknown. `brightened`: what the values of a face in too little light were
    multiplied by before it was coded, 1 for others (`sfic.exposure`). Raises LayerMissing when
    enhanced is there and middle is not, InvalidInput for a factor that is not in 1..8.
    """

    basic: bytes
    middle: bytes | None = None
    enhanced: bytes | None = None
    placement: Placement | None = None
    face_score: float = 0.0
    source_size: float | None = None
    brightened: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a gap in the layers; what the packets say is judged when they are read."""
        if not self.basic:
            raise InvalidInput("an encoded face has at least a basic layer")
        if self.enhanced is not None and self.middle is None:
            raise LayerMissing("an enhanced layer without its middle layer cannot be decoded")
        if not 1.0 <= self.brightened <= MOST_BRIGHTENED:
            raise InvalidInput(
                f"a face is brightened by 1 to {MOST_BRIGHTENED:.0f}, not {self.brightened}"
            )

    @property
    def header(self) -> PacketHeader:
        """Header of the basic packet; PacketError when it has none."""
        return parse_header(self.basic)

    @property
    def rate(self) -> int:
        """The rate setting 1..9 that the face was encoded at."""
        return self.header.rate

    @property
    def model_bundle_id(self) -> str:
        """First two bytes of the hash of the model bundle, as 4 hex digits."""
        return self.header.bundle_hex

    @property
    def layers(self) -> dict[Layer, bytes]:
        """The packets that are there, lowest layer first."""
        packets = zip(LAYERS, (self.basic, self.middle, self.enhanced), strict=True)
        return {layer: packet for layer, packet in packets if packet is not None}

    @property
    def total_bytes(self) -> int:
        """Bytes of all packets together."""
        return sum(map(len, self.layers.values()))

    def up_to(self, layer: str) -> EncodedFace:
        """The same face without the layers above `layer`; LayerMissing when it lacks `layer`."""
        missing = [name for name in up_to(layer) if name not in self.layers]
        if missing:
            lost = missing[0]
            raise LayerMissing(f"the {lost} layer of this face is not there", layer=lost)
        height = layer_index(layer)
        return replace(
            self,
            middle=self.middle if height >= 1 else None,
            enhanced=self.enhanced if height >= 2 else None,
        )


def brightened(info: FaceInfo) -> float:
    """`EncodedFace.brightened` as a message has it; 1 where it has none, or one that cannot be."""
    factor = float(info.brightened)
    return factor if 1.0 < factor <= MOST_BRIGHTENED else 1.0
