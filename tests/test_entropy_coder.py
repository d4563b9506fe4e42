"""Tables and range coder: exact integers, any symbol, the shortest bytes, and typed errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfic.entropy import coder
from sfic.entropy.coder import SymbolDecoder, SymbolEncoder, decode_symbols, encode_symbols
from sfic.entropy.tables import (
    ALPHABET,
    MAX_SYMBOL,
    PRECISION,
    RADIUS,
    TableSet,
    default_scales,
    gaussian_tables,
    laplace_tables,
)
from sfic.errors import BundleError, InvalidInput, PacketError

GOLDEN = Path(__file__).parent / "golden"
TABLES = gaussian_tables(default_scales(), 8)


def draw(
    rng: np.random.Generator, count: int, tables: TableSet = TABLES
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals and table indices as a model would make them, with a few far outliers."""
    scale = rng.integers(0, tables.scale_count, count)
    mean = rng.integers(-80, 80, count)
    offset, index = tables.locate(mean, scale)
    noise = np.asarray(tables.scales)[scale] * rng.standard_t(3, count)
    symbols = np.rint(mean / tables.fractions + noise).astype(np.int64) - offset
    return symbols.clip(-MAX_SYMBOL, MAX_SYMBOL).astype(np.int32), index


@pytest.mark.parametrize("build", [gaussian_tables, laplace_tables])
def test_rows_are_exact_and_symmetric(build: object) -> None:
    tables = build([0.05, 1.0, 64.0], 4)  # type: ignore[operator]
    assert tables.freqs.dtype == np.uint32
    assert np.all(tables.freqs.sum(axis=1, dtype=np.int64) == 1 << PRECISION)
    assert tables.freqs.min() >= 1
    values = np.arange(-RADIUS, RADIUS + 1)
    quarter, minus = tables.freqs[4 + 3], tables.freqs[4 + 1]
    mirrored = quarter[tables.columns(-values)].astype(int)
    assert np.max(np.abs(minus[tables.columns(values)].astype(int) - mirrored)) <= ALPHABET


def test_constriction_codes_with_exactly_these_integers() -> None:
    """The interval after one symbol: its ends are the integer frequencies, to the bit."""
    family = constriction.stream.model.Categorical(perfect=False)
    step = (2**64 - 1) >> PRECISION
    rng = np.random.default_rng(1)
    for row in range(len(TABLES)):
        below = np.concatenate([[0], np.cumsum(TABLES.freqs[row], dtype=np.int64)])
        for column in [0, 1, ALPHABET - 1, *rng.integers(0, ALPHABET, 4)]:
            encoder = constriction.stream.queue.RangeEncoder()
            encoder.encode(np.array([column], np.int32), family, TABLES.weights[row : row + 1])
            lower, span = step * int(below[column]), step * int(TABLES.freqs[row, column])
            while span < 1 << 32:
                lower, span = (lower << 32) % (1 << 64), span << 32
            assert encoder.pos()[1] == (lower, span)


def test_three_columns_a_symbol_code_what_whole_tables_do() -> None:
    rng = np.random.default_rng(7)
    for reach in (1, 20, RADIUS):
        rows = rng.integers(0, len(TABLES), 3000)
        symbols = rng.integers(-reach, reach + 1, rows.size).astype(np.int32)
        plain = constriction.stream.queue.RangeEncoder()
        plain.encode(TABLES.columns(symbols), coder._FAMILY, TABLES.weights[rows])
        words = plain.get_compressed().astype(">u4").tobytes()
        payload = encode_symbols(symbols, rows, TABLES)
        assert len(payload) <= len(words)
        last = len(payload) - 1
        assert payload[: last - 4] == words[: last - 4]
        assert np.array_equal(decode_symbols(payload, rows, TABLES), symbols)


def test_tables_are_those_of_the_distribution() -> None:
    """Gaussian samples cost hardly more than by the exact Gaussian: heavy tails are cheap."""
    rng = np.random.default_rng(2)
    for scale in (0.3, 1.0, 7.0):
        index = int(TABLES.scale_index(scale))
        exact = TABLES.scales[index]
        mean = rng.integers(-40, 40, 20_000)
        values = np.rint(mean / 8 + exact * rng.standard_normal(mean.size))
        offset, rows = TABLES.locate(mean, np.full(mean.shape, index))
        edges = (values[:, None] - mean[:, None] / 8 + [-0.5, 0.5]) / (exact * math.sqrt(2))
        upper = np.vectorize(math.erf)(edges)
        ideal = -np.log2((upper[:, 1] - upper[:, 0]) / 2).mean()
        excess = TABLES.bits(values.astype(int) - offset, rows).mean() - ideal
        assert 0 < excess < 0.03


