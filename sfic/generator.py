"""The StyleGAN prior as it is served: styles to pictures, in ONNX Runtime.

Two graphs: `generator_low.onnx` goes from the styles to the features at 32x32 and
`generator_high.onnx` from there to a picture of any of its sizes, so that a decoded correction can
be added in between.
`training.generator_export` and `training.export_stylegan2` write them; the same networks in torch
are in `sfic.networks`.

The second graph's outputs say what it makes: `image_S` a picture of S x S, `preview` the style-only
picture that the encoder compares the face with (where there is none, the smallest picture is it).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sfic.errors import BundleError, InvalidInput
from sfic.onnx_outputs import keep_outputs, output_names
from sfic.runtime import make_session

__all__ = ["OnnxGenerator"]

FloatArray = npt.NDArray[np.float32]

_IMAGE: Final = "image_"
_PREVIEW: Final = "preview"


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
        self._preview = _PREVIEW if _PREVIEW in outputs else f"{_IMAGE}{self.sizes[0]}"

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

    def preview(self, styles: FloatArray) -> FloatArray:
        """styles -> the style-only preview [N, 3, 64, 64] that the spatial code is made from."""
        return self._output(self._preview, styles, self.features(styles))

    def _output(self, name: str, styles: FloatArray, features: FloatArray) -> FloatArray:
        # A session for each size: one with all outputs would run to 1024x1024 for every preview.
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                pruned = keep_outputs(self._high.read_bytes(), {name})
                session = self._sessions[name] = make_session(pruned, *self._settings)
        image: FloatArray = session.run([name], {"styles": styles, "features": features})[0]
        return image

    def picture(
        self, styles: FloatArray, features: FloatArray, size: int
    ) -> npt.NDArray[np.uint8]:
        """As `image`, but RGB uint8 [N, size, size, 3]."""
        image = self.image(styles, features, size)
        rgb = np.rint(np.clip(image, -1.0, 1.0) * 127.5 + 127.5).astype(np.uint8)
        return np.ascontiguousarray(rgb.transpose(0, 2, 3, 1))

    def synthesise(
        self, styles: FloatArray, correction: FloatArray | None, size: int
    ) -> npt.NDArray[np.uint8]:
        """Styles to pictures in one go: RGB uint8 [N, size, size, 3].

        `styles`: float32 [N, 16, 512]; `correction`: float32 [N, C, 32, 32], added to the features,
        or None; `size`: one of `sizes`. Raises InvalidInput on other shapes or sizes.
        """
        features = self.features(styles)
        if correction is not None:
            if correction.shape != features.shape:
                raise InvalidInput(f"a correction is {features.shape}, not {correction.shape}")
            features = features + correction
        return self.picture(styles, features, size)
