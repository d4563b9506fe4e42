"""The integer entropy transformer: round trips, the same bits everywhere, and what changes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from entropy_samples import (
    SIZES,
    Arrays,
    code_digest,
    random_arrays,
    random_symbols,
    read_faces,
    tables,
)

from sfic.codec import Codec
from sfic.entropy.model import PARTS, EntropyModel, LayerSymbols
from sfic.entropy.tables import TableSet
from sfic.entropy.transformer import IntegerTransformer
from sfic.errors import BundleError, InvalidInput, PacketError
from sfic.face import EncodedFace
from sfic.layers import up_to
from sfic.locations import models_dir
from sfic.packet import PacketHeader, open_packet, seal_packet, verify

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "faces.json"
TABLES = tables()


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return random_arrays(1)


@pytest.fixture(scope="module")
def model(arrays: Arrays) -> EntropyModel:
    return EntropyModel.from_arrays(arrays, TABLES)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(threads=1)


@pytest.fixture(scope="module")
def faces(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Symbols of a photograph and of its mirror image at three rates, as a file."""
    from sfic.locations import demo_photograph
    from sfic.pictures import read_picture

    picture = read_picture(demo_photograph())
    columns: dict[str, list[npt.NDArray[np.int32]]] = {}
    rates = []
    for rate in (1, 5, 9):
        for view in (picture, np.ascontiguousarray(picture[:, ::-1])):
            face = codec.encode_picture(view, rate=rate)[0]
            symbols, _ = codec.decode_symbols(face, "enhanced")
            for part, values in symbols.parts.items():
                columns.setdefault(part, []).append(values)
            rates.append(rate)
    path: Path = tmp_path_factory.mktemp("faces") / "faces.npz"
    np.savez(path, rate=np.array(rates), **{k: np.stack(v) for k, v in columns.items()})
    return path


def check_round_trip(model: EntropyModel, rate: int, symbols: LayerSymbols) -> int:
    """Bytes of all layers."""
    known, total = LayerSymbols({}), 0
    for layer in PARTS:
        payload = model.encode(layer, rate, symbols)
        known = model.decode(layer, rate, payload, known)
        bits = sum(float(cost.sum()) for cost in model.bits(layer, rate, symbols).values())
        # The coder's probabilities have 24 bits; a number inside an interval takes up to a bit more
        # than the interval's own, in whole bytes.
        assert 8 * len(payload) - bits < 9 + bits / 10_000
        total += len(payload)
    for part, values in symbols.parts.items():
        assert known.parts[part].dtype == np.int32
        assert np.array_equal(known.parts[part], values)
    return total


@pytest.mark.parametrize("rate", range(1, 10))
def test_any_symbols_come_back(model: EntropyModel, rate: int) -> None:
    rng = np.random.default_rng(rate)
    for wild in (False, True):
        check_round_trip(model, rate, random_symbols(rng, SIZES, wild))
    nothing = {part: np.zeros(size, np.int32) for part, size in SIZES.items()}
    check_round_trip(model, rate, LayerSymbols(nothing))


def test_symbols_of_real_faces_come_back_and_cost_less_than_noise(
    codec: Codec, faces: Path
) -> None:
    rng = np.random.default_rng(3)
    for rate, symbols in read_faces(faces):
        spent = check_round_trip(codec._entropy, rate, symbols)
        shuffled = LayerSymbols(
            {k: rng.permutation(v.reshape(-1)).reshape(v.shape) for k, v in symbols.parts.items()}
        )
        assert spent < check_round_trip(codec._entropy, rate, shuffled)


def test_a_law_depends_on_earlier_steps_alone(model: EntropyModel) -> None:
    """Whatever stands in later steps, the tables of a step are the same."""
    rng = np.random.default_rng(4)
    symbols = random_symbols(rng, SIZES)
    for layer in PARTS:
        steps = list(model._steps(layer, 5, symbols.parts))
        for i, step in enumerate(steps):
            other = {k: v.copy() for k, v in symbols.parts.items()}
            for later in steps[i:]:
                values = other[later.part].reshape(-1)
                values[later.places] = rng.integers(-50, 50, len(later.places))
            seen = list(model._steps(layer, 5, other))[i]
            assert np.array_equal(seen.table, step.table)
            assert np.array_equal(seen.offset, step.offset)
            if i + 1 < len(steps):
                following = list(model._steps(layer, 5, other))[-1]
                assert not np.array_equal(following.table, steps[-1].table)