def test_zeros_are_free_and_outliers_affordable() -> None:
    narrow = np.full(1000, TABLES.fractions // 2)
    assert TABLES.bits(0, narrow).max() < 0.01
    assert encode_symbols(np.zeros(1000, int), narrow, TABLES) == b""
    rows = np.arange(len(TABLES))
    assert encode_symbols(np.zeros(rows.size, int), rows, TABLES) == b""
    assert TABLES.bits(1, narrow[0]) < 14
    assert TABLES.bits(MAX_SYMBOL, narrow[0]) < 64


def test_bits_are_what_the_bytes_cost() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        symbols, rows = draw(rng, int(rng.integers(0, 60)))
        spent = 8 * len(encode_symbols(symbols, rows, TABLES)) - TABLES.bits(symbols, rows).sum()
        assert spent < 8.01
    grid = TABLES.bits(np.arange(-3, 4)[:, None], np.array([8, 100]))
    assert grid.shape == (7, 2)
    assert grid[5, 1] == TABLES.bits(2, 100)


def test_locate_splits_means_with_integers_only() -> None:
    mean = np.arange(-40, 41)
    offset, rows = TABLES.locate(mean, np.full(mean.shape, 5))
    part = rows - 5 * 8 - 4
    assert np.array_equal(offset * 8 + part, mean)
    assert part.min() == -4
    assert part.max() == 3
    for scale in (-1, 64):
        with pytest.raises(InvalidInput, match="scale index"):
            TABLES.locate(np.array([0]), np.array([scale]))
    with pytest.raises(InvalidInput, match="mean"):
        TABLES.locate(np.array([1 << 40]), np.array([0]))


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.integers(-3, 3),
                st.integers(-RADIUS - 40, RADIUS + 40),
                st.integers(-MAX_SYMBOL, MAX_SYMBOL),
                st.sampled_from([-MAX_SYMBOL, MAX_SYMBOL]),
            ),
            st.integers(0, len(TABLES) - 1),
        ),
        max_size=40,
    ),
    st.lists(st.integers(0, 40), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_any_symbols_come_back_in_any_parts(coded: list[tuple[int, int]], cuts: list[int]) -> None:
    symbols = np.array([s for s, _ in coded], dtype=np.int32)
    rows = np.array([t for _, t in coded], dtype=np.int32)
    encoder = SymbolEncoder(TABLES)
    parts = np.split(np.arange(len(coded)), sorted(cuts))
    for part in parts:
        encoder.put(symbols[part], rows[part])
    payload = encoder.finish()
    decoder = SymbolDecoder(payload, TABLES)
    decoded = [decoder.get(rows[part]) for part in parts]
    decoder.finish()
    assert np.array_equal(np.concatenate(decoded), symbols)
    assert not payload.endswith(b"\0")


def test_no_shorter_bytes_decode_to_the_same_symbols() -> None:
    """Over all strings of up to two bytes: the payload is the first, by length, that decodes."""
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(12):
        symbols, rows = draw(rng, int(rng.integers(1, 5)))
        payload = encode_symbols(symbols, rows, TABLES)
        seen.add(len(payload))
        for length in range(min(len(payload), 2)):
            for number in range(256**length):
                other = SymbolDecoder(number.to_bytes(length, "big"), TABLES)
                try:
                    decoded = other.get(rows)
                except PacketError:
                    continue
                assert not np.array_equal(decoded, symbols)
    assert {1, 2} <= seen


def test_carries_through_long_runs() -> None:
    """Symbols at the upper end of the interval: the case in which words wait for a carry."""
    rows = np.full(400, 32 * 8 + 4)
    for last in (0, 1, -1, RADIUS, MAX_SYMBOL):
        symbols = np.full(400, MAX_SYMBOL)
        symbols[-1] = last
        assert np.array_equal(
            decode_symbols(encode_symbols(symbols, rows, TABLES), rows, TABLES), symbols
        )


@pytest.mark.parametrize(
    ("symbols", "rows"),
    [
        (np.array([MAX_SYMBOL + 1]), np.array([0])),
        (np.array([-MAX_SYMBOL - 1]), np.array([0])),
        (np.array([-(2**63)]), np.array([0])),
        (np.array([2**64 - 1], dtype=np.uint64), np.array([0])),
        (np.array([0.0]), np.array([0])),
        (np.array([0, 0]), np.array([0])),
        (np.array([0]), np.array([len(TABLES)])),
        (np.array([0]), np.array([-1])),
        (np.array([0]), np.array([0.0])),
        (np.array([[0]]), np.array([[0]])),
    ],
)
def test_encoder_refuses_what_it_cannot_code(symbols: np.ndarray, rows: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        encode_symbols(symbols, rows, TABLES)


def test_only_the_canonical_payload_is_taken() -> None:
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(50):
        symbols, rows = draw(rng, int(rng.integers(1, 80)))
        payload = encode_symbols(symbols, rows, TABLES)
        for longer in (payload + b"\0", payload + bytes(9)):
            with pytest.raises(PacketError, match="extended"):
                decode_symbols(longer, rows, TABLES)
        for other in {payload[:-1], payload + b"\1", payload + b"\xff\xff"} - {payload}:
            try:
                decoded = decode_symbols(other, rows, TABLES)
            except PacketError:
                refused += 1
            else:
                assert not np.array_equal(decoded, symbols)
    assert refused > 75


def test_impossible_bytes_and_escapes_beyond_the_limit() -> None:
    rows = np.full(20, 4)
    with pytest.raises(PacketError):
        decode_symbols(b"\xff" * 40, rows, TABLES)
    encoder = SymbolEncoder(TABLES)
    beyond = np.array([RADIUS + (1 << 20) - (1 << 4)])  # the farthest that an escape can say
    encoder.put_columns(beyond, np.array([ALPHABET - 1], np.int32), rows[:1])
    with pytest.raises(PacketError, match="beyond"):
        decode_symbols(encoder.finish(), rows[:1], TABLES)


def test_a_panic_becomes_a_typed_error() -> None:
    with pytest.raises(PacketError), coder._typed(PacketError, "decoding"):
        constriction.stream.model.QuantizedGaussian(-5, 5, 0.0, float("nan"))
    with pytest.raises(KeyboardInterrupt), coder._typed(PacketError, "decoding"):
        raise KeyboardInterrupt


def test_tables_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tables.npz"
    TABLES.save(path)
    read = TableSet.load(path)
    assert np.array_equal(read.freqs, TABLES.freqs)
    assert (read.fractions, read.scales) == (TABLES.fractions, TABLES.scales)


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\x03\x04broken"])
def test_broken_table_files_are_bundle_errors(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tables.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError):
        TableSet.load(path)


def test_cut_table_files_are_bundle_errors(tmp_path: Path) -> None:
    path = tmp_path / "tables.npz"
    gaussian_tables([1.0], 1).save(path)
    whole = path.read_bytes()
    for keep in range(0, len(whole), 37):
        path.write_bytes(whole[:keep])
        with pytest.raises(BundleError):
            TableSet.load(path)


def test_wrong_tables_are_refused() -> None:
    good = TABLES.freqs[:8].astype(np.int64)
    zero, short = good.copy(), good.copy()
    zero[0, 0] += zero[0, 1]
    zero[0, 1] = 0
    short[3, 0] -= 1
    for freqs, fractions in [(zero, 8), (short, 8), (good[:, :-1], 8), (good, 3), (good * 1.0, 8)]:
        with pytest.raises(BundleError):
            TableSet(freqs, fractions=fractions)
    with pytest.raises(InvalidInput):
        gaussian_tables([1.0, 0.5])
    with pytest.raises(InvalidInput):
        gaussian_tables([0.0])


def test_golden_payloads(rewrite_golden: bool) -> None:
    """Bytes of streams that were written once: a change here breaks every stored face."""
    tables_path, streams_path = GOLDEN / "tables.npz", GOLDEN / "payloads.json"
    if rewrite_golden:
        gaussian_tables([0.05, 0.5, 2.0, 16.0], 4).save(tables_path)
        tables = TableSet.load(tables_path)
        rng = np.random.default_rng(2024)
        streams = []
        for count in (0, 1, 7, 64, 300):
            symbols, rows = draw(rng, count, tables)
            symbols[3:5] = [MAX_SYMBOL, -RADIUS - 1][: max(0, min(2, count - 3))]
            payload = encode_symbols(symbols, rows, tables)
            streams.append(
                {
                    "symbols": symbols.tolist(),
                    "table_index": rows.tolist(),
                    "payload": payload.hex(),
                }
            )
        streams_path.write_text("\n".join(["[", ",\n".join(map(json.dumps, streams)), "]\n"]))
    tables = TableSet.load(tables_path)
    streams = json.loads(streams_path.read_text())
    assert len(streams) == 5
    for stream in streams:
        symbols = np.array(stream["symbols"], dtype=np.int32)
        rows = np.array(stream["table_index"], dtype=np.int32)
        payload = bytes.fromhex(stream["payload"])
        assert encode_symbols(symbols, rows, tables) == payload
        assert np.array_equal(decode_symbols(payload, rows, tables), symbols)


def test_bytes_agree_between_processes_and_thread_counts() -> None:
    program = (
        "import numpy as np;from sfic.entropy.coder import encode_symbols;"
        "from sfic.entropy.tables import TableSet;import json;"
        f"t=TableSet.load(__import__('pathlib').Path({str(GOLDEN / 'tables.npz')!r}));"
        f"s=json.load(open({str(GOLDEN / 'payloads.json')!r}))[-1];"
        "print(encode_symbols(np.array(s['symbols']),np.array(s['table_index']),t).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={"OMP_NUM_THREADS": "2", "PATH": "", "NPY_DISABLE_CPU_FEATURES": "AVX512F"},
    )
    assert done.stdout.strip() == json.loads((GOLDEN / "payloads.json").read_text())[-1]["payload"]
