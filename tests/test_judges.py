"""Judges, teachers and the anchor: converted networks give what they gave, measures order faces."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sfic.alignment import align
from sfic.detection import FaceDetector
from sfic.errors import InvalidInput, MissingExtra
from sfic.evaluation.judges import Judges, kid, landmark_error, psnr256
from sfic.evaluation.vvc import decode, read_streams

GOLDEN = Path(__file__).parent / "golden" / "judges.json"


def cache_dir() -> Path:
    return Path(os.environ.get("SFIC_CACHE", Path.home() / ".cache" / "sfic"))


def read_rgb(path: Path) -> NDArray[np.uint8]:
    bgr = cv2.imread(str(path))
    assert bgr is not None
    return np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges()


@pytest.fixture
def face(astronaut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The astronaut's aligned crop, uint8 [1, 512, 512, 3]."""
    (found,) = FaceDetector().detect(astronaut)
    return align(astronaut, found, 512)[0][None]


def golden(name: str, values: Any, tolerance: float, rewrite: bool) -> None:
    """Compare numbers with the pinned ones, or pin them."""
    pinned: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    got = np.asarray(values, np.float64)
    if rewrite:
        pinned[name] = np.round(got, 5).tolist()
        GOLDEN.write_text(json.dumps(pinned, indent=1, sort_keys=True) + "\n")
    np.testing.assert_allclose(got, pinned[name], atol=tolerance)


def test_judges_give_pinned_outputs(
    judges: Judges, face: NDArray[np.uint8], rewrite_golden: bool
) -> None:
    place = judges.place(face)
    assert place.found.all()
    identity, dlib = judges.identity(face, place), judges.identity_dlib(face, place)
    for embedding, width in ((identity, 256), (dlib, 128)):
        assert embedding.shape == (1, width)
        assert np.linalg.norm(embedding[0]) == pytest.approx(1, abs=1e-4)
    golden("identity", identity[0, :16], 2e-3, rewrite_golden)
    golden("identity_dlib", dlib[0, :16], 2e-3, rewrite_golden)
    golden("landmarks68", judges.landmarks68(face, place)[0], 2e-3, rewrite_golden)


def test_landmarks_lie_on_the_face(judges: Judges, face: NDArray[np.uint8]) -> None:
    points = judges.landmarks68(face)[0]
    place = judges.place(face)
    eyes = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
    assert np.abs(eyes - place.points[0, :2]).max() < 0.03
    assert np.abs(points[[48, 54]] - place.points[0, 3:]).max() < 0.05


def test_worse_pictures_are_judged_worse(judges: Judges, face: NDArray[np.uint8]) -> None:
    place = judges.place(face)
    reference = judges.identity(face, place)
    cosines, psnrs, errors = [], [], []
    for side in (128, 48, 20):
        small = cv2.resize(face[0], (side, side), interpolation=cv2.INTER_AREA)
        blurred = np.asarray(cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC))[None]
        cosines.append(float((judges.identity(blurred, place) * reference).sum()))
        psnrs.append(float(psnr256(face, blurred)[0]))
        points = judges.landmarks68(face, place), judges.landmarks68(blurred, place)
        errors.append(float(landmark_error(*points)[0]))
    assert cosines == sorted(cosines, reverse=True) and cosines[0] > 0.9 > cosines[2]
    assert psnrs == sorted(psnrs, reverse=True)
    assert errors == sorted(errors)


def test_any_size_of_picture(judges: Judges, face: NDArray[np.uint8]) -> None:
    twice = cv2.resize(face[0], (1024, 1024), interpolation=cv2.INTER_CUBIC)
    large = twice[None].astype(np.uint8)
    same = (judges.identity(face) * judges.identity(large)).sum()
    assert same > 0.99


def test_wrong_pictures_are_refused(judges: Judges, face: NDArray[np.uint8]) -> None:
    wrong_ones: tuple[Any, ...] = (face[0], face.astype(np.float32), face[:, :100], face[:0])
    for wrong in wrong_ones:
        with pytest.raises(InvalidInput):
            judges.identity(wrong)


def test_a_large_judge_that_is_missing_says_how_to_build_it(
    face: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFIC_CACHE", str(tmp_path))
    with pytest.raises(MissingExtra, match=r"training\.convert_judges"):
        Judges().vgg_distance(face, face)
    assert not Judges().has("vgg") and Judges().has("mobileface")


def test_vgg_distance(judges: Judges, face: NDArray[np.uint8], rewrite_golden: bool) -> None:
    if not (cache_dir() / "judges" / "vgg.onnx").exists():
        pytest.skip("the VGG judge is not built: python -m training.convert_judges")
    small = cv2.resize(face[0], (64, 64), interpolation=cv2.INTER_AREA)
    blurred = np.asarray(cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC))[None]
    assert judges.vgg_distance(face, face)[0] == pytest.approx(0, abs=1e-6)
    golden("vgg", judges.vgg_distance(face, blurred), 5e-3, rewrite_golden)


