"""The two ONNX graphs that serve the generator, and their weights back into torch.

Belongs here: the split at the 32x32 features, the file format, how weights are stored. Not here:
where weights come from (`training.generator`), running the graphs (`sfic.generator`).

    generator_low.onnx    styles -> features [N, 512, 32, 32]
    generator_high.onnx   styles, features -> image_64, image_128, image_256, image_512, image_1024
                          and features_128 [N, 256, 128, 128], from which image_512 and image_1024
                          can be made strip by strip: `row` is the first of the rows that are given

Every weight is in exactly one of the files, under its name in `Generator`, so that the files are
the only copy: `load_generator` reads them back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from sfic.networks.generator import (
    CHANNELS,
    IMAGE_SIZE,
    PREVIEW_SIZES,
    STYLE_DIM,
    STYLES,
    Generator,
    next_style,
)

LOW, HIGH = "generator_low.onnx", "generator_high.onnx"
SPLIT = 32
CUT = 128  # large enough for strips whose margins cost little, and small enough to be quick whole
OPSET = 17
_PREFIX = "generator."


class _Low(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, styles: Tensor) -> Tensor:
        return self.generator.features(styles, SPLIT)


class _High(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, styles: Tensor, features: Tensor, row: Tensor) -> tuple[Tensor, ...]:
        images = [self.generator.head(features, styles, SPLIT)]
        for size in (*PREVIEW_SIZES, IMAGE_SIZE)[1:]:
            resolution = size // 2
            first = next_style(resolution // 2)
            block = self.generator.blocks[str(resolution)]
            above = row * (resolution // CUT) if resolution > CUT else 0
            features = block(features, styles[:, first], styles[:, first + 1], above)
            images.append(self.generator.head(features, styles, resolution))
            if resolution == CUT:
                cut = features
        return *images, cut


def export_generator(generator: Generator, folder: Path) -> None:
    """Write both graphs, float32, with a free batch size."""
    styles = torch.zeros(2, STYLES, STYLE_DIM)
    features = torch.zeros(2, CHANNELS[SPLIT], SPLIT, SPLIT)
    outputs = [*(f"image_{size}" for size in (*PREVIEW_SIZES, IMAGE_SIZE)), f"features_{CUT}"]
    row = torch.tensor(0)
    low = (_Low(generator), {"styles": styles}, ["features"], LOW)
    high = (_High(generator), {"styles": styles, "features": features, "row": row}, outputs, HIGH)
    for module, inputs, outputs, name in (low, high):
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(folder / name),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={
                key: {0: "N", 2: "rows"} if key.startswith("features_") else {0: "N"}
                for key in (*inputs, *outputs)
                if key != "row"
            },
            opset_version=OPSET,
            dynamo=False,
            # Folding would transpose weights and lose their names.
            do_constant_folding=False,
        )


def load_generator(folder: Path) -> Generator:
    """The torch generator with the weights of both files in `folder`, frozen."""
    state: dict[str, Tensor] = {}
    for name in (LOW, HIGH):
        for tensor in onnx.load(str(folder / name)).graph.initializer:
            key = tensor.name.removesuffix(".half")
            if key.startswith(_PREFIX):
                values = numpy_helper.to_array(tensor).astype(np.float32)
                state[key.removeprefix(_PREFIX)] = torch.from_numpy(values)
    generator = Generator()
    generator.load_state_dict(state)
    return generator.requires_grad_(False).eval()
