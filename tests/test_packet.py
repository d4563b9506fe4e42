"""Packets: the five bytes around a payload, and every way in which they can be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from sfic.errors import BundleMismatch, InvalidInput, PacketError, SficError
from sfic.layers import LAYERS, as_layer, highest_first, layer_index, lower_layers, up_to
from sfic.packet import (
    MAX_PACKET_BYTES,
    OVERHEAD_BYTES,
    PacketHeader,
    check_bundle,
    open_packet,
    parse_header,
    seal_packet,
    symbol_check,
    verify,
)

BUNDLE = bytes.fromhex("a1b2c3d4")
SYMBOLS = [
    np.array([3, -1, 0, 70000], dtype=np.int32),
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.zeros(0, dtype=np.int32),
]


def header(layer: str = "middle", rate: int = 5) -> PacketHeader:
    return PacketHeader(as_layer(layer), rate, BUNDLE[:2])


def test_layer_order() -> None:
    assert [layer_index(name) for name in LAYERS] == [0, 1, 2]
    assert up_to("middle") == ("basic", "middle")
    assert lower_layers("basic") == ()
    assert highest_first() == ("enhanced", "middle", "basic")
    with pytest.raises(InvalidInput, match="basic, middle, enhanced"):
        layer_index("top")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rate", [1, 9])
def test_round_trip(layer: str, rate: int) -> None:
    mine = header(layer, rate)
    symbols = SYMBOLS[: layer_index(layer) + 1]
    packet = seal_packet(mine, b"payload", symbols)
    assert len(packet) == len(b"payload") + OVERHEAD_BYTES == len(b"payload") + 5
    opened = open_packet(packet, layer=layer, bundle=BUNDLE)
    assert opened.header == mine == parse_header(packet)
    assert opened.payload == b"payload"
    verify(opened.check, opened.header, symbols)


def test_wire_format_is_the_documented_one() -> None:
    packet = seal_packet(header("enhanced", 7), b"\x01\x02", SYMBOLS)
    assert packet[0] == 1 << 6 | 2 << 4 | 7
    assert packet[1:3] == BUNDLE[:2]
    assert packet[3:5] == b"\x01\x02"
    assert int.from_bytes(packet[5:], "big") == symbol_check(header("enhanced", 7), SYMBOLS)


def crc16_bit_by_bit(data: bytes) -> int:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def test_check_is_crc16_ibm_3740_over_the_canonical_form() -> None:
    assert crc16_bit_by_bit(b"123456789") == 0x29B1
    canonical = header("middle").to_bytes()
    for array in SYMBOLS[:2]:
        canonical += array.size.to_bytes(4, "little") + array.astype("<i4").tobytes()
    assert symbol_check(header("middle"), SYMBOLS[:2]) == crc16_bit_by_bit(canonical)


def test_check_does_not_depend_on_memory_layout() -> None:
    wanted = symbol_check(header("middle"), SYMBOLS[:2])
    for kind in (np.int64, ">i4", ">i8"):
        assert symbol_check(header("middle"), [s.astype(kind) for s in SYMBOLS[:2]]) == wanted
    fortran = [SYMBOLS[0], np.asfortranarray(SYMBOLS[1])]
    assert symbol_check(header("middle"), fortran) == wanted


def test_check_covers_header_lower_layers_and_boundaries() -> None:
    check = symbol_check(header("middle"), SYMBOLS[:2])
    changed = SYMBOLS[0].copy()
    changed[0] += 1
    for other, symbols in [
        (header("middle", 6), SYMBOLS[:2]),
        (PacketHeader("middle", 5, b"zz"), SYMBOLS[:2]),
        (header("middle"), [changed, SYMBOLS[1]]),
        (header("middle"), [SYMBOLS[0][:-1], np.append(SYMBOLS[0][-1], SYMBOLS[1])]),
    ]:
        with pytest.raises(PacketError, match="check of the middle packet failed"):
            verify(check, other, symbols)


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"", "cut: 0 bytes"),
        (b"\x45\xa1\xb2\x00", "cut: 4 bytes"),
        (bytes(5), "unknown packet version 0"),
        (b"\xd5\xa1\xb2\x00\x00", "unknown packet version 3"),
        (b"\x75\xa1\xb2\x00\x00", "layer number 3"),
        (b"\x40\xa1\xb2\x00\x00", "rate 0"),
        (b"\x4a\xa1\xb2\x00\x00", "rate 10"),
        (b"\x45" + bytes(MAX_PACKET_BYTES), "too long"),
    ],
)
def test_odd_packets_are_named(packet: bytes, message: str) -> None:
    with pytest.raises(PacketError, match=message):
        parse_header(packet)


def test_layer_out_of_order_and_foreign_bundle() -> None:
    packet = seal_packet(header("middle"), b"", SYMBOLS[:2])
    with pytest.raises(PacketError, match="basic was expected, the packet is middle"):
        open_packet(packet, layer="basic")
    with pytest.raises(BundleMismatch, match=r"a1b2.*0fee") as error:
        open_packet(packet, bundle=bytes.fromhex("0fee00"))
    assert error.value.details == {"packet_bundle": "a1b2", "loaded_bundle": "0fee"}
    check_bundle(parse_header(packet), BUNDLE)


@pytest.mark.parametrize(
    "symbols",
    [
        SYMBOLS[:1],
        SYMBOLS,
        [SYMBOLS[0], np.array([0.5])],
        [SYMBOLS[0], np.array([1 << 40])],
        [SYMBOLS[0], np.array([1 << 31], dtype=np.uint32)],
    ],
)
def test_sealing_refuses_what_is_no_symbol(symbols: list[np.ndarray]) -> None:
    with pytest.raises(InvalidInput):
        seal_packet(header("middle"), b"", symbols)


@pytest.mark.parametrize(
    "fields", [("top", 5, b"ab"), ("basic", 0, b"ab"), ("basic", 10, b"ab"), ("basic", 5, b"abc")]
)
def test_header_refuses_what_it_cannot_say(fields: tuple[str, int, bytes]) -> None:
    with pytest.raises(InvalidInput):
        PacketHeader(*fields)  # type: ignore[arg-type]


def test_sealing_refuses_an_oversized_payload() -> None:
    with pytest.raises(SficError, match="does not fit"):
        seal_packet(header("basic"), bytes(MAX_PACKET_BYTES), SYMBOLS[:1])
