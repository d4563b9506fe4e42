"""The learned codec in torch, for training: analysis, synthesis, and the rate model of each layer.

What belongs here: the networks that turn an aligned face into symbols and symbols into styles and a
feature correction. The generator is `generator.py`; losses and loops live in `training/`; serving
runs the exported ONNX graphs.

    crop --> trunk --> z_basic    --> coefficients of all 16 styles      --+
                  |--> z_middle   --> correction of styles 3-6           --+--> styles --> generator
                  |--> z_enhanced --> correction of styles 7-15          --+        |  to 32x32
    crop at 64 px, minus what the styles alone give at 64 px                        |
                  +--> z_spatial (enhanced, 16x16) --> correction of the 32x32 features --> picture

Every z is scaled by a learned gain that depends on the rate, rounded to integer symbols, and scaled
back. Numbers here and in shape comments are those of the built-in generator; another one's follow
from its `CodecShape`. Sizes are ours (the paper's were not at hand).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfic.errors import InvalidInput
from sfic.layers import LAYERS, Layer
from sfic.networks.efficientnet import EfficientNetLite0
from sfic.networks.prior import StylePrior, output_sizes

CORRECTED = 32
_BUILT_IN_LAYERS: tuple[Layer, ...] = (
    *("basic",) * 3,
    *("middle",) * 4,
    *("enhanced",) * 9,
)


@dataclass(frozen=True)
class CodecShape:
    """Sizes of the codec; stored with the weights. Defaults: the built-in generator's codec.

    From the generator (see `for_generator`): `layer_of_style`, the layer that corrects each style;
    `style_dim`; side and channels of the features that the spatial code corrects; `sizes`, the
    sides of the pictures it makes. Free: the principal components kept of a style vector, the
    number of symbols of each layer, channels of the spatial code, width of the trunk, size of the
    embedding.
    """

    layer_of_style: tuple[Layer, ...] = _BUILT_IN_LAYERS
    style_dim: int = 512
    feature_size: int = CORRECTED
    feature_channels: int = 512
    sizes: tuple[int, ...] = (128, 256, 512, 1024)
    components: int = 256
    basic: int = 192
    middle: int = 192
    enhanced: int = 128
    spatial_channels: int = 8
    hidden: int = 768
    embedding: int = 128

    def __post_init__(self) -> None:
        """Raise InvalidInput when the styles are not basic, then middle, then enhanced."""
        ranks = [LAYERS.index(layer) for layer in self.layer_of_style]
        if ranks != sorted(ranks) or set(ranks) != set(range(len(LAYERS))):
            raise InvalidInput(
                "a generator needs basic, middle and enhanced styles in this order "
                f"(64x64 pixels or more), not {', '.join(self.layer_of_style)}"
            )
        if not 0 < self.components <= self.style_dim:
            raise InvalidInput(f"components {self.components} is not in 1..{self.style_dim}")

    @classmethod
    def for_generator(cls, generator: StylePrior, **free: int) -> CodecShape:
        """The shape for a generator; `free`: the sizes that do not follow from it."""
        return cls(
            layer_of_style=tuple(generator.layer_of_style),
            style_dim=generator.style_dim,
            feature_size=CORRECTED,
            feature_channels=generator.channels[CORRECTED],
            sizes=output_sizes(generator.resolution),
            **free,
        )

    @property
    def styles(self) -> int:
        """Number of styles."""
        return len(self.layer_of_style)

    @property
    def spatial_size(self) -> int:
        """Side of the spatial code: half of the features'."""
        return self.feature_size // 2

    @property
    def preview(self) -> int:
        """Side of the style-only preview that the spatial code is made from."""
        return 2 * self.feature_size

    def styles_of(self, layer: Layer) -> slice:
        """Indices of the styles that a layer corrects."""
        first = self.layer_of_style.index(layer)
        return slice(first, first + self.layer_of_style.count(layer))

    def pads(self, layer: Layer) -> tuple[int, int, int, int]:
        """Padding that puts a layer's coefficients [N, n, K] in place among [N, styles, K]."""
        own = self.styles_of(layer)
        return (0, 0, own.start, self.styles - own.stop)


