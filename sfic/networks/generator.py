"""The StyleGAN prior in torch, for training: mapping network, synthesis network, preview heads.

What belongs here: the networks, and reading their weights. Serving goes through ONNX Runtime
(`sfic/generator.py`, no torch); making the weights is `training/generator.py`.

The networks are MobileStyleGAN (Belousov 2021, arXiv 2104.04767), StyleGAN2-FFHQ distilled to
separable convolutions and Haar wavelets, with one style vector for each of its 16 style inputs:

    styles[0]        styles[1, 2]       styles[3, 4]              styles[13, 14]     styles[15]
    4x4 constant --> up to 8x8 -------> up to 16x16 --> ... ----> up to 512x512 ---> wavelets
                                                                                     --> 1024x1024
Both convolutions of a block read a style of their own; its upsampling shares the first one's.
Noise inputs are constants, so that synthesis is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from sfic.layers import Layer

STYLES = 16
STYLE_DIM = 512
SLOPE = 0.2

RESOLUTIONS = (4, 8, 16, 32, 64, 128, 256, 512)
CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}
PREVIEW_SIZES = (64, 128, 256, 512)
HEAD_CHANNELS = {64: 160, 128: 96, 256: 48, 512: 32}
IMAGE_SIZE = 1024


def next_style(resolution: int) -> int:
    """Index of the first style that acts on features of this resolution (4 -> 1, 512 -> 15)."""
    return 2 * RESOLUTIONS.index(resolution) + 1


class MappingNetwork(nn.Module):
    """z -> w. The input is normalised to unit mean square; there is no truncation in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(STYLE_DIM, STYLE_DIM) for _ in range(8))

    @classmethod
    def load(cls, path: str | Path) -> MappingNetwork:
        """Read the weights from a safetensors file; the result is frozen."""
        network = cls()
        network.load_state_dict(load_file(str(path)))
        return network.requires_grad_(False).eval()

    def forward(self, z: Tensor) -> Tensor:
        """z: normal noise, float32 [N, 512] -> w: float32 [N, 512]."""
        assert z.ndim == 2 and z.shape[1] == STYLE_DIM, z.shape
        x = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)  # [N, 512]
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE) * 2**0.5  # [N, 512]
        return x


def inverse_haar(x: Tensor) -> Tensor:
    """One inverse Haar step, without its factor 1/2: [N, 4 C, H, W] -> [N, C, 2 H, 2 W].

    The first C channels are the low band; the other 3 C hold, for each channel, the bands that
    change sign along rows, along columns, and along both.
    """
    if torch.onnx.is_in_onnx_export():
        return _served_haar(x)
    n, channels, h, w = x.shape
    c = channels // 4
    low = x[:, :c]  # [N, C, H, W]
    rows, columns, both = x[:, c:].reshape(n, c, 3, h, w).unbind(dim=2)  # [N, C, H, W] each
    a, b = low + rows, columns + both
    d, e = low - rows, columns - both
    top = torch.stack((a + b, a - b), dim=-1).flatten(-2)  # [N, C, H, 2 W]
    bottom = torch.stack((d + e, d - e), dim=-1).flatten(-2)  # [N, C, H, 2 W]
    return torch.stack((top, bottom), dim=-2).reshape(n, c, 2 * h, 2 * w)


