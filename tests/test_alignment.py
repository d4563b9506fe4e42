"""The FFHQ square: where it lies, what the crop shows, pasting back, and the face score."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfic.alignment import Placement, align, paste_back, place
from sfic.detection import DetectedFace, FaceDetector
from sfic.errors import InvalidInput
from sfic.face_score import FaceScore, face_score, pose_of
from sfic.pictures import read_picture
from sfic.sampling import sample_square


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def only_face(detector: FaceDetector, picture: NDArray[np.uint8]) -> DetectedFace:
    (face,) = detector.detect(picture, min_size=20)
    return face


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def square(x: float, y: float, side: float, turn: float, width: int, height: int) -> Placement:
    """A placement by its centre, side and clockwise turn in radians."""
    u = side * math.cos(turn), side * math.sin(turn)
    v = -u[1], u[0]
    corner = x - (u[0] + v[0]) / 2, y - (u[1] + v[1]) / 2
    return Placement(((u[0], v[0], corner[0]), (u[1], v[1], corner[1])), width, height)


squares = st.builds(
    square,
    x=st.floats(0, 512),
    y=st.floats(0, 512),
    side=st.floats(20, 700),
    turn=st.floats(-math.pi, math.pi),
    width=st.just(512),
    height=st.just(512),
)


def test_realigning_ffhq_gives_the_same_crop(detector: FaceDetector, shared_dir: Path) -> None:
    root = shared_dir / "data" / "faces"
    with (root / "index.csv").open() as index:
        rows = [row for row in csv.DictReader(index) if row["set"] == "ffhq256"]
    shifts, scales, turns = [], [], []
    for row in rows[1:160:4]:  # odd rows: the constants were fitted on even ones
        picture = read_picture(root / row["path"])
        size = picture.shape[0]
        faces = detector.detect(picture)
        face = min(faces, key=lambda f: abs(sum(f.box) / 2 - size))  # the one in the middle
        placement = align(picture, face, 64)[1]
        shifts.append((placement.to_picture(np.array([[0.5, 0.5]]))[0] - size / 2) / size)
        scales.append(math.log(placement.source_size / size))
        turns.append(math.degrees(math.atan2(placement.matrix[1][0], placement.matrix[0][0])))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.004
    assert np.linalg.norm(shifts, axis=1).mean() < 0.012
    assert abs(np.mean(scales)) < 0.02
    assert np.abs(scales).mean() < 0.04
    assert abs(np.mean(turns)) < 0.7


def test_crop_does_not_depend_on_how_the_face_is_turned(
    detector: FaceDetector, astronaut: NDArray[np.uint8]
) -> None:
    upright, _ = align(astronaut, only_face(detector, astronaut), 128)
    for angle in (-40, 25):
        turn = cv2.getRotationMatrix2D((225, 150), -angle, 1.0)
        turned = np.asarray(cv2.warpAffine(astronaut, turn, (512, 512)), dtype=np.uint8)
        crop, placement = align(turned, only_face(detector, turned), 128)
        (a, _, _), (d, _, _) = placement.matrix
        assert math.degrees(math.atan2(d, a)) == pytest.approx(angle + 3, abs=4)
        assert psnr(crop[24:-24, 24:-24], upright[24:-24, 24:-24]) > 20


def test_crop_does_not_depend_on_its_size(
    detector: FaceDetector, astronaut: NDArray[np.uint8]
) -> None:
    face = only_face(detector, astronaut)
    large, placement = align(astronaut, face, 1024)
    assert large.shape == (1024, 1024, 3)
    assert 150 < placement.source_size < 190
    for size in (512, 256):
        crop, same = align(astronaut, face, size)
        assert same == placement
        reduced = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
        assert psnr(crop, np.asarray(reduced, dtype=np.uint8)) > 38


def test_large_pictures_are_reduced_without_aliasing() -> None:
    """Stripes finer than the crop's pixels must come out grey, not as a moire pattern."""
    stripes = np.zeros((2000, 2000, 3), np.uint8)
    stripes[:, ::3] = 255
    crop = sample_square(stripes, square(1000, 1000, 1500, 0.3, 2000, 2000).affine, 128)
    assert crop.std() < 6 and abs(crop.mean() - 85) < 3


