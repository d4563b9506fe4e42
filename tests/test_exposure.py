"""Faces in too little light: which are made brighter, by how much, and what it is good for."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sfic
from sfic.alignment import align
from sfic.detection import FaceDetector
from sfic.exposure import CLEAR, DIM, WANTED, brighten, darken
from sfic.face import MOST_BRIGHTENED as MOST
from sfic.face import brightened
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.v1.common_pb2 import FaceInfo

Rgb = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def crop() -> Rgb:
    photograph = read_picture(demo_photograph())
    return align(photograph, FaceDetector().detect(photograph)[0], size=256)[0]


def dim(crop: Rgb, share: float) -> Rgb:
    """So much of the light, and a sensor's noise."""
    noise = np.random.default_rng(0).normal(0, 3, crop.shape)
    return np.clip(255 * (crop / 255) * share ** (1 / 2.2) + noise, 0, 255).astype(np.uint8)


def flat(value: int) -> Rgb:
    return np.full((80, 80, 3), value, np.uint8)


def test_a_well_exposed_face_is_left_alone(crop: Rgb) -> None:
    same, factor = brighten(crop)
    assert same is crop and factor == 1.0


def test_a_dark_face_is_made_as_bright_as_it_was(crop: Rgb) -> None:
    bright, factor = brighten(dim(crop, 1 / 8))
    assert 2.0 < factor < 3.0
    assert abs(float(bright.mean()) - float(crop.mean())) < 20


def test_half_the_light_is_a_picture_as_others_and_less_of_it_is_never_darker(crop: Rgb) -> None:
    shares = [1 / 2, 1 / 3, 1 / 4, 1 / 8, 1 / 16]
    means = [float(brighten(dim(crop, share))[0].mean()) for share in shares]
    assert min(means[1:]) > means[0] - 5


@pytest.mark.parametrize("light", [(1.0, 0.4, 0.2), (0.2, 0.3, 1.0)])
def test_coloured_light_keeps_its_hue(crop: Rgb, light: tuple[float, float, float]) -> None:
    tinted = (dim(crop, 1 / 8) * np.array(light)).astype(np.uint8)
    bright, factor = brighten(tinted)
    assert factor > 2.0
    assert (bright == 255).mean() < 0.02
    before, after = tinted.mean(axis=(0, 1)), bright.mean(axis=(0, 1))
    np.testing.assert_allclose(after / after.max(), before / before.max(), atol=0.03)


def test_darken_undoes_it(crop: Rgb) -> None:
    dark = dim(crop, 1 / 8)
    bright, factor = brighten(dark)
    assert np.abs(darken(bright, factor).astype(int) - dark).mean() < 1
    assert darken(bright, 1.0) is bright


def test_the_edges_of_what_is_dark() -> None:
    assert brighten(flat(int(CLEAR)))[1] == 1.0
    assert 1.0 < brighten(flat(int(CLEAR) - 1))[1] < 1.1
    assert brighten(flat(int(DIM)))[1] == pytest.approx(WANTED / DIM)
    assert brighten(flat(0))[1] == MOST


@given(st.integers(0, 254), st.integers(32, 90))
def test_more_light_is_never_brightened_more(value: int, side: int) -> None:
    picture = np.full((side, side, 3), value, np.uint8)
    (bright, factor), (_, next_factor) = brighten(picture), brighten(picture + np.uint8(1))
    assert 1.0 <= next_factor <= factor <= MOST
    assert bright.shape == picture.shape and bright.dtype == np.uint8


def test_a_pipeline_knows_a_face_in_an_eighth_of_the_light(crop: Rgb) -> None:
    codec = sfic.Codec.load(provider="cpu")
    wanted = codec.analyze(codec.encode(crop).basic).embedding

    def likeness(bright: bool) -> float:
        face = codec.encode(dim(crop, 1 / 8), layers="basic", brighten=bright)
        assert (face.brightened > 1.0) == bright
        return float(codec.analyze(face.basic).embedding @ wanted)

    assert likeness(True) > 0.9
    assert likeness(True) > likeness(False)


def test_a_photograph_in_dim_light_is_coded_bright_unless_told_otherwise() -> None:
    codec = sfic.Codec.load(provider="cpu")
    dark = dim(read_picture(demo_photograph()), 1 / 8)
    (bright,) = codec.encode_picture(dark)
    (as_it_is,) = codec.encode_picture(dark, brighten=False)
    assert bright.brightened > 2.0 and as_it_is.brightened == 1.0
    pictures = [codec.decode(face, size=128).mean() for face in (bright, as_it_is)]
    assert pictures[0] > 1.5 * pictures[1]
    fitted = codec.encode_picture(dark, target_bytes=200)[0]
    assert fitted.brightened == bright.brightened and fitted.total_bytes <= 200


@pytest.mark.parametrize(
    ("told", "meant"), [(0, 1), (1, 1), (2.5, 2.5), (8, 8), (9, 1), (math.inf, 1), (math.nan, 1)]
)
def test_a_message_is_believed_where_it_can_be_true(told: float, meant: float) -> None:
    assert brightened(FaceInfo(brightened=told)) == meant
