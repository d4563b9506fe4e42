"""Times of the codec's paths on this machine, each beside what a user would otherwise run.

    python -m benchmarks.speed [--cores 2] [--repeat 9] [--provider auto]

Belongs here: what one process does. The services are in `benchmarks.speed_services`; both are run,
put in one table and plotted by `python -m benchmarks`. What stands in one row is timed in turns, so
that a change of the machine's load meets both; a figure is the median. Where networks run in
OpenVINO, what they take in ONNX Runtime is measured beside it.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report import write_result
from sfic.alignment import align
from sfic.codec import CROP_SIZE, Codec
from sfic.layers import LAYERS
from sfic.locations import demo_photograph
from sfic.networks.generator import CHANNELS, IMAGE_SIZE, RESOLUTIONS
from sfic.openvino_session import has_bfloat16
from sfic.pictures import read_picture
from sfic.runtime import CUDA, OPENVINO, PROVIDERS

FRAME = (720, 1280)
FACES = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8, 16)

# One dense product of [2048, 2048] and one copy of 256 MiB, on as many threads as there are cores.
_PEAK = """
import sys, time, numpy as np
from concurrent.futures import ThreadPoolExecutor
a = np.ones((2048, 2048), np.float32); b = a.copy(); a @ b
x = [np.ones(1 << 25, np.float32) for _ in range(int(sys.argv[1]))]; y = [v.copy() for v in x]
pool = ThreadPoolExecutor(len(x))
product = copy = 1e9
for _ in range(9):
    t = time.perf_counter(); a @ b; product = min(product, time.perf_counter() - t)
    t = time.perf_counter(); list(pool.map(np.copyto, y, x))
    copy = min(copy, time.perf_counter() - t)
