"""Teachers: frozen, differentiable networks whose outputs train ours.

Belongs here: `Faceres` (identity, age, gender) and the face-api expression and age/gender networks,
in torch, running on FFHQ-aligned pictures without a detector. Not here: judges
(`sfic.evaluation.judges`), which no loss may touch, and the perceptual backbone
(`sfic.networks.efficientnet`).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from training.faceapi import AgeGenderNet, DenseFaceNet
from training.tfjs import GraphModel, same_padding

# The box that the short-range detector finds in FFHQ-aligned crops is centred at (.50, .62) with
# side .595 (mean over 120 pictures of five sets; standard deviation .05 across, .02 down, .04 in
# size). 1.3 times that, kept inside the picture: left, top, right, bottom as fractions.
Box = tuple[float, float, float, float]
FACE_BOX: Box = (0.12, 0.24, 0.88, 1.0)
# Fewer pixels want a tighter box, so that a face keeps the scale that the network knows. AUC over
# the LFW dev pairs, box by size: 224 .997, 160 .996 (.996 with the tight one), 128 .985 (.993), 112
# .952 (.986 with the tightest), 96 .969.
TIGHT_BOX: Box = (0.17, 0.3, 0.83, 0.96)
TIGHTEST_BOX: Box = (0.23, 0.36, 0.77, 0.9)
# The best of seven boxes for the smile on the London set (AUC .973; FACE_BOX .956).
EXPRESSION_BOX: Box = (0.2, 0.33, 0.8, 0.93)

# MobileNet v1 (arXiv 1704.04861, table 1): output channels and stride of the 13 depthwise-separable
# blocks.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *(((512, 1),) * 5),
    (1024, 2),
    (1024, 1),
)


def crop_and_resize(image: Tensor, size: int, box: Box = FACE_BOX) -> Tensor:
    """Cut `box` out of [N, C, H, W] and scale it to [N, C, size, size].

    Bilinear with antialiasing, so that a 1024 px picture and its 256 px copy give the same answer.
    Box edges are rounded to whole pixels.
    """
    height, width = (int(side) for side in image.shape[2:])
    left, right = round(box[0] * width), round(box[2] * width)
    top, bottom = round(box[1] * height), round(box[3] * height)
    face = image[:, :, top:bottom, left:right]
    return F.interpolate(
        face,
        (size, size),
        mode="bilinear",
        align_corners=False,
        antialias=bottom - top > size or right - left > size,
    )


class _Conv(nn.Module):
    """Convolution with folded batch norm, TensorFlow SAME padding, ReLU6."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.stride[0] > 1:
            x = same_padding(x, self.conv.kernel_size[0], self.conv.stride[0])
        return F.relu6(self.conv(x))


