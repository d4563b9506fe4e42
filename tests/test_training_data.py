"""Augmentation: points move with the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from training.data import (  # noqa: E402
    FaceRow,
    Geometry,
    augment_geometry,
    degrade_capture,
    read_facial_hair,
)
from training.mesh_points import FLIP_68  # noqa: E402
from training.train_heads import facial_hair_of  # noqa: E402


@pytest.mark.parametrize("seed", range(6))
def test_points_stay_on_what_they_mark(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.25, 0.75, (68, 2)).astype(np.float32)
    size = 128
    move = Geometry.draw(size, np.random.default_rng(seed), strength=2.0)
    moved = move.move(points, FLIP_68)
    for i in (0, 17, 36, 48):
        picture = np.zeros((size, size, 3), np.uint8)
        x, y = (points[i] * size).astype(int)
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
        rows, columns = np.nonzero(move.apply(picture)[..., 0] > 127)
        j = int(np.flatnonzero(i == FLIP_68)[0]) if move.flip else i
        assert abs(columns.mean() / size - moved[j, 0]) < 0.02
        assert abs(rows.mean() / size - moved[j, 1]) < 0.02


def test_mirroring_twice_is_nothing() -> None:
    assert np.array_equal(FLIP_68[FLIP_68], np.arange(68))


def test_augmentation_keeps_shape_and_type() -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for change in (augment_geometry, degrade_capture):
        made = change(picture, rng)
        assert made.shape == picture.shape and made.dtype == np.uint8


def test_facial_hair_is_taught_where_it_is_known() -> None:
    """Labels first; no label, and surely female: none; else nothing is said."""
    labels = read_facial_hair()
    path, label = next((p, x) for p, x in labels.items() if x == 1)
    rows = [FaceRow(Path(p), "train", "ffhq256", {"path": p}) for p in (path, "a", "b")]
    found = facial_hair_of(rows, np.array([0.0, 0.05, 0.4], np.float32))
    assert found[:2].tolist() == [label, 0.0] and found[2].isnan()
