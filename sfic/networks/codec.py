"""The learned codec in torch, for training: analysis, synthesis, and the rate model of each layer.

What belongs here: the networks that turn an aligned face into symbols, and symbols into styles, a
feature correction and a small picture. The generator is `generator.py`; losses and loops live in
`training/`; serving runs the exported ONNX graphs.

    crop, 128 px --> trunk --------------> z_basic, most  --+--> coefficients of all 16 styles --+
    crop, 224 px --> identity network ---> z_basic, rest  --+                                    |
                     trunk --------------> z_middle   --> correction of styles 3-6   ------------+
                     trunk --------------> z_enhanced --> correction of styles 7-15  ------------+
                                                                              styles, generator to
    crop, 128 px, beside what the styles alone give at 64 px  <---------------  32x32 features
       +--> z_spatial (16x16) --> correction of the 32x32 features, and the picture at 128 px,
            |                     which the finished picture has to agree with
            +--> its fine channels (enhanced): what the coarse ones (middle), once quantised, leave
                 of the picture

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
from sfic.generator import TEXTURE
from sfic.layers import LAYERS, Layer
from sfic.networks.efficientnet import EfficientNetLite0
from sfic.networks.prior import StylePrior, output_sizes

CORRECTED = 32
DEAD_ZONE = 0.1  # of fine channels, in steps: a symbol as rare as theirs is dear for what it brings
KNOTS = 5  # rates between which gains and laws are linear
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
    sides of the pictures it makes; `picture`, the side of the one that the spatial code makes.
    Free: the principal components kept of a style vector, the number of symbols of each layer, how
    many of the basic ones (the last) come from the identity network's embedding of
    `identity_input` numbers (0: there is none), coarse and fine channels of the spatial code, width
    of the trunk, size of the embedding.
    """

    layer_of_style: tuple[Layer, ...] = _BUILT_IN_LAYERS
    style_dim: int = 512
    feature_size: int = CORRECTED
    feature_channels: int = 512
    sizes: tuple[int, ...] = (128, 256, 512, 1024)
    picture: int = 128
    components: int = 256
    basic: int = 256
    identity: int = 64
    identity_input: int = 1024
    middle: int = 128
    enhanced: int = 64
    coarse_channels: int = 16
    fine_channels: int = 32
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
        if not 0 <= self.identity < self.basic:
            raise InvalidInput(f"identity {self.identity} is not in 0..{self.basic - 1}")
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
            picture=min(4 * CORRECTED, generator.resolution),
            **free,
        )

    @property
    def styles(self) -> int:
        """Number of styles."""
        return len(self.layer_of_style)

    @property
    def spatial_channels(self) -> int:
        """Channels of the spatial code: the coarse ones, then the fine ones."""
        return self.coarse_channels + self.fine_channels

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


