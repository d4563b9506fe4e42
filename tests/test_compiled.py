"""Compiled networks kept for the next start: whole ones come back, others are made anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfic import compiled
from sfic.compiled import FOLDER_VARIABLE, folder, keep, kept
from sfic.locations import models_dir

KEY, OTHER = "ab" * 32, "cd" * 32
ARRAYS = {"blob": np.arange(1000, dtype=np.uint8), "noise_0": np.ones((1, 1, 4, 4), np.float32)}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "compiled"))
    return tmp_path / "compiled"


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_what_is_kept_comes_back(place: Path) -> None:
    assert kept(KEY) is None
    keep(KEY, ARRAYS)
    back = kept(KEY)
    assert back is not None and same(back, ARRAYS)
    assert kept(OTHER) is None
    assert len(list(place.iterdir())) == 1, "no unfinished files"
    assert place.stat().st_mode & 0o077 == 0, "nobody else's business"


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d[:40] + b"x" + d[41:], lambda d: b""]
)
def test_what_is_cut_or_changed_is_dropped(place: Path, change: Any) -> None:
    keep(KEY, ARRAYS)
    (file,) = place.iterdir()
    file.write_bytes(change(file.read_bytes()))
    assert kept(KEY) is None
    assert not file.exists()


def test_nothing_is_kept_where_nothing_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    for named in ("", str(in_the_way), str(in_the_way / "below")):
        monkeypatch.setenv(FOLDER_VARIABLE, named)
        keep(KEY, ARRAYS)
        assert kept(KEY) is None


def test_the_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "sfic" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache" / "sfic" / "compiled"


def test_the_longest_unused_go_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MOST_BYTES", 5500)
    names = [f"{i}{KEY[1:]}" for i in range(3)]
    for age, name in enumerate(names[:2]):
        keep(name, ARRAYS)
        os.utime(place / f"{name}.compiled", (age, age))
    assert kept(names[0]) is not None, "and so it is the last that was used"
    keep(names[2], {"blob": np.zeros(2500, np.uint8)})
    assert kept(names[1]) is None
    assert kept(names[0]) is not None and kept(names[2]) is not None


def test_a_network_that_is_kept_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from sfic.openvino_session import OpenVinoSession

    path = models_dir() / "styles.onnx"
    given = {
        node.name: np.random.default_rng(1).normal(size=[1, *node.shape[1:]]).astype(np.float32)
        for node in OpenVinoSession(path).get_inputs()
    }
    first = OpenVinoSession(path)
    (wanted,) = first.run(["styles_enhanced"], given)

    def never(session: OpenVinoSession) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoSession, "_read", never)
        second = OpenVinoSession(path)
        assert second.get_inputs() == first.get_inputs()
        assert second.get_outputs() == first.get_outputs()
        assert np.array_equal(second.run(["styles_enhanced"], given)[0], wanted)
        with pytest.raises(AssertionError, match="read again"):
            OpenVinoSession(path, threads=3)
    # A graph that OpenVINO does not take, though whole as a file.
    for file in list(compiled.folder().iterdir()):  # type: ignore[union-attr]
        arrays = kept(file.stem)
        assert arrays is not None
        if "blob" in arrays:
            keep(file.stem, {**arrays, "blob": np.zeros(64, np.uint8)})
    third = OpenVinoSession(path)
    assert np.array_equal(third.run(["styles_enhanced"], given)[0], wanted)
