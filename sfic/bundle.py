"""The model bundle: every weight and table that encoder and decoder must share, named by its hash.

What belongs here: which files make up the bundle, and that they are whole. What the files mean
belongs to the modules that run them. Detector and landmark networks are not part of it: they decide
what is encoded, not how it is decoded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sfic.errors import BundleError
from sfic.locations import models_dir

__all__ = ["BUNDLE_FILES", "ModelBundle", "bundle_hash"]

MANIFEST: Final = "bundle.json"
FORMAT: Final = 4  # 4: coarse spatial channels in the middle layer, fine ones in the enhanced
BUNDLE_FILES: Final = (
    "analysis.onnx",
    "spatial_analysis.onnx",
    "styles.onnx",
    "correction.onnx",
    "heads.onnx",
    "entropy.npz",
    "tables.npz",
    "generator_low.onnx",
    "generator_high.onnx",
)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(
            hashlib, "file_digest"
        ) else hashlib.sha256(file.read()).hexdigest()


def bundle_hash(files: dict[str, str], meta: dict[str, Any]) -> str:
    """Name of a bundle, 16 hex digits: SHA-256 over its files' hashes and its settings."""
    text = json.dumps({"files": files, "meta": meta}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ModelBundle:
    """A verified bundle on disk.

    `hash`: its name, 16 hex digits. `meta`: sizes and settings of the networks in it.
    """

    directory: Path
    hash: str
    meta: dict[str, Any]

    @property
    def id(self) -> bytes:
        """The two bytes that packets carry."""
        return bytes.fromhex(self.hash[:4])

    def path(self, name: str) -> Path:
        """Path of one of its files."""
        return self.directory / name

    @classmethod
    def load(cls, directory: Path | None = None) -> ModelBundle:
        """Read and verify the bundle in `directory` (default: the one that ships).

        Raises BundleError when a file is missing or is not the one that the manifest names.
        """
        directory = directory or models_dir()
        manifest = directory / MANIFEST
        try:
            stated = json.loads(manifest.read_text())
            files, meta, name = stated["files"], stated["meta"], stated["hash"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"no model bundle in {directory}: {error}") from error
        for file in BUNDLE_FILES:
            path = directory / file
            if file not in files or not path.is_file():
                raise BundleError(f"model bundle {name} lacks {file}: run `make models`")
            if file_hash(path) != files[file]:
                raise BundleError(f"{path} is not the file that model bundle {name} was made of")
        if meta.get("format") != FORMAT:
            raise BundleError(
                f"model bundle {name} has the format {meta.get('format')}, "
                f"this version reads {FORMAT}"
            )
        if bundle_hash(files, meta) != name:
            raise BundleError(f"{manifest} does not match its own hash {name}")
        return cls(directory, name, meta)

    @staticmethod
    def write(directory: Path, meta: dict[str, Any]) -> str:
        """Write the manifest for the files in `directory`; returns the new bundle's name."""
        meta = {**meta, "format": FORMAT}
        files = {name: file_hash(directory / name) for name in BUNDLE_FILES}
        name = bundle_hash(files, meta)
        text = json.dumps({"hash": name, "meta": meta, "files": files}, indent=2)
        (directory / MANIFEST).write_text(text + "\n")
        return name