def test_steps_are_the_same_at_once(model: EntropyModel) -> None:
    """An encoder, which knows all symbols, finds the tables that a decoder does step by step."""
    rng = np.random.default_rng(13)
    for sparse in (False, True):
        symbols = random_symbols(rng, SIZES)
        if sparse:  # some channels silent
            symbols.parts["coarse"][1:] = 0
            symbols.parts["fine"][1:3] = 0
        for layer in PARTS:
            one_by_one = list(model._steps(layer, 5, symbols.parts))
            at_once = list(model._steps(layer, 5, symbols.parts, at_once=True))
            for a, b in zip(one_by_one, at_once, strict=True):
                assert a.part == b.part
                assert np.array_equal(a.places, b.places)
                assert np.array_equal(a.table, b.table)
                assert np.array_equal(a.offset, b.offset)


def test_every_symbol_is_coded_once(model: EntropyModel) -> None:
    symbols = random_symbols(np.random.default_rng(5), SIZES)
    for layer, parts in PARTS.items():
        places: dict[str, list[int]] = {part: [] for part in parts}
        for step in model._steps(layer, 1, symbols.parts):
            places[step.part] += step.places.tolist()
        for part in parts:
            assert sorted(places[part]) == list(range(int(np.prod(SIZES[part]))))