def test_sampling_is_exact_on_the_grid(astronaut: NDArray[np.uint8]) -> None:
    matrix = square(164, 264, 128, 0.0, 512, 512).affine
    np.testing.assert_array_equal(
        sample_square(astronaut, matrix, 128), astronaut[200:328, 100:228]
    )


def test_beyond_the_edge_the_crop_is_reflected_blurred_and_faded(
    astronaut: NDArray[np.uint8],
) -> None:
    matrix = square(60, 256, 240, 0.0, 512, 512).affine  # reaches 60 pixels over the left edge
    crop = sample_square(astronaut, matrix, 240, soft_border=True)
    assert psnr(crop[:, 150:], astronaut[136:376, 90:180]) > 40  # untouched inside
    outer = crop[:, :30].astype(float)
    assert np.abs(np.diff(outer, axis=0)).mean() < 2.0  # blurred
    seam = np.abs(crop[:, 60].astype(int) - crop[:, 59]).mean()
    assert seam < 8


@given(where=squares)
@settings(max_examples=40, deadline=None)
def test_placement_maps_there_and_back_and_through_json(where: Placement) -> None:
    points = np.random.default_rng(0).random((5, 2))
    np.testing.assert_allclose(where.to_crop(where.to_picture(points)), points, atol=1e-9)
    assert Placement.from_dict(json.loads(json.dumps(where.to_dict()))) == where
    sides = np.linalg.norm(np.roll(where.quad, -1, axis=0) - where.quad, axis=1)
    np.testing.assert_allclose(sides, where.source_size, rtol=1e-9)


@given(where=squares, size=st.sampled_from([16, 96, 300]), feather=st.floats(0, 0.5))
@settings(max_examples=25, deadline=None)
def test_pasting_a_flat_crop_into_a_flat_frame(where: Placement, size: int, feather: float) -> None:
    frame = np.full((512, 512, 3), 100, np.uint8)
    same = paste_back(frame, np.full((size, size, 3), 100, np.uint8), where, feather)
    np.testing.assert_array_equal(same, frame)
    bright = paste_back(frame, np.full((size, size, 3), 200, np.uint8), where, feather)
    assert bright.min() >= 100 and bright.max() <= 200
    y, x = np.mgrid[0:512, 0:512] + 0.5
    u, v = where.to_crop(np.stack([x.ravel(), y.ravel()], axis=1)).T
    margin = 2 / where.source_size
    outside = (np.minimum(u, v) < -margin) | (np.maximum(u, v) > 1 + margin)
    assert (bright.reshape(-1, 3)[outside] == 100).all()
    within = feather + margin
    core = (np.minimum(u, v) > within) & (np.maximum(u, v) < 1 - within)
    assert (bright.reshape(-1, 3)[core] == 200).all()


@pytest.mark.parametrize("size", [256, 1024])
def test_cut_and_paste_changes_next_to_nothing(
    detector: FaceDetector, astronaut: NDArray[np.uint8], size: int
) -> None:
    crop, placement = align(astronaut, only_face(detector, astronaut), size)
    before = astronaut.copy()
    pasted = paste_back(astronaut, crop, placement)
    np.testing.assert_array_equal(astronaut, before)
    assert psnr(pasted, astronaut) > 45
    low, high = placement.quad.min(axis=0).astype(int), placement.quad.max(axis=0).astype(int) + 1
    inside = (slice(low[1], high[1]), slice(low[0], high[0]))
    assert psnr(pasted[inside], astronaut[inside]) > 36


def test_no_seam_shows_around_a_pasted_crop(
    detector: FaceDetector, astronaut: NDArray[np.uint8]
) -> None:
    crop, placement = align(astronaut, only_face(detector, astronaut), 256)
    brighter = np.clip(crop.astype(int) + 40, 0, 255).astype(np.uint8)
    flat = np.full_like(astronaut, 90)
    soft = paste_back(flat, np.full_like(crop, 130), placement, feather=0.15).astype(int)
    assert max(np.abs(np.diff(soft, axis=axis)).max() for axis in (0, 1)) <= 4
    hard = paste_back(flat, np.full_like(crop, 130), placement, feather=0.0).astype(int)
    assert np.abs(np.diff(hard, axis=0)).max() > 15
    assert (paste_back(astronaut, brighter, placement) != astronaut).any()