def test_identity_tells_people_apart(judges: Judges, shared_dir: Path) -> None:
    faces = shared_dir / "data" / "faces"
    with (faces / "index.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["set"] == "london1024"]
    people = sorted({r["id"] for r in rows})[:6]
    chosen = [r for p in people for r in sorted(rows, key=lambda r: r["path"]) if r["id"] == p]
    pictures = []
    for row in chosen:
        pictures.append(cv2.resize(read_rgb(faces / row["path"]), (512, 512)))
    stack = np.stack(pictures).astype(np.uint8)
    ids = np.array([r["id"] for r in chosen])
    same = (ids[:, None] == ids) & ~np.eye(len(ids), dtype=bool)
    different = ids[:, None] != ids
    place = judges.place(stack)
    for embed, gap in ((judges.identity, 0.4), (judges.identity_dlib, 0.03)):
        embedding = embed(stack, place)
        cosine = embedding @ embedding.T
        assert cosine[same].mean() > cosine[different].mean() + gap
        assert cosine[same].min() > np.median(cosine[different])


def test_vvc_point_equals_the_shared_table(judges: Judges, shared_dir: Path) -> None:
    """Per picture, against the figures that came with the streams (points of a picture vary)."""
    folder = shared_dir / "data" / "vvc"
    judged = {r["file"]: r for r in json.loads((folder / "dev_judged.json").read_text())}
    streams = [s for s in read_streams(folder) if (s.size, s.qp) == (64, 42)][:6]
    references = {}
    for s in streams:
        references[s.image] = read_rgb(shared_dir / "data/faces/celebahq512png" / s.image)
    decoded = np.stack([decode(s.path) for s in streams])
    reference = np.stack([references[s.image] for s in streams])
    place = judges.place(reference)
    theirs = [judged[s.path.name] for s in streams]
    psnr = psnr256(reference, decoded)
    np.testing.assert_allclose(psnr, [t["psnr"] for t in theirs], atol=1e-3)
    for embed, name, tolerance in (
        (judges.identity, "id", 0.03),
        (judges.identity_dlib, "id_dlib", 0.005),
    ):
        cosine = (embed(reference, place) * embed(decoded, place)).sum(1)
        assert np.mean(cosine) == pytest.approx(np.mean([t[name] for t in theirs]), abs=tolerance)
    if (cache_dir() / "judges" / "vgg.onnx").exists():
        vgg = judges.vgg_distance(reference[:2], decoded[:2])
        np.testing.assert_allclose(vgg, [t["vgg"] for t in theirs[:2]], atol=1e-3)
        # One reference for all gives what a reference for each gives.
        twice = np.stack([decoded[0], decoded[1]])
        both = judges.vgg_distance(np.repeat(reference[:1], 2, 0), twice)
        np.testing.assert_allclose(judges.vgg_distance(reference[:1], twice), both, atol=1e-5)


def test_a_broken_vvc_stream_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "a.266").write_bytes(b"\x00\x00\x01nothing")
    (tmp_path / "dev.csv").write_text(
        "image,size,qp,file,bytes_total,bytes_vcl\na,64,1,a.266,9,9\n"
    )
    with pytest.raises(InvalidInput, match=r"a\.266"):
        decode(read_streams(tmp_path)[0].path)
    with pytest.raises(InvalidInput, match="no VVC index"):
        read_streams(tmp_path / "elsewhere")


def test_kid_is_zero_for_one_distribution_and_more_for_two() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 200, 16))
    value, error = kid(a, b)
    assert abs(value) < 4 * error
    shifted, error = kid(a, b + 0.5)
    assert shifted > 10 * error > 0
    with pytest.raises(InvalidInput):
        kid(a[:1], b)


