"""The same bytes and symbols everywhere: many faces coded and decoded under many arithmetics.

    python -m benchmarks.bit_exactness [--faces 500]

Faces of the development set are encoded once. Their symbols are then coded and decoded again in
processes of their own, with one and two threads and other BLAS kernels; torch and ONNX Runtime
(optimised and not) say the tables of the same symbols as one graph. Everything has to agree to the
bit; the command fails when anything does not. That a difference would be seen is shown by decoding
with one weight of each matrix off by one unit: other tables have to end in an error. Needs the
shared face sets and the train extra.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import write_result
from sfic.codec import Codec
from sfic.entropy.model import PARTS, EntropyModel, LayerSymbols
from sfic.entropy.tables import TableSet
from sfic.errors import PacketError
from sfic.layers import up_to
from sfic.locations import models_dir
from sfic.packet import PacketHeader, open_packet, seal_packet, verify

Faces = list[tuple[int, LayerSymbols]]

VARIANTS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
    "Haswell kernels": {"OPENBLAS_CORETYPE": "Haswell"},
    "SkylakeX kernels": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "Prescott kernels": {"OPENBLAS_CORETYPE": "Prescott"},
    "no AVX-512 in numpy": {"NPY_DISABLE_CPU_FEATURES": "AVX512F"},
}


def code_all(model: EntropyModel, faces: Faces) -> dict[str, Any]:
    """Code and decode all faces; digest over bytes and decoded symbols, and the time it took."""
    digest = hashlib.sha256()
    begin = time.process_time()
    for rate, symbols in faces:
        known = LayerSymbols({})
        for layer in PARTS:
            payload = model.encode(layer, rate, symbols)
            known = model.decode(layer, rate, payload, known)
            digest.update(payload + known.of_layer(layer).astype("<i4").tobytes())
    spent = 1000 * (time.process_time() - begin) / max(len(faces), 1)
    return {"digest": digest.hexdigest(), "cpu_ms_a_face_both_ways": round(spent, 2)}


def read_faces(path: Path) -> Faces:
    """Faces of an .npz: `rate` [n] and each part [n, ...]."""
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files}
    rates = columns.pop("rate")
    return [
        (int(rate), LayerSymbols({k: v[i].astype(np.int32) for k, v in columns.items()}))
        for i, rate in enumerate(rates)
    ]


def load_model() -> tuple[dict[str, npt.NDArray[Any]], EntropyModel]:
    """Arrays and model of the bundle."""
    with np.load(models_dir() / "entropy.npz") as file:
        arrays = dict(file)
    return arrays, EntropyModel.from_arrays(arrays, TableSet.load(models_dir() / "tables.npz"))


def encode_faces(count: int, path: Path) -> int:
    """Encode `count` development faces at rates in turn; returns how many packets went wrong."""
    from training.data import load_rgb, read_index

    codec = Codec.load()
    rows = read_index("dev")[:: max(1, len(read_index("dev")) // count)][:count]
    columns: dict[str, list[npt.NDArray[np.int32]]] = {}
    rates, wrong = [], 0
    for i, row in enumerate(rows):
        face = codec.encode(load_rgb(row.path, 256), 1 + i % 9)
        # The next lower one where a face would be over the limit of bytes.
        symbols, rate = codec.decode_symbols(face, "enhanced")
        for layer, packet in face.layers.items():
            wrong += codec._entropy.encode(layer, rate, symbols) != packet[3:-2]
        for part, values in symbols.parts.items():
            columns.setdefault(part, []).append(values)
        rates.append(rate)
    np.savez(path, rate=np.array(rates), **{k: np.stack(v) for k, v in columns.items()})
    return wrong


def graphs(
    arrays: dict[str, npt.NDArray[Any]], model: EntropyModel, faces: Faces
) -> dict[str, int]:
    """For torch and ONNX Runtime: faces with a table that is not the one numpy says."""
    from training.entropy_graph import Laws, export_laws, law_runs, tables_of
    from training.entropy_network import EntropyTransformer

    laws = Laws(EntropyTransformer.from_arrays(arrays), model.tables.scale_count).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "laws.onnx"
        export_laws(laws, path)
        runs = law_runs(laws, path)
        wrong = dict.fromkeys(runs, 0)
        for rate, symbols in faces:
            expected = tables_of(model, symbols, rate)
            for name, run in runs.items():
                found = model.tables.locate(*run(rate, symbols))
                same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
                wrong[name] += not same
    return wrong


def packets_of(model: EntropyModel, rate: int, symbols: LayerSymbols) -> dict[str, bytes]:
    """The three packets of a face, as `sfic.codec` seals them."""
    packets = {}
    for layer in PARTS:
        checked = [symbols.of_layer(lower) for lower in up_to(layer)]
        payload = model.encode(layer, rate, symbols)
        packets[layer] = seal_packet(PacketHeader(layer, rate, b"\0\0"), payload, checked)
    return packets


def open_all(model: EntropyModel, packets: dict[str, bytes]) -> LayerSymbols:
    """Decode and check; PacketError where a check fails."""
    known = LayerSymbols({})
    for layer, packet in packets.items():
        header, payload, check = open_packet(packet, layer=layer)
        known = model.decode(layer, header.rate, payload, known)
        verify(check, header, [known.of_layer(lower) for lower in up_to(layer)])
    return known


def disturbed(
    arrays: dict[str, npt.NDArray[Any]], model: EntropyModel, faces: Faces
) -> dict[str, int]:
    """What becomes of faces whose decoder has one weight that is off by one unit."""
    rng = np.random.default_rng(0)
    found = {"caught": 0, "the same symbols": 0, "other symbols, unnoticed": 0}
    names = [n for n in sorted(arrays) if n.startswith("net.") and n.endswith(".weight")]
    for i, name in enumerate(names):
        rate, symbols = faces[i % len(faces)]
        weight = arrays[name].copy()
        place = rng.integers(weight.size)
        weight.reshape(-1)[place] += 1 if weight.reshape(-1)[place] < 0 else -1
        other = EntropyModel.from_arrays({**arrays, name: weight}, model.tables)
        try:
            known = open_all(other, packets_of(model, rate, symbols))
        except PacketError:
            found["caught"] += 1
        else:
            same = all(np.array_equal(known.parts[p], v) for p, v in symbols.parts.items())
            found["the same symbols" if same else "other symbols, unnoticed"] += 1
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--faces", type=int, default=500)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    arrays, model = load_model()
    if args.worker:
        print(json.dumps(code_all(model, read_faces(args.worker))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faces.npz"
        wrong = encode_faces(args.faces, path)
        faces = read_faces(path)
        results: dict[str, Any] = {"as started": code_all(model, faces)}
        for name, variant in VARIANTS.items():
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.bit_exactness", "--worker", str(path)],
                env={**os.environ, **variant}, capture_output=True, text=True, check=True,
            )
            results[name] = json.loads(done.stdout)
    digests = {result["digest"] for result in results.values()}
    figures = {
        "faces": len(faces),
        "packets_coded_otherwise_from_decoded_symbols": wrong,
        "distinct_digests": len(digests),
        "runs": results,
        "faces_with_another_table": graphs(arrays, model, faces),
        "one_weight_off_by_one": disturbed(arrays, model, faces),
    }
    print(json.dumps(figures, indent=1))
    print(write_result("bit_exactness", figures))
    if wrong or len(digests) != 1 or any(figures["faces_with_another_table"].values()):
        sys.exit("not the same everywhere")
    off = figures["one_weight_off_by_one"]
    if not off["caught"] or off["other symbols, unnoticed"]:
        sys.exit("a disturbed weight went unnoticed")


if __name__ == "__main__":
    main()