def _served_haar(x: Tensor) -> Tensor:
    """`inverse_haar` as one transposed convolution: faster in ONNX Runtime, slower in torch."""
    c = int(x.shape[1]) // 4
    channel = np.arange(c)
    order = np.stack((channel, *(c + 3 * channel + i for i in range(3))), axis=1)  # [C, 4]
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    kernel = np.tile(np.array(signs, np.float32).reshape(4, 1, 2, 2), (c, 1, 1, 1))
    # Constants of numpy, because the exporter has to know their shapes.
    bands = x[:, torch.from_numpy(order.reshape(-1))]  # [N, 4 C, H, W]
    return F.conv_transpose2d(bands, torch.from_numpy(kernel), stride=2, groups=c)


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution as a matrix product (torch's own takes a slow path for some shapes).

    x: [N, C, H, W]; weight: [O, C] or, one for each sample, [N, O, C] -> [N, O, H, W].
    """
    n, _, h, w = x.shape
    return torch.matmul(weight, x.flatten(2)).reshape(n, -1, h, w)


class StyledConv(nn.Module):
    """Modulate, 3x3 depthwise, 1x1, add constant noise and bias, leaky ReLU.

    The modulation is per channel, so it commutes with the depthwise convolution and may be put on
    the weight of the 1x1 convolution, which is cheaper than on large activations. There is no
    style-dependent demodulation in this network: distillation has fixed it into the weights.
    """

    def __init__(self, resolution: int, c_in: int, c_out: int) -> None:
        super().__init__()
        self.modulate_weights = resolution > 16
        self.modulation = nn.Linear(STYLE_DIM, c_in)
        self.depthwise = nn.Parameter(torch.empty(c_in, 1, 3, 3))
        self.pointwise = nn.Parameter(torch.empty(c_out, c_in))
        self.noise = nn.Parameter(torch.empty(1, resolution, resolution))
        self.bias = nn.Parameter(torch.empty(c_out, 1, 1))

    def forward(self, x: Tensor, scale: Tensor | None, row: Tensor | int = 0) -> Tensor:
        """x: [N, C, R, R], scale: [N, C] (None: already applied) -> [N, O, R, R].

        x may be some rows of that alone, from number `row` on.
        """
        weight: Tensor = self.pointwise  # [O, C]
        if scale is not None:
            if self.modulate_weights:
                weight = weight * scale[:, None, :]  # [N, O, C]
            else:
                x = x * scale[:, :, None, None]  # [N, C, R, R]
        x = F.conv2d(x, self.depthwise, padding=1, groups=x.shape[1])  # [N, C, R, R]
        noise = self.noise[:, row : row + x.shape[2]]  # [1, R, R]
        x = pointwise(x, weight) + noise + self.bias  # [N, O, R, R]
        return F.leaky_relu(x, SLOPE)


class Block(nn.Module):
    """From the features of one resolution to those of the next: inverse Haar, two convolutions."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        c_in, c_out = CHANNELS[resolution // 2], CHANNELS[resolution]
        self.up_modulation = nn.Linear(STYLE_DIM, c_in)
        self.conv1 = StyledConv(resolution, c_in // 4, c_out)
        self.conv2 = StyledConv(resolution, c_out, c_out)

    def forward(
        self, x: Tensor, style1: Tensor, style2: Tensor, row: Tensor | int = 0
    ) -> Tensor:
        """x: [N, C, R/2, R/2], styles: [N, 512] each -> [N, O, R, R]; `row`: the output's first."""
        scale = self.conv1.modulation(style1)  # [N, C/4]
        # Modulating before the Haar step does the work of both modulations at once.
        bands = torch.cat((scale, scale.repeat_interleave(3, dim=1)), dim=1)  # [N, C]
        bands = bands * self.up_modulation(style1)  # [N, C]
        x = inverse_haar(x * bands[:, :, None, None])  # [N, C/4, R, R]
        x = self.conv1(x, None, row)  # [N, O, R, R]
        return self.conv2(x, self.conv2.modulation(style2), row)


class Input(nn.Module):
    """The learned 4x4 constant and its full 3x3 convolution."""

    def __init__(self) -> None:
        super().__init__()
        c = CHANNELS[4]
        self.constant = nn.Parameter(torch.empty(c, 4, 4))
        self.modulation = nn.Linear(STYLE_DIM, c)
        self.weight = nn.Parameter(torch.empty(c, c, 3, 3))
        self.noise = nn.Parameter(torch.empty(1, 4, 4))
        self.bias = nn.Parameter(torch.empty(c, 1, 1))

    def forward(self, style: Tensor) -> Tensor:
        """style: [N, 512] -> [N, 512, 4, 4]."""
        x = self.constant * self.modulation(style)[:, :, None, None]  # [N, 512, 4, 4]
        x = F.conv2d(x, self.weight, padding=1) + self.noise + self.bias  # [N, 512, 4, 4]
        return F.leaky_relu(x, SLOPE)


class ToImage(nn.Module):
    """The wavelet output: 12 bands at 512x512, then the 1024x1024 image."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(STYLE_DIM, CHANNELS[512])
        self.weight = nn.Parameter(torch.empty(12, CHANNELS[512]))
        self.bias = nn.Parameter(torch.empty(12, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x: [N, 64, 512, 512], style: [N, 512] -> [N, 3, 1024, 1024]."""
        weight = self.weight * self.modulation(style)[:, None, :]  # [N, 12, 64]
        return inverse_haar(pointwise(x, weight) + self.bias)


class PreviewHead(nn.Module):
    """An image of 2 R x 2 R from the R x R features, cheaper than the blocks that it leaves out.

    Two hidden layers at R x R, then a pixel shuffle. The blocks left out decide most of the colour
    from their own styles, so the head reads a fixed mixture of all of those, too.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        resolution = size // 2
        c, h = CHANNELS[resolution], HEAD_CHANNELS[size]
        self.first_style = next_style(resolution)
        self.mixture = nn.Parameter(torch.empty(STYLES - self.first_style - 1))
        self.weight1 = nn.Parameter(torch.empty(h, c))
        self.bias1 = nn.Parameter(torch.empty(h, 1, 1))
        self.modulation1 = nn.Linear(STYLE_DIM, h)
        self.depthwise = nn.Parameter(torch.empty(h, 1, 3, 3))
        self.modulation2 = nn.Linear(STYLE_DIM, h)
        self.weight2 = nn.Parameter(torch.empty(h, h))
        self.bias2 = nn.Parameter(torch.empty(h, 1, 1))
        self.modulation3 = nn.Linear(STYLE_DIM, h)
        self.weight3 = nn.Parameter(torch.empty(12, h))
        self.shift = nn.Linear(STYLE_DIM, 12)

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        """x: [N, C, R, R], styles: [N, 16, 512] -> [N, 3, 2R, 2R]."""
        first = styles[:, self.first_style]  # [N, 512]
        # A sum of products, not a matrix product: that may not run in bfloat16 when the rest does.
        later = (styles[:, self.first_style + 1 :] * self.mixture[:, None]).sum(dim=1)  # [N, 512]
        gain = self.modulation1(first)[:, :, None]  # [N, H, 1]
        x = pointwise(x, self.weight1 * gain) + self.bias1 * gain[..., None]  # [N, H, R, R]
        x = F.leaky_relu(x, SLOPE)
        x = F.conv2d(x, self.depthwise, padding=1, groups=x.shape[1])  # [N, H, R, R]
        weight = self.weight2 * self.modulation2(later)[:, None, :]  # [N, H, H]
        x = F.leaky_relu(pointwise(x, weight) + self.bias2, SLOPE)  # [N, H, R, R]
        weight = self.weight3 * self.modulation3(later)[:, None, :]  # [N, 12, H]
        x = pointwise(x, weight) + self.shift(later)[:, :, None, None]  # [N, 12, R, R]
        return F.pixel_shuffle(x, 2)


class Generator(nn.Module):
    """Synthesis: 16 styles -> a face image of 1024x1024, or a preview of 64 to 512 pixels.

    Images are RGB, float32, about [-1, 1] (not clipped). Differentiable in the styles and in
    features that are put back in at a resolution with `from_features`. The attributes are those of
    `sfic.networks.prior.StylePrior`.
    """

    resolution = IMAGE_SIZE
    num_styles = STYLES
    style_dim = STYLE_DIM
    channels: ClassVar[Mapping[int, int]] = CHANNELS
    layer_of_style: tuple[Layer, ...] = (
        *("basic",) * 3,
        *("middle",) * 4,
        *("enhanced",) * 9,
    )

    def __init__(self) -> None:
        super().__init__()
        self.input = Input()
        self.blocks = nn.ModuleDict({str(r): Block(r) for r in RESOLUTIONS[1:]})
        self.to_image = ToImage()
        self.heads = nn.ModuleDict({str(s): PreviewHead(s) for s in PREVIEW_SIZES})

    @classmethod
    def load(cls, path: str | Path) -> Generator:
        """Read the weights from a safetensors file (any float type); the result is frozen."""
        network = cls()
        network.load_state_dict({k: v.float() for k, v in load_file(str(path)).items()})
        return network.requires_grad_(False).eval()

    def forward(self, styles: Tensor, upto: int = IMAGE_SIZE) -> Tensor:
        """styles: float32 [N, 16, 512] -> image: [N, 3, upto, upto]; upto 64, ..., 512 or 1024."""
        _check_styles(styles)
        return self._run(None, styles, 0, upto)

    def preview(self, styles: Tensor, size: int) -> Tensor:
        """styles: [N, 16, 512] -> image: [N, 3, size, size], size 64, 128, 256 or 512."""
        return self(styles, upto=size)

    def features(self, styles: Tensor, resolution: int) -> Tensor:
        """styles: [N, 16, 512] -> features after the block: [N, C, resolution, resolution]."""
        _check_styles(styles)
        assert resolution in RESOLUTIONS, resolution
        return self._advance(None, styles, 0, resolution)

    def advance(self, features: Tensor, styles: Tensor, resolution: int, upto: int) -> Tensor:
        """Features [N, C, resolution, resolution] -> features at the higher resolution `upto`."""
        _check_features(features, styles, resolution)
        assert upto in RESOLUTIONS and upto >= resolution, upto
        return self._advance(features, styles, resolution, upto)

    def from_features(self, features: Tensor, styles: Tensor, resolution: int) -> Tensor:
        """Go on from (changed) features [N, C, resolution, resolution] to the 1024x1024 image."""
        _check_features(features, styles, resolution)
        return self._run(features, styles, resolution, IMAGE_SIZE)

    def preview_from_features(
        self, features: Tensor, styles: Tensor, resolution: int, size: int
    ) -> Tensor:
        """As `from_features`, to a preview of `size` (at least twice the resolution)."""
        _check_features(features, styles, resolution)
        return self._run(features, styles, resolution, size)

    def head(self, features: Tensor, styles: Tensor, resolution: int) -> Tensor:
        """The preview of 2 x resolution that these features hold, for several sizes in one pass."""
        _check_features(features, styles, resolution)
        return self._run(features, styles, resolution, 2 * resolution)

    def _run(self, x: Tensor | None, styles: Tensor, start: int, size: int) -> Tensor:
        assert size in (*PREVIEW_SIZES, IMAGE_SIZE) and size >= 2 * start, (start, size)
        x = self._advance(x, styles, start, size // 2)  # [N, C, size/2, size/2]
        if size == IMAGE_SIZE:
            return self.to_image(x, styles[:, next_style(size // 2)])
        return self.heads[str(size)](x, styles)

    def _advance(self, x: Tensor | None, styles: Tensor, start: int, stop: int) -> Tensor:
        if x is None:
            x, start = self.input(styles[:, 0]), 4  # [N, 512, 4, 4]
        for resolution in RESOLUTIONS:
            if start < resolution <= stop:
                first = next_style(resolution // 2)
                x = self.blocks[str(resolution)](x, styles[:, first], styles[:, first + 1])
        return x


def _check_styles(styles: Tensor) -> None:
    assert styles.ndim == 3 and styles.shape[1:] == (STYLES, STYLE_DIM), styles.shape


def _check_features(features: Tensor, styles: Tensor, resolution: int) -> None:
    _check_styles(styles)
    expected = (styles.shape[0], CHANNELS[resolution], resolution, resolution)
    assert features.shape == expected, (features.shape, expected)