def write_tfjs(folder: Path, quantised: bool) -> NDArray[np.float32]:
    """A one-convolution graph model (3x3, stride 2, SAME, then ReLU); returns its kernel."""
    codes = np.random.default_rng(2).integers(0, 256, (3, 3, 1, 2), dtype=np.uint8)
    kernel = (codes * np.float32(0.01) - np.float32(1.2)).astype(np.float32)
    spec: dict[str, Any] = {"name": "k", "shape": [3, 3, 1, 2], "dtype": "float32"}
    if quantised:
        spec["quantization"] = {"dtype": "uint8", "scale": 0.01, "min": -1.2}
    (folder / "w.bin").write_bytes((codes if quantised else kernel).tobytes())
    same = {"s": "U0FNRQ=="}
    strides = {"list": {"i": ["1", "2", "2", "1"]}}
    nodes: list[dict[str, Any]] = [
        {"name": "y", "op": "Relu", "input": ["c"]},
        {"name": "c", "op": "Conv2D", "input": ["x", "k"], "attr": {"padding": same}},
        {"name": "x", "op": "Placeholder"},
        {"name": "k", "op": "Const"},
    ]
    nodes[1]["attr"]["strides"] = strides
    model = {
        "modelTopology": {"node": nodes},
        "signature": {"outputs": {"y:0": {"name": "y:0"}}},
        "weightsManifest": [{"paths": ["w.bin"], "weights": [spec]}],
    }
    (folder / "m.json").write_text(json.dumps(model))
    return kernel


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("side", [6, 7])
def test_tfjs_graph_in_torch(tmp_path: Path, quantised: bool, side: int) -> None:
    torch = pytest.importorskip("torch")
    from training.tfjs import GraphNetwork, TfjsError, read_graph_model

    kernel = write_tfjs(tmp_path, quantised)
    x = np.random.default_rng(3).normal(size=(side, side)).astype(np.float32)
    got = GraphNetwork(read_graph_model(tmp_path / "m.json"))(torch.from_numpy(x)[None, None])["y"]
    out = (side + 1) // 2
    before = (max((out - 1) * 2 + 3 - side, 0)) // 2  # TensorFlow: the odd pixel goes after
    padded = np.pad(x, ((before, 3), (before, 3)))
    want = np.zeros((2, out, out), np.float32)
    for i in range(out):
        for j in range(out):
            window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            want[:, i, j] = np.maximum((window[..., None] * kernel[:, :, 0]).sum((0, 1)), 0)
    np.testing.assert_allclose(got[0].numpy(), want, atol=1e-5)

    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:-1])
    with pytest.raises(TfjsError, match="ends inside"):
        read_graph_model(tmp_path / "m.json")


def teacher_weights(name: str) -> Path:
    path = cache_dir() / "teachers" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip("teachers are not built: python -m training.convert_teachers")
    return path


def test_faceres_gives_pinned_outputs_and_gradients(
    face: NDArray[np.uint8], rewrite_golden: bool
) -> None:
    torch = pytest.importorskip("torch")
    from training.teachers import Faceres

    image = torch.from_numpy(face).permute(0, 3, 1, 2).float() / 127.5 - 1
    for size in (112, 224):
        teacher = Faceres.load(teacher_weights("faceres"), size)
        embedding, age, male = teacher(image)
        unit = torch.nn.functional.normalize(embedding, dim=1)[0]
        golden(f"faceres{size}", [*unit[:16], age[0] / 100, male[0]], 2e-3, rewrite_golden)
        assert 0 <= male[0] < 0.5 and 15 < age[0] < 60
    picture = image.clone().requires_grad_()
    teacher(picture)[0].sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in teacher.parameters())


def test_faceapi_teachers_read_the_astronaut(face: NDArray[np.uint8]) -> None:
    torch = pytest.importorskip("torch")
    from training.teachers import AgeGender, Expression

    image = torch.from_numpy(face).permute(0, 3, 1, 2).float() / 127.5 - 1
    expressions = Expression.load(teacher_weights("expression"))(image)[0]
    assert expressions.argmax() == 1  # she smiles
    assert float(expressions.sum()) == pytest.approx(1, abs=1e-5)
    age, male = AgeGender.load(teacher_weights("age_gender"))(image)
    assert 15 < float(age) < 60 and float(male) < 0.5


def test_frozen_backbone_equals_the_trainable_one() -> None:
    torch = pytest.importorskip("torch")
    from sfic.networks.efficientnet import EfficientNetLite0

    torch.manual_seed(0)
    net = EfficientNetLite0(classifier=True)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    net.train()
    net(image)  # moves the running statistics away from their start
    net.eval()
    with torch.no_grad():
        before = net.features(image), net(image)
        net.frozen()
        after = net.features(image), net(image)
    sizes = [(2, c, 32 >> i, 32 >> i) for i, c in enumerate(EfficientNetLite0.stage_channels)]
    assert [tuple(m.shape) for m in after[0]] == sizes
    for a, b in zip((*before[0], before[1]), (*after[0], after[1]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_backbone_knows_its_classes() -> None:
    torch = pytest.importorskip("torch")
    pictures = pytest.importorskip("skimage.data")
    from sfic.networks.efficientnet import EfficientNetLite0

    net = EfficientNetLite0.load(teacher_weights("efficientnet_lite0"), classifier=True).frozen()
    for picture, classes in ((pictures.coffee(), {967}), (pictures.cat(), {281, 282, 285})):
        side = picture.shape[0]
        left = (picture.shape[1] - side) // 2
        square = cv2.resize(
            picture[:, left : left + side], (224, 224), interpolation=cv2.INTER_AREA
        )
        image = torch.from_numpy(np.asarray(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
        assert net(image).argmax(1).item() in classes  # espresso; a cat
