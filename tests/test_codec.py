"""The codec on a real photograph, with the bundle that ships."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sfic
from sfic.alignment import align
from sfic.bundle import BUNDLE_FILES, ModelBundle
from sfic.detection import FaceDetector
from sfic.errors import (
    BundleError,
    BundleMismatch,
    InvalidInput,
    LayerMissing,
    PacketError,
    SficError,
)
from sfic.layers import LAYERS
from sfic.locations import demo_photograph, models_dir
from sfic.pictures import read_picture

Rgb = npt.NDArray[np.uint8]
MOST_BYTES = 1311  # 0.01 bit per pixel at 1024x1024


@pytest.fixture(scope="module")
def codec() -> sfic.Codec:
    return sfic.Codec.load(provider="cpu")


@pytest.fixture(scope="module")
def crop() -> Rgb:
    photograph = read_picture(demo_photograph())
    return align(photograph, FaceDetector().detect(photograph)[0], size=256)[0]


@pytest.fixture(scope="module")
def face(codec: sfic.Codec, crop: Rgb) -> sfic.EncodedFace:
    return codec.encode(crop)


def small(picture: Rgb) -> npt.NDArray[np.float64]:
    return np.asarray(cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA), np.float64)


def distance(a: Rgb, b: Rgb) -> float:
    return float(np.abs(small(a) - small(b)).mean())


def test_bytes_grow_with_the_rate_and_stay_under_the_limit(codec: sfic.Codec, crop: Rgb) -> None:
    sizes = [codec.encode(crop, rate=rate).total_bytes for rate in (1, 3, 5, 7, 9)]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < 200 and sizes[-1] <= MOST_BYTES


def test_each_layer_brings_the_picture_nearer(
    codec: sfic.Codec, crop: Rgb, face: sfic.EncodedFace
) -> None:
    grey = np.full_like(crop, 128)
    mean = np.broadcast_to(crop.mean(axis=(0, 1)).astype(np.uint8), crop.shape)
    basic, middle, whole = (distance(codec.decode(face, n, 256), crop) for n in LAYERS)
    assert whole < middle < 0.9 * basic
    assert basic < distance(np.asarray(mean), crop) < distance(grey, crop)


def test_a_higher_rate_is_nearer(codec: sfic.Codec, crop: Rgb) -> None:
    low, high = codec.encode(crop, rate=1), codec.encode(crop, rate=9)
    assert distance(codec.decode(high, size=128), crop) < distance(
        codec.decode(low, size=128), crop
    )


def test_sizes_show_the_same_face(codec: sfic.Codec, face: sfic.EncodedFace) -> None:
    largest = codec.decode(face)
    assert largest.shape == (1024, 1024, 3) and largest.dtype == np.uint8
    for size in codec.sizes[:-1]:
        picture = codec.decode(face, size=size)
        assert picture.shape == (size, size, 3)
        assert distance(picture, largest) < 12, size


def test_encoding_and_decoding_are_deterministic(
    codec: sfic.Codec, crop: Rgb, face: sfic.EncodedFace
) -> None:
    assert codec.encode(crop) == face
    assert np.array_equal(codec.decode(face, size=128), codec.decode(face, size=128))


@pytest.mark.parametrize("target", [120, 200, 300])
def test_target_bytes_are_met_within_5_percent(codec: sfic.Codec, crop: Rgb, target: int) -> None:
    total = codec.encode(crop, target_bytes=target).total_bytes
    assert 0.95 * target <= total <= target


def test_a_target_that_is_too_small_says_what_is_possible(codec: sfic.Codec, crop: Rgb) -> None:
    with pytest.raises(InvalidInput, match="at least"):
        codec.encode(crop, target_bytes=16)


def test_effort_1_saves_bytes_at_little_cost(codec: sfic.Codec, crop: Rgb) -> None:
    plain, greedy = codec.encode(crop, rate=7), codec.encode(crop, rate=7, effort=1)
    assert greedy.total_bytes < plain.total_bytes
    at = {e: distance(codec.decode(f, size=128), crop) for e, f in ((0, plain), (1, greedy))}
    assert at[1] < 1.2 * at[0]


def test_layers_that_are_not_asked_for_are_not_made(codec: sfic.Codec, crop: Rgb) -> None:
    whole = codec.encode(crop)
    for layer in ("basic", "middle"):
        assert codec.encode(crop, layers=layer).layers == whole.up_to(layer).layers
    with pytest.raises(InvalidInput, match="unknown layer"):
        codec.encode(crop, layers="all")


def test_effort_1_and_a_target_hold_without_the_enhanced_layer(
    codec: sfic.Codec, crop: Rgb
) -> None:
    greedy = codec.encode(crop, rate=7, effort=1, layers="middle")
    assert list(greedy.layers) == ["basic", "middle"]
    assert greedy.layers == codec.encode(crop, rate=7, effort=1).up_to("middle").layers
    for effort in (0, 1):
        fitted = codec.encode(crop, target_bytes=200, effort=effort, layers="middle")
        assert 190 <= fitted.total_bytes <= 200
        assert distance(codec.decode(fitted, "middle", 128), crop) < 25


def test_a_picture_becomes_faces_with_a_place(codec: sfic.Codec, astronaut: Rgb) -> None:
    (face,) = codec.encode_picture(astronaut)
    assert face.placement is not None and 0 < face.face_score <= 1
    assert face.source_size == pytest.approx(face.placement.source_size)
    assert codec.encode_picture(np.zeros((200, 300, 3), np.uint8)) == []


def test_machine_tasks_from_the_basic_layer_alone(
    codec: sfic.Codec, face: sfic.EncodedFace
) -> None:
    result = codec.analyze(face.basic)
    assert np.linalg.norm(result.embedding) == pytest.approx(1, abs=1e-4)
    assert result.gender.value < 0.5 and result.smile.value > 0.5
    assert 20 < result.age.value < 60
    assert result.landmarks.shape == (68, 2)
    eyes = result.landmarks[36:42].mean(axis=0), result.landmarks[42:48].mean(axis=0)
    assert eyes[0][0] < 0.5 < eyes[1][0] and abs(result.pose.yaw) < 25


def test_a_broken_packet_in_a_batch_does_not_spoil_the_others(
    codec: sfic.Codec, face: sfic.EncodedFace
) -> None:
    good, bad, again = codec.analyze_batch([face.basic, face.basic[:-3], face.basic])
    assert isinstance(bad, PacketError)
    assert not isinstance(good, SficError) and not isinstance(again, SficError)
    np.testing.assert_allclose(good.embedding, again.embedding, atol=1e-5)


def test_a_lost_layer_costs_only_quality(codec: sfic.Codec, face: sfic.EncodedFace) -> None:
    assert codec.decode(face.up_to("middle"), "middle", 128).shape == (128, 128, 3)
    with pytest.raises(LayerMissing, match="enhanced"):
        codec.decode(face.up_to("middle"), "enhanced", 128)


def test_layers_of_another_face_are_refused(codec: sfic.Codec, crop: Rgb) -> None:
    one, other = codec.encode(crop), codec.encode(np.ascontiguousarray(crop[:, ::-1]))
    with pytest.raises(PacketError):
        codec.decode(dataclasses.replace(one, middle=other.middle), "middle", 128)


def test_a_packet_of_another_bundle_is_refused_by_name(
    codec: sfic.Codec, face: sfic.EncodedFace
) -> None:
    foreign = bytes([face.basic[0], face.basic[1] ^ 1, *face.basic[2:]])
    with pytest.raises(BundleMismatch, match=codec.model_bundle[:4]):
        codec.analyze(foreign)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 32, 3), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64, 4), np.uint8),
    ],
)
def test_other_arrays_are_not_crops(codec: sfic.Codec, wrong: Rgb) -> None:
    with pytest.raises(InvalidInput, match="crop"):
        codec.encode(wrong)


def test_settings_out_of_range(codec: sfic.Codec, crop: Rgb, face: sfic.EncodedFace) -> None:
    with pytest.raises(InvalidInput, match="rate"):
        codec.encode(crop, rate=10)
    with pytest.raises(InvalidInput, match="effort"):
        codec.encode(crop, effort=4)
    with pytest.raises(InvalidInput, match="128"):
        codec.decode(face, size=100)
    with pytest.raises(InvalidInput, match="layer"):
        codec.decode(face, "best")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_packets_end_in_a_typed_error(
    codec: sfic.Codec, face: sfic.EncodedFace, data: st.DataObject
) -> None:
    layer = data.draw(st.sampled_from(LAYERS))
    packet = bytearray(face.layers[layer])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(packet) - 1))
        packet[place] ^= data.draw(st.integers(1, 255))
    packet = (
        packet[: data.draw(st.integers(0, len(packet)))] if data.draw(st.booleans()) else packet
    )
    if bytes(packet) == face.layers[layer] or not packet:
        return
    changed = dataclasses.replace(face, **{layer: bytes(packet)})
    with pytest.raises(SficError):
        codec.decode_symbols(changed, layer)


def test_a_bundle_whose_heads_lack_a_task_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfic.codec.HEADS", ("age", "shoe_size"))
    with pytest.raises(BundleError, match=r"no head for shoe_size.*train_heads"):
        sfic.Codec.load()


def test_a_bundle_with_a_changed_file_does_not_load(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    for name in (*BUNDLE_FILES, "bundle.json"):
        (folder / name).symlink_to(models_dir() / name)
    assert ModelBundle.load(folder).hash == ModelBundle.load().hash
    (folder / "heads.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks heads\.onnx"):
        ModelBundle.load(folder)
    data = bytearray((models_dir() / "heads.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "heads.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="is not the file"):
        ModelBundle.load(folder)
