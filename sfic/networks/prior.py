"""What codec and training ask of a generator, so that they need not know which one it is.

Belongs here: that interface only. `generator` (the built-in prior) and `stylegan2` (an integrator's
checkpoint) provide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from sfic.layers import Layer

__all__ = ["StylePrior", "output_sizes"]

SMALLEST_OUTPUT = 128


class StylePrior(Protocol):
    """A frozen style-based generator. Pictures are RGB, about [-1, 1], not clipped."""

    @property
    def resolution(self) -> int:
        """Side of its picture, S."""

    @property
    def num_styles(self) -> int:
        """Number of style vectors."""

    @property
    def style_dim(self) -> int:
        """Length of a style vector."""

    @property
    def layer_of_style(self) -> tuple[Layer, ...]:
        """The coded layer that corrects each style."""

    @property
    def channels(self) -> Mapping[int, int]:
        """Width of the features at each resolution."""

    def __call__(self, styles: Tensor) -> Tensor:
        """styles [N, num_styles, style_dim] -> picture [N, 3, S, S]."""

    def features(self, styles: Tensor, resolution: int) -> Tensor:
        """styles -> features [N, channels[r], r, r]."""

    def advance(self, features: Tensor, styles: Tensor, resolution: int, upto: int) -> Tensor:
        """Features at one resolution -> features at a higher one."""

    def head(self, features: Tensor, styles: Tensor, resolution: int) -> Tensor:
        """The picture of twice the resolution that these features hold, [N, 3, 2r, 2r]."""

    def preview_from_features(
        self, features: Tensor, styles: Tensor, resolution: int, size: int
    ) -> Tensor:
        """Go on from features to a picture [N, 3, size, size]."""

    def from_features(self, features: Tensor, styles: Tensor, resolution: int) -> Tensor:
        """Go on from features to the picture [N, 3, S, S]."""


def output_sizes(resolution: int) -> tuple[int, ...]:
    """Sides of the pictures that a bundle offers: 128, 256, ... S; a smaller network's S alone."""
    sizes = []
    size = SMALLEST_OUTPUT
    while size <= resolution:
        sizes.append(size)
        size *= 2
    return tuple(sizes) or (resolution,)
