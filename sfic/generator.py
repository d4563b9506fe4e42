"""The StyleGAN prior as it is served: styles to pictures, in ONNX Runtime.

Two graphs: `generator_low.onnx` goes from the styles to the features at 32x32 and
`generator_high.onnx` from there to a picture of any of its sizes, so that a decoded correction can
be added in between.
`training.generator_export` and `training.export_stylegan2` write them; the same networks in torch
are in `sfic.networks`.

The second graph's outputs say what it makes: `image_S` a picture of S x S, `preview` the style-only
picture that the spatial code is made beside (where there is none, the smallest picture is it).
`features_R`, where it is there, is a place to cut the graph: on CPUs, pictures of more than 2 R are
made from it in strips, one thread each. Much of the work at high resolution is moving memory, in
operators that use one core; a strip's features stay near it, and no thread waits for another.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from sfic.errors import BundleError, InvalidInput
from sfic.onnx_outputs import keep_outputs, output_names
from sfic.runtime import CPU, make_session

__all__ = ["OnnxGenerator", "agree", "preview_output", "to_rgb"]

FloatArray = npt.NDArray[np.float32]

# Share of the generator's texture that is shown. It is nobody's own: judges of likeness want half
# of it, those of realism all (training/LOG.md).
TEXTURE: Final = 0.75
_IMAGE: Final = "image_"
_PREVIEW: Final = "preview"
_FEATURES: Final = "features_"
_STRIPS: Final = 8
# Rows of the cut features above and below a strip that its pictures depend on: two 3x3 convolutions
# at each of two or three doubled resolutions.
_MARGIN: Final = 2


def agree(image: FloatArray, picture: FloatArray) -> FloatArray:
    """The image [3, S, S], changed so that it shrinks to `picture` [3, s, s], s at most S.

    What the spatial code says of the face replaces what the generator guessed, with a step of back
    projection (Irani and Peleg 1991) against what enlarging blurs; of the texture that the
    generator adds above s, `TEXTURE` stays. The torch form is `sfic.networks.codec.agree`.
    """
    size, small = image.shape[1], picture.shape[1]
    if size == small:
        return picture
    wide = small * min(4, size // small)
    agreed = np.empty_like(image)
    for own, said, plane in zip(image, picture, agreed, strict=True):
        guess = cv2.resize(own, (small, small), interpolation=cv2.INTER_AREA)
        rest = said - guess
        larger = cv2.resize(rest, (wide, wide), interpolation=cv2.INTER_CUBIC)
        back = cv2.resize(larger, (small, small), interpolation=cv2.INTER_AREA)
        low = said + TEXTURE * (rest - guess - back)
        up = cv2.resize(low, (size, size), interpolation=cv2.INTER_CUBIC)
        cv2.addWeighted(own, TEXTURE, up, 1.0, 0.0, dst=plane)
    return agreed


def to_rgb(image: FloatArray) -> npt.NDArray[np.uint8]:
    """Image [3, S, S], about [-1, 1], to RGB uint8 [S, S, 3]."""
    # One pass a plane: scales, rounds to the nearest (ties to even) and saturates.
    planes = [cv2.addWeighted(p, 127.5, p, 0.0, 127.5, dtype=cv2.CV_8U) for p in image]
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


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
        self._sessions: dict[tuple[str, str | None], Any] = {}
        self._lock = threading.Lock()
        outputs = output_names(high.read_bytes())
        images = [name for name in outputs if name.startswith(_IMAGE)]
        self.sizes = tuple(sorted(int(name.removeprefix(_IMAGE)) for name in images))
        if not self.sizes:
            raise BundleError(f"{high} makes no picture: its outputs are {outputs}")
        self._preview = preview_output(high)
        cuts = [name for name in outputs if name.startswith(_FEATURES)]
        self._cut = cuts[0] if cuts and self.provider == CPU else None
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "strip")

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
        name = f"{_IMAGE}{size}"
        if self._is_cut(size):
            return self._in_strips(name, size, styles, features)
        return self._run(name, styles=styles, features=features)

    def load(self, size: int | None = None) -> None:
        """Load what `preview`, and `image` of this size, need: else done when they first run."""
        self._session(self._preview, None)
        if size is None:
            return
        if self._is_cut(size):
            self._session(str(self._cut), None)
        self._session(f"{_IMAGE}{size}", self._cut if self._is_cut(size) else None)

    def _is_cut(self, size: int) -> bool:
        return self._cut is not None and size > 2 * int(self._cut.removeprefix(_FEATURES))

    def preview(self, styles: FloatArray, features: FloatArray) -> FloatArray:
        """styles and their features -> preview [N, 3, 64, 64], beside which the spatial code is."""
        return self._run(self._preview, styles=styles, features=features)

    def _in_strips(
        self, name: str, size: int, styles: FloatArray, features: FloatArray
    ) -> FloatArray:
        cut_name = self._cut
        assert cut_name is not None
        cut = self._run(cut_name, styles=styles, features=features)  # [N, C, R, R]
        rows = cut.shape[2]
        step = rows // _STRIPS
        window, scale = step + 2 * _MARGIN, size // rows
        image = np.empty((len(cut), 3, size, size), np.float32)

        def paint(first: int) -> None:
            # All windows are of one height; at the picture's edges the margin is inside, on one
            # side, so that the convolutions' own padding is where the whole picture has it.
            top = min(max(first - _MARGIN, 0), rows - window)
            given: dict[str, Any] = {
                "styles": styles,
                cut_name: np.ascontiguousarray(cut[:, :, top : top + window]),
                "row": np.array(top),
            }
            strip = self._run(name, cut_name, **given)
            begin = (first - top) * scale
            image[:, :, first * scale : (first + step) * scale] = strip[
                :, :, begin : begin + step * scale
            ]

        list(self._pool.map(paint, range(0, rows, step)))
        return image

    def _run(self, name: str, cut: str | None = None, **given: Any) -> FloatArray:
        """An output of the second graph from its inputs, or from the features that cut it."""
        session = self._session(name, cut)
        needed = {node.name for node in session.get_inputs()}
        given = {"row": np.array(0), **given}
        output: FloatArray = session.run([name], {k: given[k] for k in needed})[0]
        return output

    def _session(self, name: str, cut: str | None) -> Any:
        # A session for each: one with all outputs would run to 1024x1024 for every preview.
        with self._lock:
            session = self._sessions.get((name, cut))
            if session is None:
                provider, threads = self._settings
                pruned = keep_outputs(self._high.read_bytes(), {name}, cut)
                session = make_session(pruned, provider, 1 if cut else threads, arena=True)
                self._sessions[name, cut] = session
        return session