class Residual(nn.Module):
    """Two 3x3 convolutions beside a short cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class SpatialAnalysis(nn.Module):
    """What the styles could not say: from crop and style-only preview to a 16x16 code."""

    def __init__(self, channels: int, fold: int) -> None:
        super().__init__()
        self.fold = fold  # pixels of the crop to one of the preview, along a side
        self.net = nn.Sequential(
            nn.Conv2d(3 * fold**2 + 6, 48, 3, padding=1),
            nn.GELU(),
            Residual(48),
            nn.Conv2d(48, 96, 4, stride=2, padding=1),
            nn.GELU(),
            Residual(96),
            nn.Conv2d(96, 128, 4, stride=2, padding=1),
            nn.GELU(),
            Residual(128),
            nn.Conv2d(128, channels, 1),
            # Of unit variance, so that what a low rate cannot afford is not lost to the high ones:
            # only the gain of a rate makes a channel small.
            nn.BatchNorm2d(channels, affine=False, momentum=0.02),
        )

    def forward(self, crop: Tensor, preview: Tensor) -> Tensor:
        """crop: [N, 3, 128, 128], preview: [N, 3, 64, 64], both in [-1, 1] -> [N, C, 16, 16]."""
        small = F.avg_pool2d(crop, self.fold)
        folded = F.pixel_unshuffle(crop, self.fold)
        return self.net(torch.cat((folded, preview, small - preview), dim=1))


class SpatialRefinement(nn.Module):
    """What the coarse code, once quantised, leaves of the picture: the fine code.

    A linear transform of each block of the difference, as block codecs have, and a small network
    beside it that knows what is around: what the post-filter will put back need not be said.
    """

    def __init__(self, channels: int, block: int, fold: int) -> None:
        super().__init__()
        self.fold = fold
        self.linear = nn.Conv2d(3, channels, block, stride=block)
        self.norm = nn.BatchNorm2d(channels, affine=False, momentum=0.02)  # see SpatialAnalysis
        last = nn.Conv2d(96, channels, 1)
        self.net = nn.Sequential(
            nn.Conv2d(6 * fold**2, 64, 4, stride=2, padding=1),
            nn.GELU(),
            Residual(64),
            nn.Conv2d(64, 96, 4, stride=2, padding=1),
            nn.GELU(),
            Residual(96),
            last,
        )
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, crop: Tensor, picture: Tensor) -> Tensor:
        """crop, and what the coarse code says: [N, 3, 128, 128] in [-1, 1] -> [N, C, 16, 16]."""
        rest = crop - picture
        both = F.pixel_unshuffle(torch.cat((rest, picture), dim=1), self.fold)
        return self.norm(self.linear(rest)) + self.net(both)


class SpatialSynthesis(nn.Module):
    """From the 16x16 code, and what the styles alone give, to a feature correction and a picture.

    The picture, at 128 px, is what the code says of the face; the correction of the generator's
    32x32 features makes the generator agree with it, so that the texture that it adds above 128 px
    falls into place. Fine channels come last; where they are 0, the coarse ones speak alone.

    The encoder works with the draft of the picture, before the last network (a post-filter: it
    takes away the edges of blocks and puts back what quantising smoothed away), so training that
    network leaves the symbols as they are.
    """

    def __init__(self, coarse: int, fine: int, features: int, fold: int) -> None:
        super().__init__()
        self.fold = fold
        self.coarse = coarse
        self.code = nn.Sequential(nn.Conv2d(coarse, 128, 3, padding=1), nn.GELU(), Residual(128))
        self.fine = nn.Conv2d(fine, 128, 3, padding=1, bias=False)
        self.up32 = nn.Conv2d(128, 4 * 96, 1)
        self.look = nn.Linear(features, 64)
        self.mix32 = nn.Sequential(
            nn.Conv2d(96 + 64, 96, 3, padding=1), nn.GELU(), Residual(96), Residual(96)
        )
        self.correct = nn.Linear(96, features, bias=False)
        self.up64 = nn.Conv2d(96, 4 * 64, 1)
        self.mix64 = nn.Sequential(nn.Conv2d(64 + 3, 64, 3, padding=1), nn.GELU(), Residual(64))
        self.out = nn.Conv2d(64, 3 * fold**2, 3, padding=1)
        self.linear = nn.Conv2d(fine, 3 * (4 * fold) ** 2, 1, bias=False)
        last = nn.Conv2d(96, 3 * fold**2, 3, padding=1)
        self.filter = nn.Sequential(
            nn.Conv2d(64 + 3 * fold**2, 96, 3, padding=1),
            nn.GELU(),
            *(Residual(96) for _ in range(3)),
            last,
        )
        for layer in (self.correct, self.linear):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.fine.weight)
        for out in (self.out, last):
            nn.init.zeros_(out.weight)
            assert out.bias is not None
            nn.init.zeros_(out.bias)

    def mixed(self, code: Tensor, features: Tensor) -> Tensor:
        """What code and features say together, [N, 96, 32, 32]."""
        n, _, h, w = features.shape
        look = torch.matmul(self.look.weight, features.flatten(2)).reshape(n, -1, h, w)
        look = look + self.look.bias[:, None, None]
        grid = self.code(code[:, : self.coarse]) + self.fine(code[:, self.coarse :])
        up = F.pixel_shuffle(self.up32(grid), 2)  # [N, 96, 32, 32]
        return self.mix32(torch.cat((up, F.gelu(look)), dim=1))

    def correction(self, mixed: Tensor) -> Tensor:
        """Correction of the features [N, C, 32, 32]."""
        n, _, h, w = mixed.shape
        return torch.matmul(self.correct.weight, mixed.flatten(2)).reshape(n, -1, h, w)

    def draft(self, mixed: Tensor, code: Tensor, preview: Tensor) -> tuple[Tensor, Tensor]:
        """The picture before the post-filter [N, 3, 128, 128]; what it is of [N, 64, 64, 64]."""
        up = F.pixel_shuffle(self.up64(mixed), 2)  # [N, 64, 64, 64]
        x = self.mix64(torch.cat((up, preview), dim=1))  # [N, 64, 64, 64]
        rest = F.pixel_shuffle(self.out(x), self.fold)
        rest = rest + F.pixel_shuffle(self.linear(code[:, self.coarse :]), 4 * self.fold)
        size = [self.fold * side for side in preview.shape[2:]]
        shown = F.interpolate(preview, size=size, mode="bilinear", align_corners=False)
        return shown + rest, x

    def picture(self, mixed: Tensor, code: Tensor, preview: Tensor) -> Tensor:
        """The picture [N, 3, 128, 128]."""
        draft, x = self.draft(mixed, code, preview)
        rest = self.filter(torch.cat((F.pixel_unshuffle(draft, self.fold), x), dim=1))
        return draft + F.pixel_shuffle(rest, self.fold)

    def forward(self, code: Tensor, features: Tensor, preview: Tensor) -> tuple[Tensor, Tensor]:
        """code [N, c, 16, 16], features [N, C, 32, 32] and preview [N, 3, 64, 64] of the styles.

        -> correction of the features [N, C, 32, 32], picture [N, 3, 128, 128].
        """
        mixed = self.mixed(code, features)
        return self.correction(mixed), self.picture(mixed, code, preview)


def agree(image: Tensor, picture: Tensor) -> Tensor:
    """The generator's image [N, 3, S, S], changed so that it shrinks to `picture` [N, 3, s, s].

    What the code says replaces what the generator guessed; above s, part of the generator's texture
    stays. `sfic.generator.agree` does the same with OpenCV, and says why.
    """
    size, small = image.shape[2], picture.shape[2]
    if size == small:
        return picture
    guess = F.avg_pool2d(image, size // small)
    rest = picture - guess
    factor = min(4, size // small)
    back = F.avg_pool2d(_enlarged(rest, factor * small), factor)
    low = picture + TEXTURE * (rest - guess - back)
    return TEXTURE * image + _enlarged(low, size)


def _enlarged(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False)


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


def at_rate(knots: Tensor, t: Tensor) -> Tensor:
    """Values at rates t [N] in 0..1, linear between those at equally spaced knots [K, *shape].

    More than two knots: coarse channels have said all that they can at a middle rate, where the
    fine ones have hardly begun.
    """
    last = len(knots) - 1
    share = (1 - (last * t[:, None] - torch.arange(last + 1)).abs()).clamp_min(0)  # [N, K]
    # Not a matrix product, which autocast would round.
    return sum(
        (share[:, k].reshape(-1, *([1] * (knots.ndim - 1))) * knots[k] for k in range(last + 1)),
        torch.zeros(()),
    )


class Gain(nn.Module):
    """Quantiser steps that depend on the rate: symbol = round(z * gain(t)), t in 0..1."""

    def __init__(self, shape: Sequence[int], low: float, high: float) -> None:
        super().__init__()
        knots = torch.linspace(math.log(low), math.log(high), KNOTS)
        self.knots = nn.Parameter(
            knots.reshape(-1, *([1] * len(shape))).expand(-1, *shape).clone()
        )  # [K, *shape], logarithms

    def forward(self, t: Tensor) -> Tensor:
        """t: [N] -> gain [N, *shape]."""
        return torch.exp(at_rate(self.knots, t))


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
        self.attributes = nn.Linear(hidden, len(self.ATTRIBUTES))
        self.landmarks = nn.Linear(hidden, 136)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """z: [N, basic] -> embedding [N, D] unit, and the raw outputs of each task."""
        h = self.tasks(z)
        return {
            "embedding": F.normalize(self.embedding(z) + self.skip(z), dim=1),
            "attributes": self.attributes(h),  # [N, 3]: years / 50, then logits
            "landmarks": 0.5 + 0.1 * self.landmarks(h).unflatten(1, (68, 2)),  # [N, 68, 2]
        }


@dataclass
class Coded:
    """What one pass through the codec gives, before the generator."""

    latents: dict[str, Tensor]  # decoded z of each layer
    bits: dict[str, Tensor]  # [N] bits of each vector, and of "spatial": both spatial codes
    coefficients: dict[str, Tensor]  # [N, 16, K] after each layer


class FaceCodec(nn.Module):
    """All learned parts but the generator. `compress` paths of the product mirror `code`."""

    def __init__(self, shape: CodecShape | None = None) -> None:
        super().__init__()
        self.shape = s = shape or CodecShape()
        self.whitening = Whitening(s.components, s.style_dim)
        self.trunk = Trunk(s.hidden)
        self.to_latents = nn.Linear(s.hidden, s.basic - s.identity + s.middle + s.enhanced)
        self.to_identity = nn.Linear(s.identity_input, s.identity) if s.identity else None
        sizes = {"basic": s.basic, "middle": s.middle, "enhanced": s.enhanced}
        self.gains = nn.ModuleDict({name: Gain((n,), 1.0, 3.0) for name, n in sizes.items()})
        self.gains["spatial"] = Gain((s.spatial_channels,), 0.3, 4.0)
        self.rates = nn.ModuleDict(
            {
                "basic": RateModel(s.basic, 0),
                "middle": RateModel(s.middle, s.basic),
                "enhanced": RateModel(s.enhanced, s.basic + s.middle),
            }
        )
        cells = s.spatial_channels * s.spatial_size**2
        laws = torch.linspace(math.log(0.3 * 0.55), math.log(4.0 * 0.55), KNOTS)
        self.spatial_laws = nn.Parameter(laws[:, None].expand(-1, cells).clone())  # log scales
        self.from_basic = StyleSynthesis(s.basic, s.styles, s.components, 1024)
        middles, others = (s.layer_of_style.count(name) for name in LAYERS[1:])
        self.from_middle = StyleSynthesis(s.basic + s.middle, middles, s.components, 512)
        self.from_enhanced = StyleSynthesis(
            s.basic + s.middle + s.enhanced, others, s.components, 512
        )
        fold = s.picture // s.preview
        self.spatial_analysis = SpatialAnalysis(s.coarse_channels, fold)
        self.spatial_refinement = SpatialRefinement(s.fine_channels, 4 * fold, fold)
        self.spatial_synthesis = SpatialSynthesis(
            s.coarse_channels, s.fine_channels, s.feature_channels, fold
        )
        self.heads = Heads(s.basic, s.embedding)

    def law_parameters(self) -> list[nn.Parameter]:
        """Gains and factorised scales: logarithms that have far to go, so they learn faster."""
        laws = [self.spatial_laws]
        for rate in self.rates.values():
            assert isinstance(rate, RateModel)
            laws += [rate.base, rate.slope]
        return laws + list(self.gains.parameters())

    @torch.no_grad()
    def start_identity(self, embedding: Tensor) -> None:
        """Begin with the whitened principal components of embeddings [M, 1024]."""
        assert self.to_identity is not None
        x = embedding.double()
        mean = x.mean(dim=0)
        _, values, vt = torch.linalg.svd(x - mean, full_matrices=False)
        count = self.shape.identity
        scale = values[:count] / math.sqrt(len(x))
        weight = vt[:count] / scale[:, None]
        self.to_identity.weight.copy_(weight.float())
        self.to_identity.bias.copy_(-(weight @ mean).float())

    def analyse(self, crop: Tensor, embedding: Tensor | None) -> dict[str, Tensor]:
        """z of the three style layers.

        crop: [N, 3, 128, 128] in [-1, 1]; embedding: [N, 1024], the identity network's, unit; None
        for a codec without one.
        """
        s = self.shape
        z = self.to_latents(self.trunk(crop))
        basic, middle, enhanced = z.split((s.basic - s.identity, s.middle, s.enhanced), dim=1)
        if self.to_identity is not None:
            assert embedding is not None
            basic = torch.cat((basic, self.to_identity(embedding)), dim=1)
        return {"basic": basic, "middle": middle, "enhanced": enhanced}

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

    def spatial_latents(
        self, crop: Tensor, features: Tensor, preview: Tensor, gain: Tensor, noise: bool = False
    ) -> Tensor:
        """z of the spatial code, [N, C, 16, 16]; its fine channels depend on the quantiser's gain.

        crop [N, 3, 128, 128] and preview [N, 3, 64, 64] in [-1, 1]; features [N, 512, 32, 32] and
        preview are those of the styles; gain: [N, C, 1, 1] or [C, 1, 1].
        """
        synthesis, count = self.spatial_synthesis, self.shape.fine_channels
        coarse = self.spatial_analysis(crop, preview)
        with torch.no_grad():
            part = gain[..., : self.shape.coarse_channels, :, :]
            known = quantise(coarse * part, noise) / part
            code = F.pad(known, (0, 0, 0, 0, 0, count))  # fine channels: 0
            shown, _ = synthesis.draft(synthesis.mixed(code, features), code, preview)
        fine = self.spatial_refinement(crop, shown)
        edge = DEAD_ZONE / gain[..., self.shape.coarse_channels :, :, :]
        return torch.cat((coarse, fine - fine.clamp(-edge, edge)), dim=1)

    def code_spatial(
        self, crop: Tensor, features: Tensor, preview: Tensor, t: Tensor, noise: bool
    ) -> tuple[Tensor, Tensor]:
        """See `spatial_latents` -> (decoded code [N, C, 16, 16], its bits [N])."""
        gain = self.gains["spatial"](t)[:, :, None, None]
        z = self.spatial_latents(crop, features, preview, gain, noise)
        code, y = self.through("spatial", z, t, noise)
        y = y.flatten(1)  # [N, C 16 16]
        log_scale = at_rate(self.spatial_laws, t)
        bits = symbol_bits(y.detach(), torch.zeros_like(y), log_scale).sum(dim=1)
        if torch.is_grad_enabled():
            # What it costs, with the gradient of what it would cost with noise: a symbol that
            # rounds to 0 does not say that it might not.
            y = quantise((z * gain).flatten(1), noise=True)
            soft = symbol_bits(y, torch.zeros_like(y), log_scale.detach()).sum(dim=1)
            bits = bits + soft - soft.detach()
        return code, bits