class Whitening(nn.Module):
    """Between style vectors and whitened coefficients.

    `p = leaky_relu(w / sqrt2, 5)` undoes the mapping network's last activation; a principal
    component analysis of p whitens it, so that the likelihood of a latent is a plain norm.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, components: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.zeros(components, dim))
        self.register_buffer("scale", torch.ones(components))

    @torch.no_grad()
    def fit(self, w: Tensor) -> None:
        """w: style vectors of the mapping network, float32 [N, 512]."""
        p = F.leaky_relu(w / math.sqrt(2.0), 5.0).double()  # [N, 512]
        mean = p.mean(dim=0)
        values, vectors = torch.linalg.eigh((p - mean).T @ (p - mean) / len(p))
        order = values.argsort(descending=True)[: len(self.basis)]
        self.mean.copy_(mean)
        self.basis.copy_(vectors[:, order].T)
        self.scale.copy_(values[order].clamp_min(1e-8).sqrt())

    def to_coefficients(self, w: Tensor) -> Tensor:
        """w: [..., 512] -> whitened coefficients [..., K]."""
        p = F.leaky_relu(w / math.sqrt(2.0), 5.0)
        return (p - self.mean) @ self.basis.T / self.scale

    def to_styles(self, coefficients: Tensor) -> Tensor:
        """coefficients: [..., K] -> styles [..., 512]."""
        p = self.mean + (coefficients * self.scale) @ self.basis
        return F.leaky_relu(p, 0.2) * math.sqrt(2.0)


class Trunk(nn.Module):
    """Image features of a crop as one vector: EfficientNet-lite0 maps on fixed grids."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        widths = EfficientNetLite0.stage_channels[-3:]  # strides 8, 16, 32
        self.grids = (8, 8, 4)
        squeezed = (24, 48, 96)
        self.squeeze = nn.ModuleList(
            nn.Conv2d(c, s, 1) for c, s in zip(widths, squeezed, strict=True)
        )
        flat = sum(s * g * g for s, g in zip(squeezed, self.grids, strict=True)) + sum(widths)
        self.norm = nn.LayerNorm(flat)
        self.project = nn.Linear(flat, hidden)
        self.mix = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU())

    def forward(self, crop: Tensor) -> Tensor:
        """crop: [N, 3, S, S] in [-1, 1] -> [N, hidden]."""
        maps = self.backbone.features(crop)[-3:]
        parts = []
        for feature, squeeze, grid in zip(maps, self.squeeze, self.grids, strict=True):
            parts.append(feature.mean(dim=(2, 3)))  # [N, C]
            small = F.avg_pool2d(feature, int(feature.shape[2]) // grid)  # [N, C, g, g]
            parts.append(squeeze(small).flatten(1))  # [N, s g g]
        h = F.gelu(self.project(self.norm(torch.cat(parts, dim=1))))  # [N, hidden]
        return h + self.mix(h)


class SpatialAnalysis(nn.Module):
    """What the styles could not say: from crop and style-only preview at 64 px to a 16x16 code."""

    def __init__(self, channels: int, width: int = 48) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(9, width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, channels, 3, padding=1),
        )

    def forward(self, crop64: Tensor, preview64: Tensor) -> Tensor:
        """crop64, preview64: [N, 3, 64, 64] in [-1, 1] -> [N, C, 16, 16]."""
        return self.net(torch.cat((crop64, preview64, crop64 - preview64), dim=1))


class SpatialSynthesis(nn.Module):
    """From the 16x16 code, and the generator's own 32x32 features, to a gated correction of them.

    A zero code gives a zero correction: without it the picture is the style-only one.
    """

    def __init__(self, channels: int, features: int, width: int = 96) -> None:
        super().__init__()
        self.code = nn.Conv2d(channels, 4 * width, 3, padding=1, bias=False)
        self.look = nn.Linear(features, width)
        self.mix1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.mix2 = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Linear(width, features, bias=False)
        nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, code: Tensor, features: Tensor) -> Tensor:
        """code: [N, c, 16, 16], features: [N, C, 32, 32] -> correction [N, C, 32, 32]."""
        n, c, h, w = features.shape
        up = F.pixel_shuffle(self.code(code), 2)  # [N, width, 32, 32]
        look = torch.matmul(self.look.weight, features.flatten(2)).reshape(n, -1, h, w)
        look = look + self.look.bias[:, None, None]
        x = F.gelu(self.mix1(torch.cat((up, F.gelu(look)), dim=1)))  # [N, width, 32, 32]
        x = self.mix2(x) * torch.tanh(up) + up  # gated: nothing where the code says nothing
        return torch.matmul(self.out.weight, x.flatten(2)).reshape(n, c, h, w)


