"""Times of each step on this machine, beside what a user would otherwise run.

    python -m benchmarks.speed [--threads 1] [--repeat 20]

Ratios count: times move with the load of the machine. Alternatives: AVIF and JPEG at their smallest
for encoding; OpenVINO running the packaged network for synthesis, where both are installed.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import write_result
from sfic.alignment import align
from sfic.codec import Codec
from sfic.detection import FaceDetector
from sfic.face_score import face_score
from sfic.locations import demo_photograph, models_dir
from sfic.pictures import read_picture


def milliseconds(action: Callable[[], object], repeat: int) -> float:
    """Median of `repeat` runs after two for warming up."""
    action()
    action()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - begin))
    return round(statistics.median(times), 2)


def saved(picture: Image.Image, **options: Any) -> int:
    """Bytes of a picture in another format."""
    file = io.BytesIO()
    picture.save(file, **options)
    return len(file.getvalue())


def openvino_network(threads: int) -> Callable[[], object] | None:
    """The network as its wheel ships it, or None when wheel or OpenVINO are not there."""
    wheel = os.environ.get("SFIC_RANDOM_FACE")
    try:
        import openvino
    except ImportError:
        return None
    if not wheel:
        return None
    core = openvino.Core()
    model = core.read_model(Path(wheel) / "data" / "SynthesisNetwork.xml")
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    style = np.zeros([d.get_length() for d in model.inputs[0].partial_shape], np.float32)
    return lambda: request.infer({0: style})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    codec = Codec.load(provider="cpu", threads=args.threads)
    photograph = read_picture(demo_photograph())
    root = models_dir()
    detector = FaceDetector(root / "detector.onnx", root / "landmarks.onnx", threads=args.threads)
    face = detector.detect(photograph)[0]
    crop, placement = align(photograph, face, size=512)
    coded = codec.encode(crop)
    symbols, rate = codec.decode_symbols(coded, "enhanced")
    rows: dict[str, Callable[[], object]] = {
        "detect one face": lambda: detector.detect(photograph),
        "align to 512": lambda: align(photograph, face, size=512),
        "face score": lambda: face_score(crop, face, placement),
        "encode an aligned crop, effort 0": lambda: codec.encode(crop),
        "encode the whole photograph": lambda: codec.encode_picture(photograph),
        "entropy decoding of three layers": lambda: codec.decode_symbols(coded, "enhanced"),
        "machine tasks, one face": lambda: codec.analyze(coded.basic),
        "machine tasks, 64 faces": lambda: codec.analyze_batch([coded.basic] * 64),
    }
    for size in (128, 256, 512, 1024):
        rows[f"decode all layers to {size}"] = lambda size=size: codec.decode(coded, size=size)
        rows[f"decode basic to {size}"] = lambda size=size: codec.decode(coded, "basic", size)
    picture = Image.fromarray(crop)
    rows["AVIF, default speed, lowest quality"] = lambda: saved(picture, format="AVIF", quality=0)
    rows["JPEG, lowest quality"] = lambda: saved(picture, format="JPEG", quality=1)
    packaged = openvino_network(args.threads)
    if packaged is not None:
        rows["OpenVINO, the packaged network, 1024"] = packaged
    figures: dict[str, Any] = {"threads": args.threads, "provider": codec.provider}
    times = {}
    for name, action in rows.items():
        times[name] = milliseconds(action, args.repeat)
        print(f"{times[name]:10.2f} ms  {name}", flush=True)
    figures["median_ms"] = times
    if packaged is not None:
        ours, theirs = "decode all layers to 1024", "OpenVINO, the packaged network, 1024"
        figures["decode_over_openvino"] = round(times[ours] / times[theirs], 3)
    print(write_result(f"speed-{args.threads}-threads", figures))


if __name__ == "__main__":
    main()
