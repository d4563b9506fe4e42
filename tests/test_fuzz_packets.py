"""No packet, however broken, crashes the decoder, and no more slip by than 16 bits have to let.

Over 100,000 changed packets of 60 faces. A face is coded as the codec does it: two parts a layer,
tables of the second part and of higher layers chosen by what was decoded before, means and scales
spread as a trained model's are (most symbols nearly certain, some not, a few outliers).

Three gates stand in a row: header, canonical payload (the decoded symbols have to code to the
same bytes again), CRC-16 over symbols. A payload that spells the same symbols in other bytes is
an error, found by the second. How many packets with other symbols pass the third by chance is
binomial with p = 2**-16: the expected number of slips is (those that reach it) / 65,536. The test
counts that no more came through than chance explains (at a probability of one in a million), and
asks the same of the CRC alone, on every packet that decodes to other symbols, canonical or not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from sfic.entropy.coder import SymbolDecoder, SymbolEncoder
from sfic.entropy.tables import default_scales, gaussian_tables
from sfic.errors import BundleMismatch, PacketError
from sfic.layers import LAYERS
from sfic.packet import PacketHeader, open_packet, seal_packet, symbol_check, verify

BUNDLE, OTHER_BUNDLE = b"\xa1\xb2", b"\x0f\xee"
TABLES = gaussian_tables(default_scales(), 8)
SIZES = (48, 64, 128)
FACES = 60
MUTATIONS = 102_000

Symbols = list[np.ndarray]
Mutate = Callable[[np.random.Generator, bytes, "Face", "Face", int], bytes]


@dataclass
class Face:
    symbols: Symbols
    packets: list[bytes]


def context(lower: np.ndarray, layer: int, part: int, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Integer means (eighths of a step) and scale indices of one part, from decoded symbols."""
    count = SIZES[layer] // 2
    place = np.arange(count)
    seen = np.resize(lower, count) if lower.size else np.zeros(count, dtype=np.int64)
    mean = (seen * 3 + place * layer) % 23 - 11
    scale = 46 + rate - 6 * layer - place * 36 // count + np.minimum(np.abs(seen), 6) - 2 * part
    return mean, np.clip(scale, 0, 63)


def make_face(rng: np.random.Generator, rate: int, bundle: bytes = BUNDLE) -> Face:
    symbols: Symbols = []
    packets = []
    for layer, name in enumerate(LAYERS):
        encoder = SymbolEncoder(TABLES)
        parts: Symbols = []
        for part in range(2):
            mean, scale = context(
                np.concatenate([*symbols, *parts, []]).astype(int), layer, part, rate
            )
            offset, rows = TABLES.locate(mean, scale)
            noise = np.asarray(TABLES.scales)[scale] * rng.standard_t(4, mean.size)
            parts.append(np.rint(mean / 8 + noise).clip(-(2**19), 2**19).astype(np.int32))
            encoder.put(parts[-1] - offset, rows)
        symbols.append(np.concatenate(parts))
        packets.append(seal_packet(PacketHeader(name, rate, bundle), encoder.finish(), symbols))
    return Face(symbols, packets)


def decode_layer(packet: bytes, layer: int, face: Face, tally: Counter[str]) -> np.ndarray:
    """One layer of `face` as a decoder takes it, counting how far it came; errors pass through."""
    lower = face.symbols[:layer]
    header, payload, check = open_packet(packet, layer=LAYERS[layer], bundle=BUNDLE)
    decoder = SymbolDecoder(payload, TABLES)
    parts: Symbols = []
    for part in range(2):
        before = np.concatenate([*lower, *parts, []]).astype(int)
        offset, rows = TABLES.locate(*context(before, layer, part, header.rate))
        parts.append(decoder.get(rows) + offset)
    symbols = np.concatenate(parts)
    changed = not np.array_equal(symbols, face.symbols[layer])
    tally["same symbols"] += not changed
    tally["other symbols"] += changed
    tally["crc alone passed"] += changed and symbol_check(header, [*lower, symbols]) == check
    decoder.finish()
    tally["reached the check"] += changed
    verify(check, header, [*lower, symbols])
    return symbols


def cut(rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int) -> bytes:
    keep = int(rng.integers(0, len(packet)))
    return packet[:keep] if rng.random() < 0.7 else packet[-keep:] if keep else b""


def cut_inside(
    rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int
) -> bytes:
    """Bytes missing in the middle: header and check stay where they are."""
    start = int(rng.integers(3, len(packet) - 2))
    return packet[:start] + packet[min(len(packet) - 2, start + int(rng.integers(1, 5))) :]


