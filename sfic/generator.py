"""The StyleGAN prior as it is served: styles to pictures, in ONNX Runtime.

Two graphs: `generator_low.onnx` goes from the styles to the features at 32x32 and
`generator_high.onnx` from there to a picture of any of its sizes, so that a decoded correction can
be added in between.
`training.generator_export` and `training.export_stylegan2` write them; the same networks in torch
are in `sfic.networks`.

The second graph's outputs say what it makes: `image_S` a picture of S x S, `preview` the style-only
picture that the spatial code is made beside (where there is none, the smallest picture is it).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from sfic.errors import BundleError, InvalidInput
from sfic.onnx_outputs import keep_outputs, output_names
from sfic.runtime import make_session

__all__ = ["OnnxGenerator", "agree", "preview_output", "to_rgb"]

FloatArray = npt.NDArray[np.float32]

_IMAGE: Final = "image_"
_PREVIEW: Final = "preview"


def agree(image: FloatArray, picture: FloatArray) -> FloatArray:
    """The image [3, S, S], changed so that it shrinks to `picture` [3, s, s], s at most S.

    What the spatial code says of the face replaces what the generator guessed; the texture that the
    generator adds above s stays. The torch form is `sfic.networks.codec.agree`.
    """
    size, small = image.shape[1], picture.shape[1]
    if size == small:
        return picture
    planes = []
    for own, said in zip(image, picture, strict=True):
        rest = said - cv2.resize(own, (small, small), interpolation=cv2.INTER_AREA)
        planes.append(own + cv2.resize(rest, (size, size), interpolation=cv2.INTER_CUBIC))
    return np.stack(planes)


def to_rgb(image: FloatArray) -> npt.NDArray[np.uint8]:
    """Image [3, S, S], about [-1, 1], to RGB uint8 [S, S, 3]."""
    rgb = np.rint(np.clip(image, -1.0, 1.0) * 127.5 + 127.5).astype(np.uint8)
    return np.ascontiguousarray(rgb.transpose(1, 2, 0))


def preview_output(high: Path) -> str:
    """Name of the second graph's output that is the style-only preview."""
    outputs = output_names(high.read_bytes())
    sizes = [int(n.removeprefix(_IMAGE)) for n in outputs if n.startswith(_IMAGE)]
    return _PREVIEW if _PREVIEW in outputs else f"{_IMAGE}{min(sizes)}"


class OnnxGenerator:
    """Synthesis with one execution provider. `sizes`: sides of the pictures it makes, ascending."""

    def __init__(
        self, low: Path, high: Path, *, provider: str = "auto", threads: int = 0
    ) -> None:
        """Load both graphs; errors as in `sfic.runtime.make_session`."""
        self._low = make_session(low, provider, threads)
        self._styles = tuple(self._low.get_inputs()[0].shape[1:])
        self._high = high
        self._settings = (provider, threads)
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()
        outputs = output_names(high.read_bytes())
        images = [name for name in outputs if name.startswith(_IMAGE)]
        self.sizes = tuple(sorted(int(name.removeprefix(_IMAGE)) for name in images))
        if not self.sizes:
            raise BundleError(f"{high} makes no picture: its outputs are {outputs}")
        self._preview = preview_output(high)

    @property
    def provider(self) -> str:
        """The execution provider in use."""
        name: str = self._low.get_providers()[0]
        return name

    def features(self, styles: FloatArray) -> FloatArray:
        """styles: float32 [N, 16, 512] -> features [N, C, 32, 32]."""
        if styles.ndim != 3 or styles.shape[1:] != self._styles or styles.dtype != np.float32:
            raise InvalidInput(
                f"styles are float32 [N, {self._styles[0]}, {self._styles[1]}], "
                f"not {styles.dtype} {styles.shape}"
            )
        features: FloatArray = self._low.run(["features"], {"styles": styles})[0]
        return features

    def image(self, styles: FloatArray, features: FloatArray, size: int) -> FloatArray:
        """styles and 32x32 features -> image [N, 3, size, size], about [-1, 1]."""
        if size not in self.sizes:
            raise InvalidInput(f"size {size!r} is not one of {', '.join(map(str, self.sizes))}")
        return self._output(f"{_IMAGE}{size}", styles, features)

    def preview(self, styles: FloatArray, features: FloatArray) -> FloatArray:
        """styles and their features -> preview [N, 3, 64, 64], beside which the spatial code is."""
        return self._output(self._preview, styles, features)

    def _output(self, name: str, styles: FloatArray, features: FloatArray) -> FloatArray:
        # A session for each size: one with all outputs would run to 1024x1024 for every preview.
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                pruned = keep_outputs(self._high.read_bytes(), {name})
                session = self._sessions[name] = make_session(pruned, *self._settings)
        image: FloatArray = session.run([name], {"styles": styles, "features": features})[0]
        return image
