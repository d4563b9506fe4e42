"""EfficientNet-lite0: the image backbone of the encoder, and of the perceptual loss.

Belongs here: the network and the loading of its ImageNet weights. Not here: what the encoder puts
on top. Architecture: Tan & Le, arXiv 1905.11946, in the "lite" form (no squeeze-and-excitation,
ReLU6, fixed stem and head):
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Kernel, stride, expansion, output channels, repeats of each of the seven groups of blocks.
_GROUPS = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class _ConvNorm(nn.Module):
    """Convolution with TensorFlow SAME padding, then batch norm."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.stride[0] == 2:
            kernel = self.conv.kernel_size[0]
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max(kernel - 2 + size % 2, 0)
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        y: Tensor = self.norm(self.conv(x))
        return y

    def fold(self) -> None:
        """Merge the batch norm, in its evaluation form, into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        self.expand = _ConvNorm(c_in, width, 1) if expansion > 1 else None
        self.depthwise = _ConvNorm(width, width, kernel, stride, groups=width)
        self.project = _ConvNorm(width, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Backbone on RGB pictures in [-1, 1], any size of 32 pixels or more.

    `features` gives one map a stage, at strides 2, 4, 8, 16 and 32 with `stage_channels` channels;
    `pooled` the 1280-vector before the classifier; `forward` the 1000 ImageNet logits. The
    published weights want (RGB - 127) / 128, which is the range [-1, 1]. Trainable as it is;
    `frozen` gives a fast fixed one. `load` lays it out channels-last.
    """

    stage_channels = (16, 24, 40, 112, 320)

    def __init__(self, classifier: bool = False) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 32, 3, 2)
        blocks: list[_Block] = []
        channels = 32
        for kernel, stride, expansion, out, repeats in _GROUPS:
            for i in range(repeats):
                blocks.append(_Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = _ConvNorm(channels, 1280, 1) if classifier else None
        self.classify = nn.Linear(1280, 1000) if classifier else None

    @classmethod
    def load(cls, path: Path | str, classifier: bool = False) -> EfficientNetLite0:
        """Load converted ImageNet weights (safetensors), the classifier's only if asked for."""
        net = cls(classifier)
        state = load_file(str(path))
        net.load_state_dict({k: v for k, v in state.items() if k in net.state_dict()})
        for p in net.parameters():
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
        return net

    def frozen(self) -> EfficientNetLite0:
        """Fix this network in place: evaluation mode, batch norms folded, no gradients to it."""
        self.eval()
        for module in self.modules():
            if isinstance(module, _ConvNorm):
                module.fold()
        return self.requires_grad_(False)

    def features(self, image: Tensor, stages: int = 5) -> list[Tensor]:
        """The first `stages` of the five maps [N, stage_channels[i], S / 2^(i+1), S / 2^(i+1)].

        `image`: float32 [N, 3, S, S] in [-1, 1].
        """
        x = F.relu6(self.stem(image.contiguous(memory_format=torch.channels_last)))
        maps: list[Tensor] = []
        for block, last in zip(self.blocks, _LAST_OF_STAGE, strict=True):
            x = block(x)
            if last:
                maps.append(x)
                if len(maps) == stages:
                    break
        return maps

    def pooled(self, image: Tensor) -> Tensor:
        """Mean of the last feature map [N, 1280]; needs the classifier's head."""
        if self.head is None:
            raise ValueError("pooled() needs the head: build with classifier=True")
        return F.relu6(self.head(self.features(image)[-1])).mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        if self.classify is None:
            raise ValueError("logits need the classifier: build with classifier=True")
        y: Tensor = self.classify(self.pooled(image))
        return y


def _last_of_stage() -> list[bool]:
    strides = [s if i == 0 else 1 for _, s, _, _, repeats in _GROUPS for i in range(repeats)]
    return [stride == 2 for stride in strides[1:]] + [True]


_LAST_OF_STAGE = _last_of_stage()


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published checkpoint's entries (`_blocks.0._depthwise_conv.weight` ...) to
    ours.
    """
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("_fc."):
            ours[key.replace("_fc", "classify")] = value
            continue
        *where, layer, leaf = key.split(".")
        if not where:  # stem and head
            part, kind = {
                "_conv_stem": ("stem", "conv"),
                "_bn0": ("stem", "norm"),
                "_conv_head": ("head", "conv"),
                "_bn1": ("head", "norm"),
            }[layer]
            ours[f"{part}.{kind}.{leaf}"] = value
            continue
        part, kind = {
            "_expand_conv": ("expand", "conv"),
            "_bn0": ("expand", "norm"),
            "_depthwise_conv": ("depthwise", "conv"),
            "_bn1": ("depthwise", "norm"),
            "_project_conv": ("project", "conv"),
            "_bn2": ("project", "norm"),
        }[layer]
        ours[f"blocks.{where[1]}.{part}.{kind}.{leaf}"] = value
    return ours