def flip(rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int) -> bytes:
    changed = bytearray(packet)
    for _ in range(int(rng.integers(1, 9))):
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_payload(
    rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int
) -> bytes:
    changed = bytearray(packet)
    changed[int(rng.integers(3, len(changed) - 2))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_last(
    rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int
) -> bytes:
    """The last payload bytes alone: what is left decodes nearly as before."""
    changed = bytearray(packet)
    changed[-3 - int(rng.integers(min(3, len(packet) - 5)))] ^= int(rng.integers(1, 256))
    return bytes(changed)


def noise(rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int) -> bytes:
    start = int(rng.integers(len(packet)))
    stop = min(len(packet), start + int(rng.integers(1, 40)))
    return packet[:start] + rng.bytes(stop - start) + packet[stop:]


def reorder(rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int) -> bytes:
    a, b, c = sorted(int(i) for i in rng.integers(3, len(packet) - 1, 3))
    return packet[:a] + packet[b:c] + packet[a:b] + packet[c:]


def extend(rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int) -> bytes:
    extra = int(rng.integers(1, 12))
    more = bytes(extra) if rng.random() < 0.3 else rng.bytes(extra)
    return packet + more if rng.random() < 0.5 else packet[:-2] + more + packet[-2:]


def zero(rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int) -> bytes:
    start = int(rng.integers(len(packet)))
    stop = min(len(packet), start + int(rng.integers(1, len(packet) + 1)))
    return packet[:start] + bytes(stop - start) + packet[stop:]


def swap_faces(
    rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int
) -> bytes:
    """Another face's layer on this face's lower ones; for basic, its payload under our check."""
    return other.packets[layer] if layer else other.packets[0][:-2] + packet[-2:]


def swap_layers(
    rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int
) -> bytes:
    wrong = face.packets[(layer + int(rng.integers(1, 3))) % 3]
    return wrong if rng.random() < 0.5 else packet[:1] + wrong[1:]


def foreign(rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int) -> bytes:
    if rng.random() < 0.5:
        return packet[:1] + OTHER_BUNDLE + packet[3:]
    return packet[: 3 * int(rng.integers(2))] + rng.bytes(int(rng.integers(2, 200)))


def other_rate(
    rng: np.random.Generator, packet: bytes, face: Face, other: Face, layer: int
) -> bytes:
    return bytes((packet[0] & 0xF0 | int(rng.integers(16)),)) + packet[1:]


KINDS: tuple[Mutate, ...] = (
    cut,
    cut_inside,
    flip,
    flip_payload,
    flip_last,
    noise,
    reorder,
    extend,
    zero,
    swap_faces,
    swap_layers,
    foreign,
    other_rate,
)


def most_slips(trials: int, chance: float = 1e-6) -> int:
    """The number that Binomial(trials, 2**-16) exceeds with a probability below `chance`."""
    mean = trials / 65536
    term = left = math.exp(-mean)
    count = 0
    while 1 - left > chance:
        count += 1
        term *= mean / count
        left += term
    return count


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    rng = np.random.default_rng(11)
    return [make_face(rng, 1 + i % 9) for i in range(FACES)]


def test_whole_packets_decode(faces: list[Face]) -> None:
    for face in faces:
        for layer in range(3):
            symbols = decode_layer(face.packets[layer], layer, face, Counter())
            assert np.array_equal(symbols, face.symbols[layer])
    sizes = np.array([[len(p) for p in face.packets] for face in faces])
    assert 20 < sizes.mean() < 200


def test_a_face_of_another_bundle_is_refused_by_name(faces: list[Face]) -> None:
    stranger = make_face(np.random.default_rng(3), 5, OTHER_BUNDLE)
    with pytest.raises(BundleMismatch, match=r"0fee.*a1b2"):
        decode_layer(stranger.packets[0], 0, stranger, Counter())


def test_changed_packets_end_in_typed_errors(
    faces: list[Face], capfd: pytest.CaptureFixture[str], record_property: Callable[..., None]
) -> None:
    rng = np.random.default_rng(12)
    tally: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    slips = []
    while tried.total() < MUTATIONS:
        kind = KINDS[tried.total() % len(KINDS)]
        layer = int(rng.integers(3))
        first, second = (int(i) for i in rng.choice(FACES, 2, replace=False))
        face, other = faces[first], faces[second]
        packet = face.packets[layer]
        changed = kind(rng, packet, face, other, layer)
        if changed == packet:
            continue
        tried[kind.__name__] += 1
        try:
            decode_layer(changed, layer, face, tally)
        except (PacketError, BundleMismatch) as error:
            errors[type(error).__name__] += 1
        else:
            slips.append((kind.__name__, first, layer))
    facts = {
        "mutations": tried.total(),
        **tally,
        "expected slips": round(tally["reached the check"] / 65536, 3),
        "slips": len(slips),
        "crc alone, expected": round(tally["other symbols"] / 65536, 3),
    }
    record_property("fuzz", facts)
    assert min(tried[kind.__name__] for kind in KINDS) > 5000
    assert tried.total() == errors.total() + len(slips) >= 100_000
    assert tally["other symbols"] > MUTATIONS / 4
    assert len(slips) <= most_slips(tally["reached the check"]), (facts, slips)
    assert tally["crc alone passed"] <= most_slips(tally["other symbols"]), facts
    assert "panicked" not in capfd.readouterr().err
    print(facts, dict(errors), slips)


def test_the_check_alone_lets_one_in_65536_by(faces: list[Face]) -> None:
    """Symbols changed directly, 131,072 times: no more slips than chance has it (two)."""
    rng = np.random.default_rng(13)
    face = faces[4]
    header = open_packet(face.packets[2]).header
    wanted = symbol_check(header, face.symbols)
    trials, slips = 131_072, 0
    changed = face.symbols[2].copy()
    places = rng.integers(0, changed.size, (trials, 6))
    for place, step in zip(places, rng.integers(-9, 10, (trials, 6), dtype=np.int32), strict=True):
        before = changed[place].copy()
        changed[place] += step
        if not np.array_equal(changed, face.symbols[2]):
            slips += symbol_check(header, [*face.symbols[:2], changed]) == wanted
        changed[place] = before
    assert slips <= most_slips(trials)


def test_most_slips_is_the_binomial_quantile() -> None:
    for trials in (1000, 65536, 200_000):
        count = most_slips(trials)
        q = 2.0**-16
        terms = [math.comb(trials, k) * q**k * (1 - q) ** (trials - k) for k in range(count + 1)]
        assert 1 - sum(terms) < 1.1e-6
        assert 1 - sum(terms[:-1]) > 0.9e-6
