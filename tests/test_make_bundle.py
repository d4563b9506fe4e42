"""A model bundle of one's own StyleGAN2, made by the one command at toy size and then used.

Both layouts of checkpoints go through every stage; random weights and a few steps give pictures
that are no use, so what is tested is that each part does its work, not how well.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="making a bundle needs the training extra (torch)")
pytest.importorskip("onnx", reason="making a bundle needs the training extra (onnx)")

from test_stylegan2 import LAYOUTS, make_state  # noqa: E402

from sfic import Codec  # noqa: E402
from sfic.alignment import align  # noqa: E402
from sfic.detection import FaceDetector  # noqa: E402
from sfic.errors import BundleMismatch, InvalidInput, LayerMissing  # noqa: E402
from sfic.face import EncodedFace  # noqa: E402
from sfic.locations import demo_photograph  # noqa: E402
from sfic.pictures import read_picture  # noqa: E402
from training.make_bundle import STAGES, main  # noqa: E402
from training.stages import Stages  # noqa: E402

CHANNELS = {4: 16, 8: 16, 16: 12, 32: 8, 64: 6}
TOY = Path(__file__).resolve().parents[1] / "training" / "configs" / "toy.toml"


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    """The demo's photograph, aligned, uint8 [256, 256, 3]."""
    picture = read_picture(demo_photograph())
    return align(picture, FaceDetector().detect(picture)[0], size=256)[0]