class StyleSynthesis(nn.Module):
    """From decoded latents to whitened coefficients: a linear map plus one hidden layer."""

    def __init__(self, inputs: int, styles: int, components: int, hidden: int) -> None:
        super().__init__()
        self.shape = (styles, components)
        self.linear = nn.Linear(inputs, styles * components)
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, styles * components)
        nn.init.normal_(self.linear.weight, std=0.5 / math.sqrt(inputs))
        nn.init.normal_(self.out.weight, std=0.1 / math.sqrt(hidden))

    def forward(self, z: Tensor) -> Tensor:
        """z: [N, inputs] -> [N, styles, components]."""
        return (self.linear(z) + self.out(F.gelu(self.hidden(z)))).unflatten(1, self.shape)


class Gain(nn.Module):
    """Quantiser steps that depend on the rate: symbol = round(z * gain(t)), t in 0..1."""

    def __init__(self, shape: Sequence[int], low: float, high: float) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.full(tuple(shape), math.log(low)))
        self.high = nn.Parameter(torch.full(tuple(shape), math.log(high)))

    def forward(self, t: Tensor) -> Tensor:
        """t: [N] -> gain [N, *shape]."""
        t = t.reshape(-1, *([1] * self.low.ndim))
        return torch.exp(self.low + (self.high - self.low) * t)


def quantise(y: Tensor, noise: bool) -> Tensor:
    """Additive uniform noise, or rounding with a straight-through gradient."""
    if noise:
        return y + torch.rand_like(y) - 0.5
    return y + (y.round() - y).detach()


