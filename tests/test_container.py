"""The .sfic file: what goes in comes out, and no bytes whatever crash the reader."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfic.alignment import Placement
from sfic.container import (
    MAX_FACES,
    MAX_FILE_BYTES,
    pack_faces,
    read_container,
    unpack_faces,
    write_container,
)
from sfic.errors import InvalidInput, LayerMissing, PacketError, SficError
from sfic.face import EncodedFace
from sfic.layers import LAYERS
from sfic.packet import PacketHeader, seal_packet

GOLDEN = Path(__file__).parent / "golden" / "two-faces.sfic"
PLACEMENT = Placement(((200.5, -3.25, 17.0), (3.25, 200.5, -40.125)), 3840, 2160)


def packets(seed: int, rate: int = 5, bundle: bytes = b"\xa1\xb2") -> list[bytes]:
    symbols = [np.arange(seed, seed + 4 * (i + 1)) for i in range(3)]
    return [
        seal_packet(PacketHeader(layer, rate, bundle), bytes([seed, i] * 20), symbols[: i + 1])
        for i, layer in enumerate(LAYERS)
    ]


FACES = [
    EncodedFace(*packets(1), placement=PLACEMENT, face_score=0.75, source_size=401.0625),
    EncodedFace(packets(2)[0], face_score=0.5),
]


def resealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_round_trip_through_path_file_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "faces.sfic"
    write_container(FACES, path)
    buffer = io.BytesIO()
    write_container(FACES, buffer)
    assert path.read_bytes() == buffer.getvalue() == pack_faces(FACES)
    buffer.seek(0)
    for source in (path, str(path), path.read_bytes(), buffer):
        assert read_container(source) == FACES
    assert [p.name for p in tmp_path.iterdir()] == ["faces.sfic"]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.floats(0, 1, width=32),
            st.none() | st.floats(1, 4096, width=32),
            st.none() | st.tuples(st.integers(1, 10**6), st.floats(1, 4096, width=32)),
            st.integers(1, 9),
            st.floats(1, 8, width=32),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_faces_come_back(
    drawn: list[tuple[int, float, float | None, tuple[int, float] | None, int, float]],
) -> None:
    faces = []
    for i, (held, score, size, place, rate, brightened) in enumerate(drawn):
        placement = place and Placement(((place[1], 0, 0), (0, place[1], 1)), place[0], 9)
        layers = packets(i, rate)[:held]
        face = EncodedFace(*layers, placement=placement, face_score=score, source_size=size)
        faces.append(replace(face, brightened=brightened))
    assert unpack_faces(pack_faces(faces)) == faces


def test_floats_keep_a_thousandth_of_a_pixel_of_an_8k_picture() -> None:
    placement = Placement(
        ((612.3456, -1.2345, 7012.3456), (1.2345, 612.3456, 3999.8765)), 7680, 4320
    )
    (face,) = unpack_faces(pack_faces([replace(FACES[0], placement=placement)]))
    assert face.placement is not None
    assert np.abs(face.placement.affine - placement.affine).max() < 1e-3
    assert pack_faces(unpack_faces(pack_faces([face]))) == pack_faces([face])


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 9.0, float("nan"), float("inf")])
def test_a_face_is_never_darkened(factor: float) -> None:
    with pytest.raises(InvalidInput, match="brightened"):
        replace(FACES[1], brightened=factor)
    good = pack_faces([replace(FACES[1], brightened=2.0)])
    at = good.index(struct.pack("<f", 2.0))
    broken = good[:at] + struct.pack("<f", factor) + good[at + 4 : -4]
    with pytest.raises(PacketError, match="brightened"):
        unpack_faces(resealed(broken))


def test_a_factor_that_rounds_to_1_is_none() -> None:
    plain = pack_faces([FACES[1]])
    assert pack_faces([replace(FACES[1], brightened=1 + 1e-9)]) == plain


def test_overhead_is_small() -> None:
    bare = EncodedFace(*packets(1))
    assert len(pack_faces([bare])) - bare.total_bytes <= 20
    assert len(pack_faces(FACES[:1])) - FACES[0].total_bytes <= 50


def test_face_knows_itself() -> None:
    face = FACES[0]
    assert (face.rate, face.model_bundle_id) == (5, "a1b2")
    assert list(face.layers) == list(LAYERS)
    assert face.total_bytes == 3 * 45
    assert list(face.up_to("middle").layers) == ["basic", "middle"]
    assert face.up_to("basic").placement == PLACEMENT
    with pytest.raises(LayerMissing, match="middle"):
        FACES[1].up_to("enhanced")
    with pytest.raises(LayerMissing):
        EncodedFace(face.basic, None, face.enhanced)
    with pytest.raises(InvalidInput):
        EncodedFace(b"")


def test_writing_refuses_what_a_file_cannot_hold(tmp_path: Path) -> None:
    one, two = packets(1), packets(2)
    wrong = [
        [],
        [FACES[1]] * (MAX_FACES + 1),
        [EncodedFace(one[0], one[2])],
        [EncodedFace(one[0], packets(1, rate=6)[1])],
        [EncodedFace(one[0], packets(1, bundle=b"zz")[1])],
        [EncodedFace(b"no packet", two[1])],
        [replace(FACES[1], face_score=float("nan"))],
        [replace(FACES[1], source_size=1e39)],
    ]
    for faces in wrong:
        with pytest.raises(InvalidInput):
            pack_faces(faces)
    with pytest.raises(InvalidInput, match="cannot write"):
        write_container(FACES, tmp_path / "nowhere" / "x.sfic")
    with pytest.raises(InvalidInput, match="cannot read"):
        read_container(tmp_path / "absent.sfic")
    with pytest.raises(InvalidInput, match="cannot read"):
        read_container(tmp_path)


def test_odd_files_are_named() -> None:
    good = pack_faces(FACES)
    body = good[:-4]
    cases = {
        b"": "not a .sfic",
        b"\x89PNG\r\n": "not a .sfic",
        b"SFIC": "cut",
        b"SFIC\x02" + good[5:]: "version 2",
        good[:-1]: "CRC",
        good + b"\0": "CRC",
        resealed(body + b"\0"): "1 bytes after",
        resealed(b"SFIC\x01\x00"): "no face",
        resealed(b"SFIC\x01\xff\xff\x03"): "over 4096",
        resealed(b"SFIC\x01\x82\x00" + body[6:]): "shortest form",
        resealed(b"SFIC\x01\xff\xff\xff\xff\xff\xff"): "shortest form",
        resealed(b"SFIC\x01\x03" + body[6:]): "middle of a field",
        resealed(body[:6] + b"\x3f" + body[7:]): "flags 0x3f",
        resealed(body[:6] + b"\x02" + body[7:]): "flags 0x02",
        resealed(body[:7] + b"\x00\x00\xc0\x7f" + body[11:]): "finite",
    }
    for data, message in cases.items():
        with pytest.raises(PacketError, match=message):
            unpack_faces(data)


def test_an_oversized_file_is_not_read_whole() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, size: int = -1) -> bytes:
            self.asked = size
            return b"SFIC\x01".ljust(size, b"\0")

    endless = Endless()
    with pytest.raises(PacketError, match="limit"):
        read_container(endless)  # type: ignore[arg-type]
    assert endless.asked == MAX_FILE_BYTES + 1


def test_changed_files_are_refused_or_still_whole() -> None:
    """20,000 changed files, half of them with a CRC made to fit, which hit the parser itself."""
    good = pack_faces(FACES)
    body = np.frombuffer(good[:-4], dtype=np.uint8)
    rng = np.random.default_rng(8)
    parsed = 0
    for i in range(20_000):
        changed = body.copy()
        for _ in range(int(rng.integers(1, 4))):
            changed[rng.integers(5, changed.size)] = rng.integers(256)
        data = changed[: rng.integers(10, changed.size + 1)] if i % 4 == 0 else changed
        reseal = bool(i % 2) and data.tobytes() != body.tobytes()
        try:
            faces = unpack_faces(resealed(data.tobytes()) if reseal else data.tobytes() + good[-4:])
        except SficError:
            continue
        parsed += 1
        assert reseal or data.tobytes() == body.tobytes()
        assert pack_faces(faces) == (resealed(data.tobytes()) if reseal else good)
    assert parsed > 1000


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_a_typed_error(data: bytes) -> None:
    for file in (data, b"SFIC\x01" + data, resealed(b"SFIC\x01" + data)):
        try:
            unpack_faces(file)
        except PacketError:
            continue


def test_golden_file(rewrite_golden: bool) -> None:
    """A file that was written once: a change here makes stored files unreadable."""
    if rewrite_golden:
        write_container(FACES, GOLDEN)
    assert GOLDEN.read_bytes() == pack_faces(FACES)
    assert read_container(GOLDEN) == FACES
    described = [{layer: p.hex() for layer, p in face.layers.items()} for face in FACES]
    assert json.dumps(described).count("a1b2") == 4
