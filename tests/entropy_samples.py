"""Random entropy models, symbols to code with them, and the coding of many faces as one digest."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfic.entropy.model import PARTS, QUADRANTS, SPATIAL, VECTORS, EntropyModel, LayerSymbols
from sfic.entropy.tables import TableSet, default_scales, gaussian_tables

Arrays = dict[str, npt.NDArray[Any]]
SIZES = {"basic": (48,), "middle": (32,), "enhanced": (16,), "coarse": (3, 8, 8), "fine": (4, 8, 8)}
STEPS = {"basic": (2, 2, 2), "middle": (2, 2), "enhanced": (2,)}
GROUPS = {"coarse": np.array([1, 0, 1]), "fine": np.array([2, 0, 1, 2])}
# What a residual may be, less the farthest that a mean goes.
LARGEST = (1 << 20) - 64
WIDTH, HEADS, HIDDEN, RATES = 32, 4, 64, 9


def random_arrays(seed: int) -> Arrays:
    """A small model with random integers, as `models/entropy.npz` holds them."""
    rng = np.random.default_rng(seed)

    def whole(low: int, high: int, *shape: int) -> npt.NDArray[np.int16]:
        return rng.integers(low, high + 1, shape).astype(np.int16)

    tokens, patches = sum(map(sum, STEPS.values())), (SIZES["fine"][1] // 2) ** 2
    stages = [part for part in SPATIAL for _ in QUADRANTS]
    arrays: Arrays = {"net.shape": np.array([WIDTH, HEADS, 2, 2])}

    def dense(name: str, outputs: int, inputs: int, *lead: int, spread: int = 60) -> None:
        weight = whole(-spread, spread, *lead, outputs, inputs)
        arrays[f"net.{name}.weight"] = weight.astype(np.int8)
        arrays[f"net.{name}.bias"] = whole(-900, 900, *lead, outputs).astype(np.int32)

    for block in (f"{kind}{i}" for kind in ("vector", *SPATIAL) for i in range(2)):
        for name, outputs, inputs in (
            ("query", WIDTH, WIDTH),
            ("key_value", 2 * WIDTH, WIDTH),
            ("out", WIDTH, WIDTH),
            ("hidden", HIDDEN, WIDTH),
            ("down", WIDTH, HIDDEN),
        ):
            dense(f"{block}.{name}", outputs, inputs)
    dense("embed", WIDTH, 8, tokens)
    dense("head", 16, WIDTH, tokens, spread=20)
    known = 0
    for part in VECTORS:
        for i, count in enumerate(STEPS[part]):
            if known:
                dense(f"around_{part}{i}", 8 * count, known, spread=10)
            known += 8 * count
    known = 0
    for i, part in enumerate(stages):
        own = GROUPS[part]
        if i:
            dense(f"window{i}", WIDTH, known, spread=20)
            dense(f"around_spatial{i}", 2 * len(own), known, spread=8)
        dense(f"patch_head{i}", 2 * len(own), WIDTH, spread=20)
        dense(f"channels{i}", 2 * len(own), 2 * len(own), spread=20)
        later = own[None, :] < own[:, None]  # [out, in]
        arrays[f"net.channels{i}.weight"] *= np.tile(later, (2, 2)).astype(np.int8)
        arrays[f"net.channels{i}.bias"] *= np.tile(own > 0, 2)
        known += 18 * len(own)
    arrays |= {
        "net.embed_rate": whole(-2000, 2000, RATES, WIDTH),
        "net.start": whole(-60, 60, RATES, WIDTH),
        "net.place": whole(-64, 64, tokens, WIDTH),
        "net.rate": whole(-30, 30, RATES, WIDTH),
        "net.patch": whole(-64, 64, patches, WIDTH),
        "net.patch_rate": whole(-30, 30, len(stages), RATES, WIDTH),
        "net.exp": np.append(np.floor(127 * 2.0 ** (-np.arange(128) / 16) + 0.5), 0).astype(int),
    }
    for part, size in SIZES.items():
        flat = int(np.prod(size))
        arrays[f"size.{part}"] = np.array(size)
        arrays[f"base.{part}"] = np.stack(
            (whole(-12, 12, RATES, flat), whole(10, 40, RATES, flat)), axis=1
        )
        arrays[f"input.{part}"] = whole(100, 600, RATES, size[0])
        arrays[f"output.{part}"] = whole(0, 60, RATES, size[0])
    for part, groups in GROUPS.items():
        arrays[f"groups.{part}"] = groups
    for part, counts in STEPS.items():
        arrays[f"steps.{part}"] = np.array(counts)
    return arrays


def tables() -> TableSet:
    """The tables that training makes."""
    return gaussian_tables(default_scales(), 8)


def random_symbols(
    rng: np.random.Generator, sizes: dict[str, tuple[int, ...]], wild: bool = False
) -> LayerSymbols:
    """Symbols of a face; `wild`: among them the largest there are."""
    parts = {}
    for part, size in sizes.items():
        values = np.rint(rng.standard_t(3, size) * rng.uniform(0.2, 2.0)).astype(np.int32)
        if wild:
            far = rng.integers(0, values.size, 5)
            values.reshape(-1)[far] = rng.choice([-LARGEST, LARGEST, 130, -127, 4000], 5)
        parts[part] = values
    return LayerSymbols(parts)


def code_digest(model: EntropyModel, faces: list[tuple[int, LayerSymbols]]) -> str:
    """Code and decode all faces; SHA-256 over bytes and decoded symbols."""
    digest = hashlib.sha256()
    for rate, symbols in faces:
        known = LayerSymbols({})
        for layer in PARTS:
            payload = model.encode(layer, rate, symbols)
            known = model.decode(layer, rate, payload, known)
            digest.update(payload + known.of_layer(layer).astype("<i4").tobytes())
    return digest.hexdigest()


def read_faces(path: Path) -> list[tuple[int, LayerSymbols]]:
    """Faces of an .npz: `rate` [n] and each part [n, ...]."""
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files}
    rates = columns.pop("rate")
    return [
        (int(rate), LayerSymbols({k: v[i].astype(np.int32) for k, v in columns.items()}))
        for i, rate in enumerate(rates)
    ]


if __name__ == "__main__":
    # entropy_samples.py ENTROPY.npz TABLES.npz FACES.npz: prints the digest; for other processes.
    with np.load(sys.argv[1]) as stored:
        loaded = EntropyModel.from_arrays(dict(stored), TableSet.load(Path(sys.argv[2])))
    print(code_digest(loaded, read_faces(Path(sys.argv[3]))))
