"""Scalable face image coding on a StyleGAN prior: the codec, a library with no network in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sfic.errors import SficError

if TYPE_CHECKING:
    from sfic.analysis import Analysis
    from sfic.codec import Codec
    from sfic.face import EncodedFace

__all__ = ["Analysis", "Codec", "EncodedFace", "SficError"]

_LAZY = {"Analysis": "sfic.analysis", "Codec": "sfic.codec", "EncodedFace": "sfic.face"}


def __getattr__(name: str) -> Any:
    # `import sfic` has to stay cheap: the CLI answers --help without loading ONNX Runtime.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sfic' has no attribute {name!r}")