print(2048**3 / product, len(x) * 2 * x[0].nbytes / copy)
"""


def in_turns(actions: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median milliseconds of each action, run in turns after one round for warming up; printed."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeat + 1):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if turn:
                times[name].append(1000 * (time.perf_counter() - begin))
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{median:10.2f} ms  {name}", flush=True)
    return medians


def frame_of(faces: int) -> NDArray[np.uint8]:
    """A frame of 1280x720 with so many copies of the demo's face: uint8 [720, 1280, 3]."""
    photograph = read_picture(demo_photograph())
    frame = np.full((*FRAME, 3), 128, np.uint8)
    columns, rows = next((c, r) for c, r in ((1, 1), (2, 1), (4, 2), (8, 4)) if c * r >= faces)
    side = min(FRAME[1] // columns, FRAME[0] // rows)
    x, y, w = 110, 0, 250  # the head in the photograph of 512x512
    small = cv2.resize(photograph[y : y + w, x : x + w], (side, side), interpolation=cv2.INTER_AREA)
    for i in range(faces):
        top, left = i // columns * side, i % columns * (FRAME[1] // columns)
        frame[top : top + side, left : left + side] = small
    return frame


def generator_work(size: int) -> tuple[int, int]:
    """Multiply-adds of the generator for a picture of `size`, and the bytes that it has to move.

    Bytes: every layer's input read and output written once, in float32; weights are few.
    """
    products, values = 9 * CHANNELS[4] ** 2 * 16, 0
    for resolution in RESOLUTIONS[1:]:
        if resolution > size // 2:
            break
        pixels = resolution**2
        c, o = CHANNELS[resolution // 2] // 4, CHANNELS[resolution]
        products += pixels * (9 * c + c * o + 9 * o + o * o)
        values += pixels * (2 * c + 2 * c + c + o + 2 * o + 2 * o)
    if size == IMAGE_SIZE:
        products += (size // 2) ** 2 * CHANNELS[size // 2] * 12
        values += (size // 2) ** 2 * (CHANNELS[size // 2] + 3 * 12)
    return products, 4 * values


def machine_peak(cores: int) -> tuple[float, float]:
    """Multiply-adds and bytes a second that this machine reaches."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(cores), "OMP_NUM_THREADS": str(cores)}
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(cores)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    products, copied = map(float, done.stdout.split())
    return products, copied


def bfloat16_peak(cores: int) -> float:
    """Multiply-adds a second of one dense product in bfloat16, in OpenVINO."""
    import openvino
    from openvino import opset13 as ops

    side = 2048
    given = ops.parameter([side, side], np.float32)
    weight = ops.constant(np.ones((side, side), np.float32))
    # Into one number, so that no time goes into writing a result.
    model = openvino.Model(
        [ops.reduce_sum(ops.matmul(given, weight, False, False), [0, 1])], [given]
    )
    settings = {"INFERENCE_NUM_THREADS": cores, "INFERENCE_PRECISION_HINT": "bf16"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    least = min(_seconds(request.infer) for _ in range(20))
    return float(side**3 / least)


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def packaged_network(cores: int) -> Callable[[], object] | None:
    """OpenVINO running the prior's network as its wheel ships it; None where it is not there."""
    try:
        from training.generator_ir import Reference

        reference = Reference(threads=cores)
    except (ImportError, SystemExit) as error:
        print(f"no reference for decoding: {error}", file=sys.stderr)
        return None
    style = reference.map(np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32))
    return lambda: reference.synthesise(style)


def avif(crop: NDArray[np.uint8]) -> Callable[[], object]:
    """AVIF at Pillow's default speed and its smallest size."""
    picture = Image.fromarray(crop)
    return lambda: picture.save(io.BytesIO(), format="AVIF", quality=0)


def on_gpu(codec: Codec, repeat: int) -> dict[str, float]:
    """Milliseconds of a batch of the largest pictures, by its size, without what the CPU does."""
    generator = codec._generator
    shape = codec.bundle.meta["styles"], codec.bundle.meta["style_dim"]
    styles = np.zeros((max(BATCHES), *shape), np.float32)
    features = generator.features(styles)
    return in_turns(
        {
            str(n): lambda n=n: generator.image(styles[:n], features[:n], codec.sizes[-1])
            for n in BATCHES
        },
        repeat,
    )


def measure(cores: int, repeat: int, provider: str) -> dict[str, Any]:
    """All figures: times in milliseconds under `ms`, curves, and the share of the roofline."""
    codec = Codec.load(provider=provider, threads=cores)
    photograph = read_picture(demo_photograph())
    face = codec._detector.detect(photograph)[0]
    crop, _ = align(photograph, face, size=CROP_SIZE)
    coded = codec.encode(crop)
    symbols, rate = codec.decode_symbols(coded, "enhanced")

    decoding: dict[str, Callable[[], object]] = {
        f"decode {size}": lambda size=size: codec.decode(coded, size=size) for size in codec.sizes
    }
    other = Codec.load(provider="cpu", threads=cores) if codec.provider == OPENVINO else None
    if other is not None:
        decoding["ONNX Runtime, decode 1024"] = lambda: other.decode(coded)
    packaged = packaged_network(cores)
    if packaged is not None:
        decoding["OpenVINO 1024"] = packaged
    times = in_turns(decoding, repeat)

    def code_both_ways() -> None:
        for name in LAYERS:
            codec._entropy.encode(name, rate, symbols)
        codec.decode_symbols(coded, "enhanced")

    encoding: dict[str, Callable[[], object]] = {
        "encode a crop": lambda: codec.encode(crop),
        "AVIF": avif(crop),
        "entropy coding both ways": code_both_ways,
        "encoder network": lambda: codec._analyse(crop),
        "spatial code with its preview": lambda: codec._missing(crop, symbols.parts, rate),
    }
    if other is not None:
        encoding["ONNX Runtime, encode a crop"] = lambda: other.encode(crop)
    times |= in_turns(encoding, 2 * repeat)

    frames = {count: frame_of(count) for count in FACES}
    found = {count: len(codec._detector.detect(frame)) for count, frame in frames.items()}
    times |= in_turns({"detector on a frame": lambda: codec._detector.detect(frames[1])}, repeat)
    in_frame = in_turns(
        {str(n): lambda frame=frame: codec.encode_picture(frame) for n, frame in frames.items()},
        max(3, repeat // 3),
    )
    batches = in_turns(
        {str(n): lambda n=n: codec.analyze_batch([coded.basic] * n) for n in BATCHES}, repeat
    )

    alone = Codec.load(provider=provider, threads=1)
    times |= in_turns({"preview 128, one core": lambda: alone.decode(coded, "basic", 128)}, repeat)

    painted = on_gpu(codec, repeat) if codec.provider == CUDA else {}

    products, copied = machine_peak(cores)
    half = codec.provider == OPENVINO and has_bfloat16()
    if half:
        products = bfloat16_peak(cores)
    shares = {}
    for size in () if painted else (128, 256, 512, 1024):  # the peak is the CPU's
        work, moved = generator_work(size)
        moved //= 2 if half else 1
        least = 1000 * max(work / products, moved / copied)
        shares[str(size)] = {
            "multiply_adds": work,
            "bytes": moved,
            "least_ms": round(least, 2),
            "share": round(least / times[f"decode {size}"], 3),
        }
    return {
        "cores": cores,
        "provider": codec.provider,
        "arithmetic": "float16" if painted else "bfloat16" if half else "float32",
        "pictures_batch_ms": painted,
        "vvc": "on PATH, see benchmarks.quality" if shutil.which("vvencapp") else "not measured",
        "ms": times,
        "faces_in_frame_ms": {str(found[int(n)]): ms for n, ms in in_frame.items()},
        "machine_tasks_batch_ms": batches,
        "peak": {"multiply_adds_a_second": round(products), "bytes_a_second": round(copied)},
        "roofline": shares,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--provider", default="auto", choices=PROVIDERS)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    figures = measure(args.cores, args.repeat, args.provider)
    print(write_result("speed", figures))


if __name__ == "__main__":
    main()