def test_wide_numbers_give_the_same_integers(
    arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64 rounds nothing that float32 could: so float32 did not round either."""
    from sfic.entropy import model as model_module
    from sfic.entropy import transformer

    symbols = [random_symbols(np.random.default_rng(i), SIZES, wild=i > 2) for i in range(5)]
    narrow = EntropyModel.from_arrays(arrays, TABLES)
    expected = [list(narrow._steps(layer, 7, s.parts)) for s in symbols for layer in PARTS]
    for module in (transformer, model_module):
        numpy64 = type("numpy64", (), {k: getattr(np, k) for k in dir(np) if k[0] != "_"})
        numpy64.float32 = np.float64  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "np", numpy64)
    wide = EntropyModel.from_arrays(arrays, TABLES)
    assert wide._net._exp.dtype == np.float64
    found = [list(wide._steps(layer, 7, s.parts)) for s in symbols for layer in PARTS]
    for ours, theirs in zip(expected, found, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a.table, b.table)
            assert np.array_equal(a.offset, b.offset)


def integer_attention(
    q: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int64],
    values: npt.NDArray[np.int64],
    exp: list[int],
) -> list[list[list[int]]]:
    """The rules of the module docstring in Python's own integers."""
    heads = []
    for query, key, value in zip(q.tolist(), keys.tolist(), values.tolist(), strict=True):
        rows = []
        for asked in query:
            score = [(sum(a * b for a, b in zip(asked, k, strict=True)) + 32) // 64 for k in key]
            weight = [exp[min(max(score) - s, 128)] for s in score]
            total = sum(weight)
            sums = [
                sum(w * v for w, v in zip(weight, column, strict=True))
                for column in zip(*value, strict=True)
            ]
            rows.append([(4 * s + total) // (2 * total) for s in sums])
        heads.append(rows)
    return heads


def test_softmax_and_norm_follow_the_written_rules(arrays: Arrays) -> None:
    net = IntegerTransformer(arrays)
    rng = np.random.default_rng(6)
    for spread in (3, 40, 127):
        q, keys, values = (rng.integers(-spread, spread + 1, (4, n, 8)) for n in (3, 9, 9))
        found = net._attend(*(x.astype(np.float32) for x in (q, keys, values)))
        wanted = np.array(integer_attention(q, keys, values, arrays["net.exp"].tolist()))
        assert np.array_equal(found, wanted.transpose(1, 0, 2).reshape(3, 32))
    for spread in (0, 1, 50, 2047):
        x = rng.integers(-spread, spread + 1, (6, 32))
        x[0] = 0
        wanted_rows = []
        for row in x.tolist():
            ratio = (1 << 21) // max(sum(map(abs, row)), 32)
            wanted_rows.append([min(max((v * ratio + 512) // 1024, -127), 127) for v in row])
        assert np.array_equal(net._norm(x.astype(np.float32)), np.array(wanted_rows))


VARIANTS = [
    {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
    {"OPENBLAS_CORETYPE": "Haswell"},
    {"OPENBLAS_CORETYPE": "Prescott"},
    {"OPENBLAS_CORETYPE": "SkylakeX", "NPY_DISABLE_CPU_FEATURES": "AVX512F"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(map("=".join, v.items())))
def test_same_bytes_in_other_processes(variant: dict[str, str], codec: Codec, faces: Path) -> None:
    """Threads, BLAS kernels and vector instructions change no bit."""
    folder = models_dir()
    program = [str(HERE / "entropy_samples.py")]
    program += [str(folder / "entropy.npz"), str(folder / "tables.npz"), str(faces)]
    done = subprocess.run(
        [sys.executable, *program],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **variant},
    )
    assert done.stdout.strip() == code_digest(codec._entropy, read_faces(faces))


@pytest.mark.parametrize("real", [False, True], ids=["random", "bundle"])
def test_torch_and_onnx_runtime_say_the_same_tables(
    real: bool, codec: Codec, faces: Path, arrays: Arrays, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="the train extra is not installed")
    pytest.importorskip("onnx", reason="the train extra is not installed")
    from training.entropy_graph import Laws, export_laws, law_runs, tables_of
    from training.entropy_network import EntropyTransformer

    if real:
        with np.load(models_dir() / "entropy.npz") as file:
            arrays = dict(file)
        sample = read_faces(faces)
    else:
        rng = np.random.default_rng(8)
        sample = [(r, random_symbols(rng, SIZES, wild=r > 6)) for r in range(1, 10)]
    model = EntropyModel.from_arrays(arrays, TABLES)
    network = EntropyTransformer.from_arrays(arrays)
    again = network.arrays()
    assert all(np.array_equal(again[name], arrays[name]) for name in again)
    laws = Laws(network, TABLES.scale_count).eval()
    export_laws(laws, tmp_path / "laws.onnx")
    for name, run in law_runs(laws, tmp_path / "laws.onnx").items():
        for rate, symbols in sample:
            mean, scale = run(rate, symbols)
            offset, table = TABLES.locate(mean, scale)
            expected = tables_of(model, symbols, rate)
            assert np.array_equal(offset, expected[0]), name
            assert np.array_equal(table, expected[1]), name
    assert torch.is_grad_enabled()


def test_a_weight_off_by_one_fails_the_check(arrays: Arrays, model: EntropyModel) -> None:
    """A network that differs in one unit of one weight decodes other symbols, and says so."""
    rng = np.random.default_rng(9)
    symbols = random_symbols(rng, SIZES)
    packets = {}
    for layer in PARTS:
        checked = [symbols.of_layer(lower) for lower in up_to(layer)]
        payload = model.encode(layer, 5, symbols)
        packets[layer] = seal_packet(PacketHeader(layer, 5, b"ab"), payload, checked)

    def decode(with_model: EntropyModel) -> LayerSymbols:
        known = LayerSymbols({})
        for layer, packet in packets.items():
            header, payload, check = open_packet(packet, layer=layer)
            known = with_model.decode(layer, header.rate, payload, known)
            verify(check, header, [known.of_layer(lower) for lower in up_to(layer)])
        return known

    assert np.array_equal(decode(model).parts["fine"], symbols.parts["fine"])
    names = [n for n in arrays if n.endswith(".weight") and "embed" not in n]
    caught = 0
    for name in names:
        weight = arrays[name].copy()
        weight.reshape(-1)[rng.integers(weight.size)] += 1
        other = EntropyModel.from_arrays({**arrays, name: weight}, TABLES)
        try:
            known = decode(other)
        except PacketError:
            caught += 1
        else:  # no table that a symbol was coded with tells the difference
            assert all(np.array_equal(known.parts[p], v) for p, v in symbols.parts.items())
    assert caught > len(names) // 3


def test_plain_arithmetic_is_near_the_exact_one(arrays: Arrays) -> None:
    """Most of training is done without roundings: that must be training of the same network."""
    torch = pytest.importorskip("torch", reason="the train extra is not installed")
    from training.entropy_base import TableCost
    from training.entropy_network import EntropyTransformer

    network, cost = EntropyTransformer.from_arrays(arrays), TableCost(TABLES)
    rng = np.random.default_rng(11)
    faces = [random_symbols(rng, SIZES).parts for _ in range(9)]
    parts = {p: torch.from_numpy(np.stack([f[p] for f in faces])).float() for p in SIZES}
    rate = torch.arange(9)
    with torch.no_grad():
        exact = network(parts, rate, cost)
        network.set_exact(False)
        plain = network(parts, rate, cost)
    for part, bits in exact.items():
        assert not torch.equal(plain[part], bits) or part == "enhanced"
        torch.testing.assert_close(plain[part], bits, rtol=0.03, atol=2.0)


def test_the_liveliest_channels_come_first() -> None:
    pytest.importorskip("torch", reason="the train extra is not installed")
    from training.codec_checkpoint import SymbolSet
    from training.train_entropy import CHANNEL_GROUPS, channel_groups

    rng = np.random.default_rng(12)
    for part, count in (("coarse", 1), ("coarse", 3), ("coarse", 16), ("fine", 32)):
        spread = rng.permutation(count) + 1
        code = rng.normal(size=(50, count, 4, 4)) * 10 * spread[:, None, None]
        data = SymbolSet({part: code.astype(np.int16)}, np.ones(50), np.ones(50))
        groups = channel_groups(data, part)
        assert (np.diff(groups[np.argsort(-spread)]) >= 0).all()
        assert set(groups) == set(range(groups.max() + 1))
        assert (groups == 0).sum() == min(CHANNEL_GROUPS[part][0], count)


def test_a_bundle_with_another_weight_is_refused_by_name(codec: Codec, tmp_path: Path) -> None:
    """The packet's bundle id would tell; here the file itself is not the manifest's."""
    for file in models_dir().iterdir():
        (tmp_path / file.name).symlink_to(file)
    with np.load(models_dir() / "entropy.npz") as stored:
        arrays = dict(stored)
    name = "net.fine0.query.weight"
    arrays[name] = arrays[name].copy()
    arrays[name][0, 0] ^= 1
    (tmp_path / "entropy.npz").unlink()
    np.savez_compressed(tmp_path / "entropy.npz", **arrays)
    with pytest.raises(BundleError, match="is not the file"):
        Codec.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("net.head.weight", None),
        ("size.middle", None),
        ("net.vector0.key_value.weight", lambda w: w.astype(np.int32) * 500),
        ("net.vector0.hidden.bias", lambda b: b + (1 << 23)),
        ("net.exp", lambda e: e[:-1]),
        ("net.exp", lambda e: e - 1),
        ("output.basic", lambda g: g + 3000),
        ("steps.basic", lambda s: s[:-1]),
        ("net.place", lambda p: np.tile(p, (20, 1))),
        ("net.patch", lambda p: p[:-1]),
    ],
)
def test_models_that_are_not_exact_or_not_whole_are_refused(
    arrays: Arrays, name: str, change: object
) -> None:
    broken = dict(arrays)
    if change is None:
        del broken[name]
    else:
        broken[name] = change(arrays[name])  # type: ignore[operator]
    with pytest.raises(BundleError):
        EntropyModel.from_arrays(broken, TABLES)


def test_unknown_layers_are_refused(model: EntropyModel) -> None:
    symbols = random_symbols(np.random.default_rng(0), SIZES)
    with pytest.raises(InvalidInput, match="unknown layer"):
        model.encode("top", 5, symbols)
    with pytest.raises(InvalidInput, match="unknown layer"):
        model.decode("top", 5, b"", symbols)


def test_golden_packets(codec: Codec, faces: Path, rewrite_golden: bool) -> None:
    """Packets written once decode to the same symbols, and those code to the same bytes."""
    if rewrite_golden:
        stored = []
        for rate, symbols in read_faces(faces)[::2]:
            packets = {}
            for layer in PARTS:
                payload = codec._entropy.encode(layer, rate, symbols)
                checked = [symbols.of_layer(lower) for lower in up_to(layer)]
                header = PacketHeader(layer, rate, codec.bundle.id)
                packets[layer] = seal_packet(header, payload, checked).hex()
            flat = {part: values.reshape(-1).tolist() for part, values in symbols.parts.items()}
            stored.append({"rate": rate, "packets": packets, "symbols": flat})
        text = ",\n".join(json.dumps(face, separators=(",", ":")) for face in stored)
        GOLDEN.write_text(f'{{"bundle":"{codec.model_bundle}","faces":[\n{text}\n]}}\n')
    if not GOLDEN.exists():
        pytest.skip("no golden packets yet: pytest --rewrite-golden writes them")
    golden = json.loads(GOLDEN.read_text())
    assert golden["bundle"] == codec.model_bundle, "another bundle: rewrite the golden packets"
    for face in golden["faces"]:
        packets = {layer: bytes.fromhex(text) for layer, text in face["packets"].items()}
        symbols, rate = codec.decode_symbols(EncodedFace(**packets, face_score=1.0), "enhanced")
        assert rate == face["rate"]
        for part, values in face["symbols"].items():
            assert symbols.parts[part].reshape(-1).tolist() == values
        for layer, packet in packets.items():
            assert codec._entropy.encode(layer, rate, symbols) == packet[3:-2]


def test_tables_of_the_bundle_are_those_that_training_makes(codec: Codec) -> None:
    assert np.array_equal(TableSet.load(models_dir() / "tables.npz").freqs, TABLES.freqs)
