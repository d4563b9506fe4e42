"""The anchor: VVC that may downscale, from bitstreams that are there or from `vvencapp`.

Belongs here: VVC as a codec of the evaluation. Not here: other codecs (`sfic.evaluation.codecs`),
the best of its settings at a number of bytes (`sfic.evaluation.curves`).
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

from sfic.errors import InvalidInput, MissingExtra
from sfic.evaluation.codecs import Coded, Setting, nal_units, scale
from sfic.evaluation.dataset import Sample
from sfic.evaluation.judges import WORKING_SIZE

__all__ = ["Stream", "VvcEncoder", "VvcStreams", "decode", "read_streams", "vvc_picture_bytes"]

Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Stream:
    """One coded picture: `size` px at `qp`; `bytes_vcl` leaves parameter sets and SEI out."""

    image: str
    size: int
    qp: int
    path: Path
    bytes_total: int
    bytes_vcl: int


def read_streams(folder: Path) -> list[Stream]:
    """All streams that `dev.csv` in `folder` lists. Raises InvalidInput if it is not there."""
    index = folder / "dev.csv"
    if not index.is_file():
        raise InvalidInput(f"no VVC index at {index}")
    with index.open(newline="") as file:
        return [
            Stream(
                row["image"],
                int(row["size"]),
                int(row["qp"]),
                folder / "dev" / row["file"],
                int(row["bytes_total"]),
                int(row["bytes_vcl"]),
            )
            for row in csv.DictReader(file)
        ]


def decode(path: Path, size: int = WORKING_SIZE) -> Rgb:
    """A bitstream's picture, RGB uint8 [size, size, 3], scaled up bicubically."""
    try:
        with av.open(str(path), format="vvc") as container:
            frame = next(container.decode(video=0))
            rgb = frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, StopIteration) as error:
        raise InvalidInput(f"cannot decode {path.name}: {error}") from error
    return scale(np.asarray(rgb, np.uint8), size)


def vvc_picture_bytes(data: bytes) -> int:
    """Bytes of the slices (NAL unit types 0 to 11 of H.266, table 5) of an Annex B stream."""
    return sum(len(unit) for unit in nal_units(data) if unit[1] >> 3 < 12)


class VvcStreams:
    """VVC from bitstreams in a folder with an index `dev.csv`; pictures are known by file name."""

    name = "vvc"
    sweeps = True

    def __init__(self, folder: Path) -> None:
        """Raises InvalidInput when there is no index."""
        streams = read_streams(folder)
        self._streams = {(s.image, s.size, s.qp): s for s in streams}
        index = (folder / "dev.csv").read_bytes()
        self.key = f"vvc streams {hashlib.sha256(index).hexdigest()[:16]}"
        self.images = frozenset(s.image for s in streams)
        # A setting that lacks a picture would be a mean over others.
        counts: dict[tuple[int, int], int] = {}
        for s in streams:
            counts[s.size, s.qp] = counts.get((s.size, s.qp), 0) + 1
        self._whole = sorted(
            (key for key, count in counts.items() if count == len(self.images)),
            key=lambda key: (key[0], -key[1]),
        )

    def settings(self) -> list[list[Setting]]:
        """Those that have every picture, a sequence for each size."""
        return [
            [Setting(size, qp, f"{size} px, QP {qp}") for size, qp in group]
            for _, group in groupby(self._whole, key=lambda key: key[0])
        ]

    def code(self, sample: Sample, crop: Rgb, setting: Setting) -> Coded:
        """Decode the stream of the sample's file. InvalidInput when there is none."""
        stream = self._streams.get((sample.path.name, setting.size, setting.quality))
        if stream is None:
            raise InvalidInput(f"there is no VVC stream of {sample.path.name}, {setting.label}")
        return Coded(stream.bytes_vcl, stream.bytes_total, decode(stream.path))


class VvcEncoder:
    """VVC by `vvencapp` (vvenc, preset slower), one frame, 4:2:0, constant QP."""

    name = "vvc"
    sweeps = True
    SIZES: Final = (64, 128, 256, 512)
    QPS: Final = (63, 57, 52, 47, 42, 37, 32, 27, 22)
    _PRESET: Final = "slower"

    def __init__(self, sizes: Sequence[int] = SIZES, qualities: Sequence[int] = QPS) -> None:
        """Raises MissingExtra when `vvencapp` is not on PATH."""
        found = shutil.which("vvencapp")
        if found is None:
            raise MissingExtra(
                "vvencapp is not on PATH: install vvenc, or give bitstreams with vvc:streams=DIR"
            )
        self._program = found
        self._sizes, self._qps = sizes, sorted(qualities, reverse=True)
        stated = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        self.key = f"vvc {self._PRESET} {' '.join((stated.stdout + stated.stderr).split())[:80]}"

    def settings(self) -> list[list[Setting]]:
        """A sequence for each size."""
        return [[Setting(s, q, f"{s} px, QP {q}") for q in self._qps] for s in self._sizes]

    def code(self, sample: Sample, crop: Rgb, setting: Setting) -> Coded:
        """Through files in a temporary folder. InvalidInput with the encoder's last line if it
        fails."""
        side = setting.size
        frame = av.VideoFrame.from_ndarray(scale(crop, side), format="rgb24")
        planes = frame.reformat(format="yuv420p").to_ndarray()
        with tempfile.TemporaryDirectory(prefix="sfic-vvc-") as folder:
            raw, coded = Path(folder) / "in.yuv", Path(folder) / "out.266"
            raw.write_bytes(planes.tobytes())
            command = [self._program, "--preset", self._PRESET, "-i", str(raw)]
            command += ["-s", f"{side}x{side}", "-r", "1", "--format", "yuv420"]
            command += ["--qp", str(setting.quality), "--qpa", "0", "-o", str(coded)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode or not coded.is_file():
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise InvalidInput(f"vvencapp failed on {sample.name}: {' '.join(last)}")
            data = coded.read_bytes()
            return Coded(vvc_picture_bytes(data), len(data), decode(coded))
