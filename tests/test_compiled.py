"""Compiled networks kept for the next start: whole ones come back, others are made anew."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfic import compiled
from sfic.compiled import FOLDER_VARIABLE, can_store, folder, load, store
from sfic.errors import BundleError
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
    assert load(KEY) is None
    store(KEY, ARRAYS)
    back = load(KEY)
    assert back is not None and same(back, ARRAYS)
    assert load(OTHER) is None
    assert len(list(place.iterdir())) == 1, "no unfinished files"
    assert place.stat().st_mode & 0o077 == 0, "nobody else's business"


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d[:40] + b"x" + d[41:], lambda d: b""]
)
def test_what_is_cut_or_changed_is_dropped(place: Path, change: Any) -> None:
    store(KEY, ARRAYS)
    (file,) = place.iterdir()
    file.write_bytes(change(file.read_bytes()))
    assert load(KEY) is None
    assert not file.exists()


def test_nothing_is_kept_where_nothing_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    for named in ("", str(in_the_way), str(in_the_way / "below")):
        monkeypatch.setenv(FOLDER_VARIABLE, named)
        assert not can_store()
        store(KEY, ARRAYS)
        assert load(KEY) is None


def test_only_our_own_files_go_and_too_large_ones_are_not_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.mkdir(mode=0o700)
    foreign = place / "faces.sqlite"
    foreign.write_bytes(bytes(9000))
    monkeypatch.setattr(compiled, "MOST_BYTES", 5500)
    store(KEY, ARRAYS)
    store(OTHER, {"blob": np.zeros(6000, np.uint8)})
    assert load(KEY) is not None and load(OTHER) is None
    assert foreign.stat().st_size == 9000


def test_a_folder_that_others_can_write_to_is_not_read(place: Path) -> None:
    store(KEY, ARRAYS)
    (file,) = place.iterdir()
    file.chmod(0o622)
    assert load(KEY) is None
    file.chmod(0o600)
    assert load(KEY) is not None
    place.chmod(0o777)
    assert load(KEY) is None


def test_links_are_not_followed(place: Path, tmp_path: Path) -> None:
    store(KEY, ARRAYS)
    (file,) = place.iterdir()
    (place / f"{OTHER}.compiled").symlink_to(file)
    assert load(OTHER) is None


def test_whole_files_of_another_form_are_dropped(place: Path) -> None:
    store(KEY, ARRAYS)
    (file,) = place.iterdir()
    content = b"not arrays"
    file.write_bytes(compiled._MAGIC + hashlib.sha256(content).digest() + content)
    assert load(KEY) is None
    assert not file.exists()


def test_many_threads_at_once(place: Path) -> None:
    def turn(number: int) -> bool:
        key = f"{number % 4}{KEY[1:]}"
        store(key, ARRAYS)
        back = load(key)
        return back is not None and same(back, ARRAYS)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(turn, range(64)))
    assert all(path.suffix == ".compiled" for path in place.iterdir())


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
        store(name, ARRAYS)
        os.utime(place / f"{name}.compiled", (age, age))
    assert load(names[0]) is not None, "and so it is the last that was used"
    store(names[2], {"blob": np.zeros(2500, np.uint8)})
    assert load(names[1]) is None
    assert load(names[0]) is not None and load(names[2]) is not None


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


@pytest.mark.parametrize("change", ["blob", "no blob", "described"])
def test_what_openvino_does_not_take_is_compiled_again(change: str) -> None:
    """Though whole as a file."""
    pytest.importorskip("openvino")
    from sfic.openvino_session import OpenVinoSession

    path = models_dir() / "styles.onnx"
    first = OpenVinoSession(path)
    given = {n.name: np.ones([1, *n.shape[1:]], np.float32) for n in first.get_inputs()}
    (wanted,) = first.run(["styles_enhanced"], given)
    root = folder()
    assert root is not None
    for file in list(root.iterdir()):
        arrays = load(file.stem)
        assert arrays is not None
        if change == "described" and "described" in arrays:
            store(file.stem, {"described": np.array("[1]")})
        elif change == "blob" and "blob" in arrays:
            store(file.stem, {**arrays, "blob": np.zeros(64, np.uint8)})
        elif change == "no blob" and "blob" in arrays:
            store(file.stem, {"other": np.zeros(1)})
    again = OpenVinoSession(path)
    assert np.array_equal(again.run(["styles_enhanced"], given)[0], wanted)


@pytest.mark.parametrize(
    ("name", "output", "exact"),
    [
        ("generator_high.onnx", "image_128", False),  # has noise as an input
        ("correction.onnx", "picture", False),
        ("landmarks.onnx", "landmarks", True),
    ],
)
def test_a_kept_network_says_the_same(name: str, output: str, exact: bool) -> None:
    pytest.importorskip("openvino")
    from sfic.onnx_outputs import keep_outputs
    from sfic.openvino_session import OpenVinoSession

    network = keep_outputs((models_dir() / name).read_bytes(), {output}, None)
    rng = np.random.default_rng(3)
    found = []
    for _ in range(2):
        session = OpenVinoSession(network, 1, exact=exact)
        if not found:
            given = {
                node.name: rng.uniform(0, 1, [1, *node.shape[1:]] if node.shape else [])
                for node in session.get_inputs()
            }
            kinds = {"row": np.int64, "image": np.uint8}
            given = {k: v.astype(kinds.get(k, np.float32)) for k, v in given.items()}
        found.append(session.run([output], given)[0])
    assert np.array_equal(*found)


def test_a_network_that_is_exchanged_in_use_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from sfic.openvino_session import OpenVinoSession

    path = tmp_path / "network.onnx"
    path.write_bytes((models_dir() / "styles.onnx").read_bytes())
    session = OpenVinoSession(path)
    path.write_bytes((models_dir() / "heads.onnx").read_bytes())
    two = {n.name: np.ones([2, *n.shape[1:]], np.float32) for n in session.get_inputs()}
    with pytest.raises(BundleError, match="exchanged"):
        session.run(["styles_enhanced"], two)