def symbol_bits(y: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of symbols under a logistic law integrated over the unit interval, shape of `y`."""
    scale = torch.exp(log_scale.clamp(-4.0, 4.0))
    centred = (y - mean).abs()
    upper = torch.sigmoid((0.5 - centred) / scale)
    lower = torch.sigmoid((-0.5 - centred) / scale)
    return -torch.log2((upper - lower).clamp_min(2e-7))


class RateModel(nn.Module):
    """Mean and log scale of a layer's symbols from the rate and the lower layers' latents."""

    def __init__(self, outputs: int, lower: int, hidden: int = 256) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(outputs))
        self.slope = nn.Parameter(torch.zeros(outputs))
        self.net: nn.Sequential | None = None
        if lower:
            last = nn.Linear(hidden, 2 * outputs)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.net = nn.Sequential(nn.Linear(lower + 1, hidden), nn.GELU(), last)

    def forward(self, t: Tensor, lower: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
        """t: [N], lower: [N, L] or None, gain: [N, outputs] -> mean, log scale [N, outputs]."""
        log_scale = self.base + self.slope * t[:, None]  # [N, outputs]
        if self.net is None or lower is None:
            return torch.zeros_like(log_scale), log_scale
        mean, delta = self.net(torch.cat((lower, t[:, None]), dim=1)).chunk(2, dim=1)
        return mean * gain, log_scale + delta


class Heads(nn.Module):
    """Machine tasks from the decoded basic latents (no pixels, no generator)."""

    ATTRIBUTES = ("age", "gender", "smile")

    def __init__(self, inputs: int, embedding: int, hidden: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, embedding)
        )
        self.skip = nn.Linear(inputs, embedding)
        self.tasks = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU())
        self.attributes = nn.Linear(hidden, 2 * len(self.ATTRIBUTES))
        self.pose = nn.Linear(hidden, 3)
        self.landmarks = nn.Linear(hidden, 136)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """z: [N, basic] -> embedding [N, D] unit, and the raw outputs of each task."""
        h = self.tasks(z)
        return {
            "embedding": F.normalize(self.embedding(z) + self.skip(z), dim=1),
            "attributes": self.attributes(h),  # [N, 6]: values, then log variances or logits
            "pose": self.pose(h),  # [N, 3] in units of 30 degrees
            "landmarks": self.landmarks(h).unflatten(1, (68, 2)),  # [N, 68, 2] offsets, 0.1 crops
        }


@dataclass
class Coded:
    """What one pass through the codec gives, before the generator."""

    latents: dict[str, Tensor]  # decoded z of each layer
    bits: dict[str, Tensor]  # [N] bits of each layer; "spatial" is part of enhanced
    coefficients: dict[str, Tensor]  # [N, 16, K] after each layer


class FaceCodec(nn.Module):
    """All learned parts but the generator. `compress` paths of the product mirror `code`."""

    def __init__(self, shape: CodecShape | None = None) -> None:
        super().__init__()
        self.shape = s = shape or CodecShape()
        self.whitening = Whitening(s.components, s.style_dim)
        self.trunk = Trunk(s.hidden)
        self.to_latents = nn.Linear(s.hidden, s.basic + s.middle + s.enhanced)
        sizes = {"basic": s.basic, "middle": s.middle, "enhanced": s.enhanced}
        self.gains = nn.ModuleDict({name: Gain((n,), 1.0, 3.0) for name, n in sizes.items()})
        self.gains["spatial"] = Gain((s.spatial_channels,), 1.0, 6.0)
        self.rates = nn.ModuleDict(
            {
                "basic": RateModel(s.basic, 0),
                "middle": RateModel(s.middle, s.basic),
                "enhanced": RateModel(s.enhanced, s.basic + s.middle),
            }
        )
        cells = s.spatial_channels * s.spatial_size**2
        self.spatial_base = nn.Parameter(torch.full((cells,), -1.5))
        self.spatial_slope = nn.Parameter(torch.zeros(cells))
        self.from_basic = StyleSynthesis(s.basic, s.styles, s.components, 1024)
        middles, others = (s.layer_of_style.count(name) for name in LAYERS[1:])
        self.from_middle = StyleSynthesis(s.basic + s.middle, middles, s.components, 512)
        self.from_enhanced = StyleSynthesis(
            s.basic + s.middle + s.enhanced, others, s.components, 512
        )
        self.spatial_analysis = SpatialAnalysis(s.spatial_channels)
        self.spatial_synthesis = SpatialSynthesis(s.spatial_channels, s.feature_channels)
        self.heads = Heads(s.basic, s.embedding)

    def law_parameters(self) -> list[nn.Parameter]:
        """Gains and factorised scales: logarithms that have far to go, so they learn faster."""
        laws = [self.spatial_base, self.spatial_slope]
        for rate in self.rates.values():
            assert isinstance(rate, RateModel)
            laws += [rate.base, rate.slope]
        return laws + list(self.gains.parameters())

    def analyse(self, crop: Tensor) -> dict[str, Tensor]:
        """crop: [N, 3, S, S] in [-1, 1] -> z of the three style layers."""
        s = self.shape
        z = self.to_latents(self.trunk(crop))
        parts = z.split((s.basic, s.middle, s.enhanced), dim=1)
        return dict(zip(LAYERS, parts, strict=True))

    def through(self, name: str, z: Tensor, t: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        """Quantise z of one part at rate t -> (decoded z, symbols or their noisy stand-ins)."""
        gain = self.gains[name](t)
        if name == "spatial":
            gain = gain[:, :, None, None]
        y = quantise(z * gain, noise)
        return y / gain, y

    def code_styles(self, z: dict[str, Tensor], t: Tensor, noise: bool) -> Coded:
        """Quantise the style layers and synthesise coefficients; t: [N] rate in 0..1."""
        latents: dict[str, Tensor] = {}
        bits: dict[str, Tensor] = {}
        lower: Tensor | None = None
        for name in LAYERS:
            latents[name], y = self.through(name, z[name], t, noise)
            mean, log_scale = self.rates[name](t, lower, self.gains[name](t))
            bits[name] = symbol_bits(y, mean, log_scale).sum(dim=1)
            part = latents[name]
            lower = part if lower is None else torch.cat((lower, part), dim=1)
        return Coded(latents, bits, self.coefficients(latents))

    def coefficients(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decoded latents -> whitened coefficients [N, 16, K] after each layer present."""
        result = {"basic": self.from_basic(latents["basic"])}
        if "middle" in latents:
            lower = torch.cat((latents["basic"], latents["middle"]), dim=1)
            delta = self.from_middle(lower)
            result["middle"] = result["basic"] + F.pad(delta, self.shape.pads("middle"))
        if "enhanced" in latents:
            delta = self.from_enhanced(torch.cat((lower, latents["enhanced"]), dim=1))
            result["enhanced"] = result["middle"] + F.pad(delta, self.shape.pads("enhanced"))
        return result

    def code_spatial(
        self, crop64: Tensor, preview64: Tensor, t: Tensor, noise: bool
    ) -> tuple[Tensor, Tensor]:
        """-> (decoded spatial code [N, C, 16, 16], its bits [N])."""
        z = self.spatial_analysis(crop64, preview64)
        code, y = self.through("spatial", z, t, noise)
        y = y.flatten(1)  # [N, C 16 16]
        log_scale = self.spatial_base + self.spatial_slope * t[:, None]
        return code, symbol_bits(y, torch.zeros_like(y), log_scale).sum(dim=1)