def test_pasting_into_a_scaled_frame(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    crop, placement = align(astronaut, only_face(detector, astronaut), 512)
    half = np.asarray(cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA), np.uint8)
    assert psnr(paste_back(half, crop, placement), half) > 38
    with pytest.raises(InvalidInput, match="does not match"):
        paste_back(half[:100], crop, placement)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"matrix": [[1, 0, 0]], "width": 5, "height": 5},
        {"matrix": [[1, 0, 0], [0, 1]], "width": 5, "height": 5},
        {"matrix": [[1, 0, 0], [2, 0, 0]], "width": 5, "height": 5},
        {"matrix": [[1, 0, float("nan")], [0, 1, 0]], "width": 5, "height": 5},
        {"matrix": [[1, 0, 0], [0, 1, 0]], "width": 0, "height": 5},
        {"matrix": [["a", 0, 0], [0, 1, 0]], "width": 5, "height": 5},
        {"matrix": 3, "width": 5, "height": 5},
    ],
)
def test_broken_placements_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="placement"):
        Placement.from_dict(broken)


def test_wrong_input_is_refused(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    face = only_face(detector, astronaut)
    crop, placement = align(astronaut, face, 64)
    with pytest.raises(InvalidInput, match="size"):
        align(astronaut, face, 8)
    with pytest.raises(InvalidInput, match="do not form a face"):
        place(np.zeros((468, 3)), 10, 10)
    with pytest.raises(InvalidInput, match="crop"):
        paste_back(astronaut, crop[:10], placement)
    with pytest.raises(InvalidInput, match="feather"):
        paste_back(astronaut, crop, placement, feather=0.7)
    with pytest.raises(InvalidInput, match="frame"):
        paste_back(astronaut[:, :, 0], crop, placement)


def score_of(detector: FaceDetector, picture: NDArray[np.uint8]) -> FaceScore:
    face = only_face(detector, picture)
    crop, placement = align(picture, face, 256)
    return face_score(crop, face, placement)


def test_face_score_falls_with_blur(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    pictures = [np.asarray(cv2.GaussianBlur(astronaut, (0, 0), s), np.uint8) for s in (1, 2, 4)]
    scores = [score_of(detector, picture) for picture in (astronaut, *pictures)]
    for better, worse in zip(scores, scores[1:], strict=False):
        assert worse.score < better.score - 0.05
        assert worse.blur > better.blur


def test_face_score_falls_with_size(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    scores = []
    for factor in (1.0, 0.7, 0.5, 0.3):
        small = cv2.resize(astronaut, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        scores.append(score_of(detector, np.asarray(small, dtype=np.uint8)))
        assert scores[-1].size == pytest.approx(scores[0].size * factor, rel=0.05)
    for better, worse in zip(scores, scores[1:], strict=False):
        assert worse.score < better.score - 0.05
    assert 0.7 < scores[0].score <= 1.0


def test_face_score_falls_as_the_head_turns(
    detector: FaceDetector, astronaut: NDArray[np.uint8]
) -> None:
    face = only_face(detector, astronaut)
    crop, placement = align(astronaut, face, 256)
    scores, yaws = [], []
    for degrees in (0, 25, 50, 75):
        angle = math.radians(degrees)
        turn = np.array(
            [
                [math.cos(angle), 0, -math.sin(angle)],
                [0, 1, 0],
                [math.sin(angle), 0, math.cos(angle)],
            ]
        )
        mesh = (face.landmarks @ turn.T).astype(np.float32)
        turned = DetectedFace(face.box, face.score, face.presence, face.keypoints, mesh)
        result = face_score(crop, turned, placement)
        scores.append(result.score)
        yaws.append(result.pose.yaw)
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.6 * scores[0]
    assert np.allclose(np.diff(yaws), 25, atol=2)


def test_pose_mirrors_with_the_picture(
    detector: FaceDetector, astronaut: NDArray[np.uint8]
) -> None:
    pose = pose_of(only_face(detector, astronaut).landmarks)
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    other = pose_of(only_face(detector, mirrored).landmarks)
    assert pose.yaw == pytest.approx(-other.yaw, abs=4)
    assert pose.roll == pytest.approx(-other.roll, abs=2)
    assert pose.pitch == pytest.approx(other.pitch, abs=4)
    assert abs(pose.yaw) < 10 and abs(pose.pitch) < 15 and abs(pose.roll) < 8
    with pytest.raises(InvalidInput, match="do not form a face"):
        pose_of(np.zeros((468, 3)))