class Faceres(nn.Module):
    """HSE-FaceRes (Savchenko, arXiv 1807.07718): identity, age and gender from one MobileNet v1.

    `forward` takes FFHQ-aligned pictures [N, 3, S, S], RGB in [-1, 1], any S, and returns the raw
    embedding [N, 1024] (compare by cosine, within one size), the expected age in years [N] and the
    probability of male [N]. `size` is the side that the network sees: 224 is what it was trained
    at, 112 costs a quarter; `box` is what it sees of the picture, by default the best for the size.
    """

    mean: Tensor
    years: Tensor
    MEAN_BGR = (103.939, 116.779, 123.68)

    def __init__(self, size: int = 224, box: Box | None = None) -> None:
        super().__init__()
        self.size = size
        by_size = FACE_BOX if size > 160 else TIGHT_BOX if size > 112 else TIGHTEST_BOX
        self.box = box or by_size
        layers = [_Conv(3, 32, 3, 2)]
        channels = 32
        for out, stride in _BLOCKS:
            layers += [_Conv(channels, channels, 3, stride, groups=channels)]
            layers += [_Conv(channels, out, 1, 1)]
            channels = out
        self.trunk = nn.ModuleList(layers)
        self.feats = nn.Linear(1024, 256)
        self.gender = nn.Linear(256, 1)
        self.age = nn.Linear(256, 100)
        self.register_buffer("mean", torch.tensor(self.MEAN_BGR).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("years", torch.arange(1.0, 101.0), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path | str, size: int = 224, box: Box | None = None) -> Faceres:
        """Load converted weights (safetensors)."""
        net = cls(size, box)
        net.load_state_dict(load_file(str(path)))
        return net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.heads(self.embed(crop_and_resize(image, self.size, self.box)))

    def embed(self, face: Tensor) -> Tensor:
        """Embedding [N, 1024] of already cropped faces [N, 3, s, s], RGB in [-1, 1] (cut to
        `box`).
        """
        return self.features(face)[-1].mean((2, 3))

    def identity(self, image: Tensor) -> Tensor:
        """As `forward`, but only the unit embedding [N, 1024]."""
        return F.normalize(self.embed(crop_and_resize(image, self.size, self.box)), dim=1)

    def heads(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(embedding, age [N], gender [N]) from the raw embedding [N, 1024]."""
        hidden = F.relu(self.feats(embedding))  # [N, 256]
        age = torch.softmax(self.age(hidden), 1) @ self.years
        return embedding, age, torch.sigmoid(self.gender(hidden)[:, 0])

    def features(self, face: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16, 32 of cropped faces [N, 3, s, s]: 128 ... 1024 channels.

        Deep ones serve as identity-aware perceptual features; the last one's mean is the embedding.
        """
        x = (face.flip(1) + 1) * 127.5 - self.mean  # BGR, 0..255 minus means
        taps = []
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in _TAPS:
                taps.append(x)
        return taps


# The last layer at each stride: index in the trunk (stem, then depthwise and pointwise of each
# block).
_TAPS = tuple(
    2 * (b + 1)
    for b, (_, _) in enumerate(_BLOCKS)
    if b + 1 == len(_BLOCKS) or (_BLOCKS[b + 1][1] == 2 and b > 0)
)


def faceres_state(model: GraphModel) -> dict[str, Tensor]:
    """Map the tfjs graph of faceres onto `Faceres`, batch norms folded."""

    def const(name: str) -> Tensor:
        return torch.from_numpy(model.constants[name])

    state: dict[str, Tensor] = {}
    names = ["conv1"]
    for i in range(1, 14):
        names += [f"conv_dw_{i}", f"conv_pw_{i}"]
    for i, name in enumerate(names):
        if "_dw_" in name:
            kernel = const(f"{name}/depthwise_kernel").permute(2, 3, 0, 1)  # [C, 1, 3, 3]
            kernel = kernel * const(f"{name}_bn/batchnorm_1/mul").reshape(-1, 1, 1, 1)
        else:
            kernel = const(f"{name}/convolution/merged_input").permute(3, 2, 0, 1)
        state[f"trunk.{i}.conv.weight"] = kernel.contiguous()
        state[f"trunk.{i}.conv.bias"] = const(f"{name}_bn/batchnorm_1/sub").reshape(-1)
    for ours, theirs in (("feats", "feats"), ("gender", "gender_pred"), ("age", "age_pred")):
        state[f"{ours}.weight"] = const(f"{theirs}/kernel").T.contiguous()
        state[f"{ours}.bias"] = const(f"{theirs}/bias").reshape(-1)
    return state


class Expression(nn.Module):
    """face-api's seven expression probabilities of FFHQ-aligned pictures.

    [N, 3, S, S], RGB in [-1, 1] -> [N, 7], in the order of `sfic.analysis.EXPRESSIONS`; the second,
    happy, is the smile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = DenseFaceNet(7)

    @classmethod
    def load(cls, path: Path | str) -> Expression:
        """Load converted weights (safetensors); frozen."""
        teacher = cls()
        teacher.net.load_state_dict(load_file(str(path)))
        return teacher.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> Tensor:
        face = crop_and_resize(image, 112, EXPRESSION_BOX)
        return torch.softmax(self.net((face + 1) * 127.5), 1)


class AgeGender(nn.Module):
    """face-api's age in years [N] and probability of male [N] of FFHQ-aligned pictures.

    [N, 3, S, S], RGB in [-1, 1]. On the London set: mean age error 2.8 years, gender 1.000.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = AgeGenderNet()

    @classmethod
    def load(cls, path: Path | str) -> AgeGender:
        """Load converted weights (safetensors); frozen."""
        teacher = cls()
        teacher.net.load_state_dict(load_file(str(path)))
        return teacher.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        face = crop_and_resize(image, 112, FACE_BOX)
        age, male = self.net((face + 1) * 127.5)
        return age, male
