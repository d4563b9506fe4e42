"""An edge that encodes each picture once and then reuses its packets: storage is its load.

    python -m benchmarks.known_faces_edge --listen ... --data-dir ...

All of it is the edge of `edge_encoder`, its settings included; only the second and later times that
the same crop comes, the codec's answer is the one it gave before.
"""

from __future__ import annotations

import sys
import threading

from edge_encoder.service import EdgeService
from edge_encoder.settings import EdgeSettings
from sfic.bundle import ModelBundle
from sfic.codec import Codec, Rgb
from sfic.errors import SficError
from sfic.face import EncodedFace
from sfic.service.server import serve


class KnownFaces(Codec):
    """A codec that remembers what it has encoded."""

    def __init__(self, bundle: ModelBundle, provider: str = "auto", threads: int = 0) -> None:
        super().__init__(bundle, provider, threads)
        self._encoded: dict[tuple[object, ...], EncodedFace] = {}
        self._lock = threading.Lock()

    def encode(
        self,
        crop: Rgb,
        rate: int = 5,
        effort: int = 0,
        target_bytes: int | None = None,
        layers: str = "enhanced",
        brighten: bool = False,
    ) -> EncodedFace:
        """As the codec's own."""
        key = (crop.tobytes(), rate, effort, target_bytes, layers, brighten)
        with self._lock:
            if key not in self._encoded:
                self._encoded[key] = super().encode(
                    crop, rate, effort, target_bytes, layers, brighten
                )
            return self._encoded[key]


def main() -> int:
    """Serve until told to stop; returns the exit code."""
    try:
        settings = EdgeSettings.load(sys.argv[1:])
        codec = KnownFaces.load(settings.bundle, provider="cpu", threads=1)
        serve(lambda: EdgeService(settings, codec), settings)
    except SficError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
