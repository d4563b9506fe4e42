"""Finding faces: real photographs at any size and angle, many at once, and none."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sfic.detection import DetectedFace, FaceDetector
from sfic.errors import BundleError, InvalidInput
from sfic.locations import models_dir
from sfic.pictures import read_picture

ASTRONAUT_FACE = (225, 120)  # centre of the face in the astronaut's picture, by eye
LEFT_EYE_OUTER, RIGHT_EYE_OUTER, NOSE = 263, 33, 1


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def centre(face: DetectedFace) -> NDArray[np.float64]:
    return np.array([(face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2])


def background(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(7)
    coarse = rng.integers(60, 200, (height // 60, width // 60, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height)), dtype=np.uint8)


def test_finds_the_astronaut(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    (face,) = detector.detect(astronaut)
    assert np.linalg.norm(centre(face) - ASTRONAUT_FACE) < 15
    assert 80 < face.size < 130
    assert face.score > 0.5 and face.presence > 0.9
    assert face.landmarks.shape == (468, 3) and face.keypoints.shape == (6, 2)
    # The person's left eye is on the picture's right; both networks must agree on where it is.
    right, left = face.landmarks[[RIGHT_EYE_OUTER, LEFT_EYE_OUTER], :2]
    assert left[0] - right[0] > 30
    assert np.linalg.norm(face.keypoints[2] - face.landmarks[NOSE, :2]) < 12


def test_each_frame_has_its_one_face(detector: FaceDetector, shared_dir: Path) -> None:
    frames = sorted((shared_dir / "data" / "frames").glob("*.jpg"))
    assert len(frames) == 32
    found = {path.name: len(detector.detect(read_picture(path))) for path in frames}
    assert {name: n for name, n in found.items() if n != 1} == {}


@pytest.mark.parametrize("angle", [-60, -45, -20, 20, 45, 60])
def test_turned_faces(detector: FaceDetector, astronaut: NDArray[np.uint8], angle: int) -> None:
    turn = cv2.getRotationMatrix2D((256, 256), -angle, 0.8)  # OpenCV turns counter-clockwise
    turned = np.asarray(cv2.warpAffine(astronaut, turn, (512, 512)), dtype=np.uint8)
    (upright,), (face,) = detector.detect(astronaut), detector.detect(turned)
    expected = upright.landmarks[:, :2] @ turn[:, :2].T + turn[:, 2]
    error = np.linalg.norm(face.landmarks[:, :2] - expected, axis=1)
    assert error.mean() < 0.04 * upright.size * 0.8


def test_eight_faces_of_many_sizes_in_4k(
    detector: FaceDetector, astronaut: NDArray[np.uint8]
) -> None:
    picture = background(2160, 3840)
    head = astronaut[0:260, 100:360]
    centres, sizes = [], [45, 60, 80, 110, 160, 250, 400, 700]  # pixels of the face's box
    for i, size in enumerate(sizes):
        scaled = cv2.resize(head, None, fx=size / 108, fy=size / 108, interpolation=cv2.INTER_AREA)
        left, top = 30 + (i % 4) * 420, 40 + (i // 4) * 1000
        if size >= 400:
            left, top = (1080, 1100) if size == 400 else (2150, 470)
        picture[top : top + len(scaled), left : left + scaled.shape[1]] = scaled
        place = (np.array(ASTRONAUT_FACE) - (100, 0)) * size / 108
        centres.append(place + (left, top))
    faces = detector.detect(picture)
    assert [face.size for face in faces] == sorted((face.size for face in faces), reverse=True)
    assert len(faces) == len(sizes)
    for face, size, where in zip(faces, sizes[::-1], centres[::-1], strict=True):
        assert face.size == pytest.approx(size, rel=0.12)
        assert np.linalg.norm(centre(face) - where) < 0.2 * size


def test_max_faces_is_kept(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    three = np.concatenate([astronaut[:300]] * 3, axis=1)
    assert [len(detector.detect(three, max_faces=n)) for n in (1, 2, 9)] == [1, 2, 3]


def test_a_face_across_tile_borders_is_found_once(
    detector: FaceDetector, astronaut: NDArray[np.uint8]
) -> None:
    small = cv2.resize(astronaut, (190, 190), interpolation=cv2.INTER_AREA)  # face of 40 pixels
    for left in (300, 600, 700, 750, 790):
        picture = background(900, 1600)
        picture[400:590, left : left + 190] = small
        (face,) = detector.detect(picture)
        expected = np.array(ASTRONAUT_FACE) * 190 / 512 + (left, 400)
        assert np.linalg.norm(centre(face) - expected) < 8


def test_close_up_and_tiny_pictures(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    close = np.ascontiguousarray(astronaut[50:190, 155:295])  # nothing but the face
    assert len(detector.detect(close)) == 1
    for shape in ((1, 1), (5, 3), (40, 600)):
        assert detector.detect(np.full((*shape, 3), 127, np.uint8)) == []


def test_grey_faces(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    grey = np.repeat(astronaut.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    assert len(detector.detect(grey)) == 1


def test_noise_has_no_faces(detector: FaceDetector) -> None:
    rng = np.random.default_rng(1)
    assert detector.detect(rng.integers(0, 256, (720, 1280, 3), dtype=np.uint8)) == []
    assert detector.detect(background(720, 1280)) == []


def test_pictures_without_people(detector: FaceDetector) -> None:
    pytest.importorskip("skimage", reason="scikit-image brings the pictures")
    from skimage import data

    names = ("coffee", "chelsea", "rocket", "coins", "moon", "brick", "clock", "hubble_deep_field")
    found = {}
    for name in names:
        picture = getattr(data, name)()
        if picture.ndim == 2:
            picture = np.repeat(picture[:, :, None], 3, axis=2)
        found[name] = len(detector.detect(np.ascontiguousarray(picture[:, :, :3]), min_size=20))
    assert found == dict.fromkeys(names, 0)


def test_wrong_input_is_refused(detector: FaceDetector, astronaut: NDArray[np.uint8]) -> None:
    for wrong in (astronaut[:, :, 0], astronaut[:0], astronaut.astype(np.float32)):
        with pytest.raises(InvalidInput, match="expected uint8"):
            detector.detect(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="at least 1"):
        detector.detect(astronaut, max_faces=0)
    with pytest.raises(InvalidInput, match="at least 1"):
        detector.detect(astronaut, min_size=float("nan"))


def test_missing_or_damaged_model(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing"):
        FaceDetector(detector=tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="damaged"):
        FaceDetector(landmarks=tmp_path / "bad.onnx")


@pytest.mark.parametrize("name", ["detector", "landmarks"])
def test_model_cards_name_the_files_committed(name: str) -> None:
    card = (models_dir() / f"{name}.md").read_text()
    stated = re.findall(r"sha256[^0-9a-f]*([0-9a-f]{64})", card)
    assert hashlib.sha256((models_dir() / f"{name}.onnx").read_bytes()).hexdigest() in stated