@pytest.fixture(scope="module")
def faces(crop: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight aligned pictures: the photograph, a little turned and lit in other ways."""
    import cv2

    from training.data import augment_geometry

    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for i in range(8):
        cv2.imwrite(str(folder / f"{i}.png"), augment_geometry(crop, rng)[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def commands(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The command line for a checkpoint in each layout; run once each."""
    lines = {}
    for seed, layout in enumerate(LAYOUTS):
        root = tmp_path_factory.mktemp(layout)
        state = make_state(layout, CHANNELS, seed=seed)
        torch.save({"G_ema" if layout == "nvidia" else "g_ema": state}, root / "G.pt")
        lines[layout] = [
            *("--generator", str(root / "G.pt"), "--config", str(TOY), "--faces", str(faces)),
            *("--out", str(root / "bundle"), "--work", str(root / "work"), "--threads", "1"),
        ]
        assert main(lines[layout]) == 0
    return lines


def out_of(command: list[str]) -> Path:
    return Path(command[command.index("--out") + 1])


@pytest.fixture(scope="module")
def codecs(commands: dict[str, list[str]]) -> dict[str, Codec]:
    return {name: Codec.load(out_of(line), threads=1) for name, line in commands.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_encodes_and_decodes_at_every_layer(
    codecs: dict[str, Codec], crop: np.ndarray, layout: str
) -> None:
    codec = codecs[layout]
    assert codec.sizes == (64,)
    face = codec.encode(crop, rate=9)
    pictures = [codec.decode(face, layer) for layer in ("basic", "middle", "enhanced")]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    assert all(p.std() > 1 for p in pictures)
    for lower, higher in zip(pictures[:-1], pictures[1:], strict=True):
        assert (lower != higher).any(), "a layer corrects nothing"
    with pytest.raises(InvalidInput, match="size 128 is not one of 64"):
        codec.decode(face, size=128)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lost_layer_costs_only_quality(
    codecs: dict[str, Codec], crop: np.ndarray, layout: str
) -> None:
    codec = codecs[layout]
    face = codec.encode(crop)
    for layer in ("basic", "middle"):
        np.testing.assert_array_equal(
            codec.decode(face.up_to(layer), layer), codec.decode(face, layer)
        )
        with pytest.raises(LayerMissing):
            codec.decode(face.up_to(layer), "enhanced")


def test_packets_of_another_bundle_are_refused_by_name(
    codecs: dict[str, Codec], crop: np.ndarray
) -> None:
    one, other = codecs.values()
    assert one.model_bundle != other.model_bundle
    face = one.encode(crop)
    with pytest.raises(BundleMismatch, match=one.model_bundle[:4]):
        other.decode(face)
    with pytest.raises(BundleMismatch, match=one.model_bundle[:4]):
        other.analyze(face.basic)


def test_tasks_without_a_teacher_have_no_confidence(
    codecs: dict[str, Codec], crop: np.ndarray, commands: dict[str, list[str]]
) -> None:
    codec = codecs["nvidia"]
    teachers = codec.bundle.meta["teachers"]
    assert teachers["embedding"] == "mesh shape"
    assert [task for task, teacher in teachers.items() if teacher is None] == [
        "age", "gender", "smile", "expression", "glasses", "facial_hair", "parsing",
    ]  # fmt: skip
    result = codec.analyze(codec.encode(crop).basic)
    assert result.age.confidence < 0.01
    assert result.gender.confidence == result.smile.confidence == 0.0
    assert result.glasses.confidence == result.facial_hair.confidence == 0.0
    assert abs(result.expression.confidence) < 1e-6
    assert not result.parsing.any()
    assert codec.same_person is None
    np.testing.assert_allclose(np.linalg.norm(result.embedding), 1.0, atol=1e-4)
    # All training faces are this one, so even the mean landmarks lie on it.
    eyes, mouth = result.landmarks[36:48], result.landmarks[48:]
    assert 0.3 < eyes[:, 1].mean() < mouth[:, 1].mean() < 0.9
    assert "no face recognition" in (out_of(commands["nvidia"]) / "bundle.md").read_text()


def test_stages_run_again_only_where_their_inputs_changed(
    commands: dict[str, list[str]], tmp_path: Path
) -> None:
    line = commands["nvidia"]
    log = Path(line[line.index("--work") + 1]) / "make_bundle.log"
    manifest = out_of(line) / "bundle.json"

    def run(config: Path) -> tuple[str, str]:
        before = log.stat().st_size
        again = [str(config) if part == str(TOY) else part for part in line]
        assert main([*again, "--out", str(tmp_path / config.stem)]) == 0
        made = json.loads((tmp_path / config.stem / "bundle.json").read_text())["hash"]
        return made, log.read_text()[before:]

    name, text = run(TOY)
    assert name == json.loads(manifest.read_text())["hash"]
    assert text.count("done before") == STAGES
    changed = tmp_path / "changed.toml"
    changed.write_text(TOY.read_text().replace("steps = 40", "steps = 41"))
    name, text = run(changed)
    assert text.count("done before") == STAGES - 2
    assert "heads: starts" in text and "bundle: starts" in text
    assert name != json.loads(manifest.read_text())["hash"]


def test_a_stage_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    log = logging.getLogger("test")

    def cut(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    def finish(folder: Path) -> None:
        assert (folder / "half").exists() == resumed
        (folder / "whole").write_text("x")

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, 1, log).run("a", {"n": 1}, cut)
    resumed = True
    Stages(tmp_path, 1, log).run("a", {"n": 1}, finish)
    resumed = False
    folder = Stages(tmp_path, 1, log).run("a", {"n": 2}, finish)
    (folder / "whole").write_text("changed")
    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, 1, log).run("a", {"n": 2}, cut)


def test_a_missing_teacher_is_named_with_its_command(
    commands: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SFIC_CACHE", str(tmp_path / "empty"))
    config = tmp_path / "config.toml"
    config.write_text(TOY.read_text().replace("teachers = []", 'teachers = ["faceres"]'))
    line = [str(config) if part == str(TOY) else part for part in commands["nvidia"]]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "faceres" in error and "python -m training.convert_teachers" in error


def test_settings_that_cannot_work_are_named(
    commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    for setting, wrong, told in (
        ("input = 128", "input = 100", "multiple of 128"),
        ("embedding = 6", "embedding = 60", "pictures are too few"),
        ("basic = 40", "basic = 36", "shape.basic"),
        ("basic = 40", "basic = 24", "shape.basic 24 is too small"),
        ("width = 32", "widht = 32", "widht"),
        ('backbone = "random"', 'backbone = "none"', "backbone"),
    ):
        config.write_text(TOY.read_text().replace(setting, wrong))
        line = [str(config) if part == str(TOY) else part for part in commands["nvidia"]]
        assert main(line) == 2
        assert told in capsys.readouterr().err


def test_encoded_faces_name_their_bundle(codecs: dict[str, Codec], crop: np.ndarray) -> None:
    face = codecs["rosinality"].encode(crop)
    assert isinstance(face, EncodedFace)
    assert face.model_bundle_id == codecs["rosinality"].model_bundle[:4]
