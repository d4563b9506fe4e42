"""StyleGAN2's generator, for an integrator's own checkpoint.

The architecture of Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR
2020): mapping network, modulated convolutions, one RGB picture per resolution. Only arithmetic
lives here; file formats and the names that other code bases give to weights are in
`stylegan2_checkpoint`.

    z -> mapping -> w            styles [N, num_styles, style_dim]
                                   |  0   | 1     2   | 3     4   | ...
    const 4x4 -> conv1 -> 8x8: conv0, conv1 -> 16x16: conv0, conv1 -> ...
                   |                    |                      |
                 to_rgb --- up ------> (+) to_rgb --- up ---> (+) to_rgb -> image

Gains and learning-rate multipliers are constants, so weights are held with them multiplied in: a
linear layer here is a plain one, and `noise` is constant times strength. Synthesis is
deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfic.errors import InvalidInput
from sfic.layers import Layer

__all__ = ["Block", "MappingNetwork", "StyleGAN2", "StyledConv", "ToRGB"]

_SLOPE = 0.2
_GAIN = math.sqrt(2.0)
_EPSILON = 1e-8


def _activate(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU that keeps the second moment; the result is held to +-clamp if that is given."""
    x = F.leaky_relu(x, _SLOPE) * _GAIN
    return x if clamp is None else x.clamp(-clamp, clamp)


class MappingNetwork(nn.Module):
    """z [N, latent_dim] -> w [N, style_dim], both float32."""

    def __init__(self, latent_dim: int, style_dim: int, layers: int) -> None:
        super().__init__()
        sizes = [latent_dim] + [style_dim] * layers
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Normalise `z` to a mean square of one and map it."""
        x = z * (z.square().mean(dim=1, keepdim=True) + _EPSILON).rsqrt()  # [N, latent_dim]
        for layer in self.layers:
            x = _activate(layer(x))
        return x  # [N, style_dim]


class StyledConv(nn.Module):
    """A 3x3 convolution whose weights a style modulates, then noise, bias and leaky ReLU.

    `w * s`, demodulated to unit norm per output channel (section 2.2 of the paper), is applied as a
    scale of the inputs and a scale of the outputs, so that one weight serves the whole batch.
    """

    noise: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        resolution: int,
        *,
        up: bool,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.up = up
        self.clamp = clamp
        self.affine = nn.Linear(style_dim, in_channels)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("noise", torch.zeros(resolution, resolution))

    def forward(self, x: Tensor, style: Tensor, resample_filter: Tensor) -> Tensor:
        """[N, in, r, r], [N, style_dim], [4, 4] -> [N, out, R, R], R = 2r if `up`, else r."""
        s: Tensor = self.affine(style)  # [N, in]
        power = s.square() @ self.weight.square().sum(dim=(2, 3)).t()  # [N, out]
        x = x * s[:, :, None, None]  # [N, in, r, r]
        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)  # [N, out, 2r+1, 2r+1]
            channels = self.weight.shape[0]
            blur = resample_filter.flip(0, 1).mul(4.0).expand(channels, 1, 4, 4)
            x = F.conv2d(x, blur, padding=1, groups=channels)  # [N, out, 2r, 2r]
        else:
            x = F.conv2d(x, self.weight, padding=1)  # [N, out, r, r]
        x = x * (power + _EPSILON).rsqrt()[:, :, None, None]
        return _activate(x + self.noise + self.bias[:, None, None], self.clamp)


class ToRGB(nn.Module):
    """A 1x1 convolution to 3 channels, modulated by a style but not demodulated."""

    def __init__(self, channels: int, style_dim: int, *, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = nn.Linear(style_dim, channels)
        self.weight = nn.Parameter(torch.randn(3, channels))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """[N, channels, r, r], [N, style_dim] -> [N, 3, r, r]."""
        s: Tensor = self.affine(style)  # [N, channels]
        rgb = (self.weight * s[:, None, :]) @ x.flatten(2)  # [N, 3, r*r]
        rgb = rgb.reshape(-1, 3, *x.shape[2:]) + self.bias[:, None, None]  # [N, 3, r, r]
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class Block(nn.Module):
    """One resolution: `conv0` doubles it (absent at 4x4), then `conv1` and `to_rgb`."""

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        style_dim: int,
        resolution: int,
        *,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.conv0 = (
            None
            if in_channels is None
            else StyledConv(in_channels, out_channels, style_dim, resolution, up=True, clamp=clamp)
        )
        self.conv1 = StyledConv(
            out_channels, out_channels, style_dim, resolution, up=False, clamp=clamp
        )
        self.to_rgb = ToRGB(out_channels, style_dim, clamp=clamp)


class StyleGAN2(nn.Module):
    """StyleGAN2 from styles to an image, with the interface of the codec's own generator.

    Attributes: `resolution` S; `num_styles` = 2 log2(S) - 2 (18 at 1024, 14 at 256); `style_dim`;
    `latent_dim`; `channels`, resolution -> width of its features; `layer_of_style`, the coded layer
    of each style: basic for 4x4 and 8x8, middle for 16x16 and 32x32, enhanced from 64x64;
    `mean_style` [style_dim], the mean of W.

    An RGB output shares the style of the next resolution's first convolution, as in the paper's
    code: style 7 (enhanced) colours the 32x32 picture, though it does not touch the 32x32 features.
    """

    resample_filter: Tensor
    mean_style: Tensor

    def __init__(
        self,
        channels: Mapping[int, int],
        *,
        style_dim: int = 512,
        latent_dim: int = 512,
        mapping_layers: int = 8,
        conv_clamp: float | None = None,
    ) -> None:
        """Random weights. `channels` names 4, 8, ..., S; `conv_clamp` bounds every activation.

        Raises `InvalidInput` where the resolutions are not 4, 8, ..., S.
        """
        super().__init__()
        self.channels = dict(sorted(channels.items()))
        self.resolutions = tuple(self.channels)
        if len(self.resolutions) < 2 or self.resolutions != tuple(
            4 << i for i in range(len(self.resolutions))
        ):
            raise InvalidInput(
                f"resolutions must be 4, 8, ... without a gap, not {self.resolutions}"
            )
        self.resolution = self.resolutions[-1]
        self.style_dim = style_dim
        self.latent_dim = latent_dim
        self.num_styles = 2 * len(self.resolutions)
        self.layer_of_style = tuple(_layer_of_style(i) for i in range(self.num_styles))
        self.mapping = MappingNetwork(latent_dim, style_dim, mapping_layers)
        self.const = nn.Parameter(torch.randn(self.channels[4], 4, 4))
        self.blocks = nn.ModuleList(
            Block(self.channels.get(r // 2), self.channels[r], style_dim, r, clamp=conv_clamp)
            for r in self.resolutions
        )
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("resample_filter", torch.outer(taps, taps) / 64.0)
        self.register_buffer("mean_style", torch.zeros(style_dim))

    def forward(self, styles: Tensor, upto: int | None = None) -> Tensor:
        """Synthesise.

        styles: float32 [N, num_styles, style_dim]. upto: stop at this resolution, S by default.
        Returns float32 [N, 3, R, R], R = `upto` or S, in about [-1, 1], not clamped.
        Raises `InvalidInput` for other shapes or a resolution that the network does not have.
        """
        last = self._index(self.resolution if upto is None else upto)
        return self._image(*self._start(styles), styles, 0, last)

    def preview(self, styles: Tensor, size: int) -> Tensor:
        """Synthesise the blocks up to `size` only: the same picture, [N, 3, size, size]."""
        return self.forward(styles, upto=size)

    def features(self, styles: Tensor, resolution: int) -> Tensor:
        """Output of the last convolution at a resolution, float32 [N, channels[r], r, r].

        Depends on no style of a higher resolution.
        """
        index = self._index(resolution)
        x, _ = self._start(styles)
        return self._advance(x, styles, 0, index)

    def advance(self, features: Tensor, styles: Tensor, resolution: int, upto: int) -> Tensor:
        """Features at a resolution -> features [N, channels[upto], upto, upto] at a higher one."""
        first, last = self._index(resolution), self._index(upto)
        self._check_features(features, styles, resolution)
        return self._advance(features, styles, first, last)

    def from_features(self, features: Tensor, styles: Tensor, resolution: int) -> Tensor:
        """Go on from (changed) features [N, channels[r], r, r] to the image [N, 3, S, S].

        The RGB outputs below `resolution` are made again from the styles: a small part of the
        whole. `from_features(features(s, r), s, r)` equals `forward(s)`.
        """
        return self.preview_from_features(features, styles, resolution, self.resolution)

    def preview_from_features(
        self, features: Tensor, styles: Tensor, resolution: int, size: int
    ) -> Tensor:
        """As `from_features`, to a picture of `size` (at least the resolution)."""
        first, last = self._index(resolution), self._index(size)
        self._check_features(features, styles, resolution)
        if last < first:
            raise InvalidInput(f"features of {resolution} cannot give a smaller picture of {size}")
        x, skip = self._start(styles)
        for i in range(first):
            skip = self._upsample(skip + self._rgb(x, styles, i))
            if i + 1 < first:
                x = self._advance(x, styles, i, i + 1)
        return self._image(features, skip, styles, first, last)

    def head(self, features: Tensor, styles: Tensor, resolution: int) -> Tensor:
        """Upsample the picture that these features hold to twice their size, [N, 3, 2r, 2r]."""
        picture = self.preview_from_features(features, styles, resolution, resolution)
        return self._upsample(picture)

    @torch.no_grad()
    def estimate_mean_style(self, samples: int = 4096, seed: int = 0) -> Tensor:
        """Mean of W over `samples` latents drawn from `seed`, [style_dim]."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(samples, self.latent_dim, generator=generator)
        w: Tensor = self.mapping(z.to(self.const.device))
        return w.mean(dim=0)

    def _index(self, resolution: int) -> int:
        if resolution not in self.channels:
            raise InvalidInput(f"no resolution {resolution}; this generator has {self.resolutions}")
        return self.resolutions.index(resolution)

    def _check(self, styles: Tensor) -> None:
        expected = (self.num_styles, self.style_dim)
        if styles.dim() != 3 or tuple(styles.shape[1:]) != expected:
            raise InvalidInput(
                f"styles must be [N, {expected[0]}, {expected[1]}], not {tuple(styles.shape)}"
            )

    def _check_features(self, features: Tensor, styles: Tensor, resolution: int) -> None:
        self._check(styles)
        expected = (styles.shape[0], self.channels[resolution], resolution, resolution)
        if tuple(features.shape) != expected:
            raise InvalidInput(f"features must be {expected}, not {tuple(features.shape)}")

    def _start(self, styles: Tensor) -> tuple[Tensor, Tensor]:
        """Features at 4x4 and the empty picture below them."""
        self._check(styles)
        x = self.const.expand(styles.shape[0], -1, -1, -1)  # [N, C, 4, 4]
        x = self._block(0).conv1(x, styles[:, 0], self.resample_filter)
        return x, x.new_zeros(x.shape[0], 3, 4, 4)

    def _advance(self, x: Tensor, styles: Tensor, first: int, last: int) -> Tensor:
        for i in range(first, last):
            block = self._block(i + 1)
            assert block.conv0 is not None
            x = block.conv0(x, styles[:, 2 * i + 1], self.resample_filter)
            x = block.conv1(x, styles[:, 2 * i + 2], self.resample_filter)
        return x

    def _image(self, x: Tensor, skip: Tensor, styles: Tensor, first: int, last: int) -> Tensor:
        """Features of block `first` and the picture below it, upsampled -> picture of `last`."""
        for i in range(first, last):
            skip = self._upsample(skip + self._rgb(x, styles, i))
            x = self._advance(x, styles, i, i + 1)
        return skip + self._rgb(x, styles, last)

    def _rgb(self, x: Tensor, styles: Tensor, i: int) -> Tensor:
        rgb: Tensor = self._block(i).to_rgb(x, styles[:, 2 * i + 1])
        return rgb

    def _upsample(self, picture: Tensor) -> Tensor:
        """[N, 3, r, r] -> [N, 3, 2r, 2r] through the resampling filter."""
        kernel = self.resample_filter.mul(4.0).expand(3, 1, 4, 4)
        return F.conv_transpose2d(picture, kernel, stride=2, padding=1, groups=3)

    def _block(self, i: int) -> Block:
        block = self.blocks[i]
        assert isinstance(block, Block)
        return block


def _layer_of_style(index: int) -> Layer:
    resolution = 4 << ((index + 1) // 2)
    return "basic" if resolution <= 8 else "middle" if resolution <= 32 else "enhanced"
