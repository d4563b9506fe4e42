"""Own StyleGAN2 checkpoints: both layouts against a forward pass written from the paper in numpy.

The reference modulates the weights of every sample, upsamples by inserting zeros and filters with
`scipy.signal`, all in float64, and reads tensors by the names that the two code bases give them.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="own checkpoints need the training extra (torch)")
signal = pytest.importorskip("scipy.signal", reason="the reference needs scipy")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs safetensors")

from sfic.errors import CheckpointError, InvalidInput  # noqa: E402
from sfic.networks.stylegan2 import StyleGAN2  # noqa: E402
from sfic.networks.stylegan2_checkpoint import from_state_dict, load_stylegan2  # noqa: E402

STYLE_DIM, LATENT_DIM, DEPTH = 32, 24, 3
CHANNELS = {4: 16, 8: 16, 16: 12, 32: 8, 64: 6}
LAYOUTS = ("nvidia", "rosinality")
State = dict[str, "torch.Tensor"]
Array = np.ndarray


def make_state(
    layout: str,
    channels: dict[int, int],
    style_dim: int = STYLE_DIM,
    latent_dim: int = LATENT_DIM,
    depth: int = DEPTH,
    seed: int = 0,
) -> State:
    """Random tensors under the names and shapes of a layout; every term of the network is felt."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    nvidia = layout == "nvidia"
    lead = () if nvidia else (1,)
    # Not symmetric, so that a filter applied the wrong way round shows.
    taps = torch.tensor([1.0, 2.5, 3.0, 1.5])
    kernel = torch.outer(taps, taps.flip(0) ** 1.2)
    kernel = kernel / kernel.sum()
    state: State = {}

    def affine(name: str, width: int) -> None:
        state[f"{name}.weight"] = normal(width, style_dim)
        state[f"{name}.bias"] = 1 + 0.1 * normal(width)

    def conv(name: str, c_in: int, c_out: int, resolution: int, index: int, up: bool) -> None:
        weight = normal(*lead, c_out, c_in, 3, 3)
        if nvidia:
            state[f"{name}.weight"] = weight
            state[f"{name}.bias"] = normal(c_out)
            state[f"{name}.noise_const"] = normal(resolution, resolution)
            state[f"{name}.noise_strength"] = 0.3 * normal()
            state[f"{name}.resample_filter"] = kernel.clone()
            affine(f"{name}.affine", c_in)
        else:
            state[f"{name}.conv.weight"] = weight
            state[f"{name}.activate.bias"] = normal(c_out)
            state[f"noises.noise_{index}"] = normal(1, 1, resolution, resolution)
            state[f"{name}.noise.weight"] = 0.3 * normal(1)
            if up:
                state[f"{name}.conv.blur.kernel"] = 4 * kernel
            affine(f"{name}.conv.modulation", c_in)

    def rgb(name: str, width: int, up: bool) -> None:
        state[f"{name}.weight" if nvidia else f"{name}.conv.weight"] = normal(*lead, 3, width, 1, 1)
        state[f"{name}.bias"] = normal(3) if nvidia else normal(1, 3, 1, 1)
        affine(f"{name}.affine" if nvidia else f"{name}.conv.modulation", width)
        if up and not nvidia:
            state[f"{name}.upsample.kernel"] = 4 * kernel

    for i in range(depth):
        name = f"mapping.fc{i}" if nvidia else f"style.{i + 1}"
        state[f"{name}.weight"] = 100 * normal(style_dim, style_dim if i else latent_dim)
        state[f"{name}.bias"] = 30 * normal(style_dim)
    state["mapping.w_avg" if nvidia else "latent_avg"] = normal(style_dim)
    state["synthesis.b4.const" if nvidia else "input.input"] = normal(*lead, channels[4], 4, 4)
    for i, (r, width) in enumerate(channels.items()):
        below = channels.get(r // 2, 0)
        if nvidia:
            state[f"synthesis.b{r}.resample_filter"] = kernel.clone()
        if below:
            name = f"synthesis.b{r}.conv0" if nvidia else f"convs.{2 * i - 2}"
            conv(name, below, width, r, 2 * i - 1, up=True)
        last = f"convs.{2 * i - 1}" if below else "conv1"
        conv(f"synthesis.b{r}.conv1" if nvidia else last, width, width, r, 2 * i, up=False)
        ros_rgb = f"to_rgbs.{i - 1}" if below else "to_rgb1"
        rgb(f"synthesis.b{r}.torgb" if nvidia else ros_rgb, width, up=below > 0)
    return state


class Reference:
    """Section 2 of the paper, a sample at a time, in float64; names are resolved by layout."""

    def __init__(self, layout: str, state: State, resolutions: list[int]) -> None:
        self.nvidia = layout == "nvidia"
        self.p = {k: v.double().numpy() for k, v in state.items()}
        self.resolutions = resolutions
        name = "synthesis.b8.conv0.resample_filter" if self.nvidia else "convs.0.conv.blur.kernel"
        self.fir = 4 * self.p[name] / self.p[name].sum()

    @staticmethod
    def lrelu(x: Array) -> Array:
        return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)

    def mapping(self, z: Array) -> Array:
        x = z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-8)
        for i in range(DEPTH):
            name = f"mapping.fc{i}" if self.nvidia else f"style.{i + 1}"
            weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
            x = self.lrelu(x @ weight.T * (0.01 / np.sqrt(weight.shape[1])) + 0.01 * bias)
        return x

    def scales(self, name: str, style: Array) -> Array:
        name += ".affine" if self.nvidia else ".conv.modulation"
        weight = self.p[f"{name}.weight"]
        return weight @ style / np.sqrt(weight.shape[1]) + self.p[f"{name}.bias"]

    def weight(self, name: str) -> Array:
        return self.p[f"{name}.weight"] if self.nvidia else self.p[f"{name}.conv.weight"][0]

    @staticmethod
    def spread(plane: Array) -> Array:
        out = np.zeros((2 * plane.shape[0], 2 * plane.shape[1]))
        out[::2, ::2] = plane
        return out

    def conv(self, name: str, x: Array, style: Array, index: int, up: bool) -> Array:
        weight = self.weight(name)
        weight = weight / np.sqrt(weight[0].size) * self.scales(name, style)[None, :, None, None]
        # NVIDIA adds its epsilon before weights are scaled by the fan-in, rosinality after.
        epsilon = 1e-8 / weight[0].size if self.nvidia else 1e-8
        weight = weight / np.sqrt((weight**2).sum(axis=(1, 2, 3), keepdims=True) + epsilon)
        if up:
            size = 2 * x.shape[1]
            planes = [signal.convolve2d(self.spread(plane), self.fir) for plane in x]
            x = np.stack([sum(map(signal.convolve2d, planes, kernels)) for kernels in weight])[
                :, 2 : 2 + size, 2 : 2 + size
            ]
        else:
            x = np.stack(
                [
                    sum(signal.correlate2d(p, k, "same") for p, k in zip(x, kernels, strict=True))
                    for kernels in weight
                ]
            )
        if self.nvidia:
            noise = self.p[f"{name}.noise_const"] * self.p[f"{name}.noise_strength"]
            bias = self.p[f"{name}.bias"]
        else:
            noise = self.p[f"noises.noise_{index}"][0, 0] * self.p[f"{name}.noise.weight"]
            bias = self.p[f"{name}.activate.bias"]
        return self.lrelu(x + noise + bias[:, None, None])

    def rgb(self, name: str, x: Array, style: Array) -> Array:
        weight = self.weight(name)[:, :, 0, 0]  # [3, C]
        weight = weight * self.scales(name, style) / np.sqrt(weight.shape[1])
        return np.einsum("oc,chw->ohw", weight, x) + self.p[f"{name}.bias"].reshape(3, 1, 1)

    def pictures(self, styles: Array) -> dict[int, Array]:
        """Styles of one sample [num_styles, D] -> the picture at every resolution."""
        x = self.p["synthesis.b4.const"] if self.nvidia else self.p["input.input"][0]
        result: dict[int, Array] = {}
        picture = np.zeros((3, 4, 4))
        for i, r in enumerate(self.resolutions):
            conv0 = f"synthesis.b{r}.conv0" if self.nvidia else f"convs.{2 * i - 2}"
            conv1 = f"synthesis.b{r}.conv1" if self.nvidia else f"convs.{2 * i - 1}"
            torgb = f"synthesis.b{r}.torgb" if self.nvidia else f"to_rgbs.{i - 1}"
            if i == 0 and not self.nvidia:
                conv1, torgb = "conv1", "to_rgb1"
            if i:
                x = self.conv(conv0, x, styles[2 * i - 1], 2 * i - 1, up=True)
                planes = [signal.convolve2d(self.spread(p), self.fir) for p in picture]
                picture = np.stack(planes)[:, 1 : 1 + r, 1 : 1 + r]
            x = self.conv(conv1, x, styles[2 * i], 2 * i, up=False)
            picture = picture + self.rgb(torgb, x, styles[2 * i + 1])
            result[r] = picture
        return result


def some_styles(model: StyleGAN2, n: int = 2, seed: int = 1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, model.num_styles, model.style_dim, generator=random)


def upto(size: int) -> dict[int, int]:
    return {r: c for r, c in CHANNELS.items() if r <= size}


@pytest.fixture(scope="module")
def model() -> StyleGAN2:
    return from_state_dict(make_state("nvidia", CHANNELS))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [32, 64])
def test_equals_the_independent_forward_pass(layout: str, size: int) -> None:
    state = make_state(layout, upto(size), seed=size)
    model = from_state_dict(state)
    reference = Reference(layout, state, list(upto(size)))
    styles = some_styles(model)
    for sample in styles:
        expected = reference.pictures(sample.double().numpy())
        for r, picture in expected.items():
            made = model.preview(sample[None], r)[0].numpy()
            assert np.abs(picture).max() > 1
            np.testing.assert_allclose(made, picture, atol=1e-4, rtol=0)
    batch, alone = model(styles), torch.cat([model(s[None]) for s in styles])
    torch.testing.assert_close(batch, alone, atol=1e-4, rtol=0)
    assert torch.equal(batch, model(styles)), "synthesis must be deterministic"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nearly_dead_filters_are_demodulated_as_in_their_code_base(layout: str) -> None:
    state = make_state(layout, upto(8))
    state["synthesis.b8.conv1.weight" if layout == "nvidia" else "convs.1.conv.weight"] *= 1e-4
    model = from_state_dict(state)
    styles = some_styles(model, n=1)
    expected = Reference(layout, state, [4, 8]).pictures(styles[0].double().numpy())[8]
    np.testing.assert_allclose(model(styles)[0].numpy(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mapping_equals_the_independent_one(layout: str) -> None:
    state = make_state(layout, upto(8))
    model = from_state_dict(state)
    z = torch.randn(5, LATENT_DIM, generator=torch.Generator().manual_seed(3))
    expected = Reference(layout, state, [4, 8]).mapping(z.double().numpy())
    assert expected.std() > 0.1
    np.testing.assert_allclose(model.mapping(z).numpy(), expected, atol=1e-4, rtol=0)
    stored = state["mapping.w_avg" if layout == "nvidia" else "latent_avg"]
    torch.testing.assert_close(model.mean_style, stored)


def test_mean_style_is_estimated_where_a_checkpoint_has_none() -> None:
    state = make_state("rosinality", upto(8))
    del state["latent_avg"]
    model = from_state_dict(state)
    z = torch.randn(20000, LATENT_DIM, generator=torch.Generator().manual_seed(9))
    expected = model.mapping(z).mean(dim=0)
    assert expected.abs().max() > 1
    torch.testing.assert_close(model.mean_style, expected, atol=0.15, rtol=0)


@pytest.mark.parametrize(("size", "styles"), [(256, 14), (1024, 18)])
def test_official_sizes_have_the_official_number_of_styles(size: int, styles: int) -> None:
    widths = {4 << i: 2 for i in range((size // 4).bit_length())}
    model = from_state_dict(make_state("rosinality", widths, style_dim=8, latent_dim=8))
    assert (model.resolution, model.num_styles) == (size, styles)
    layers = model.layer_of_style
    assert layers[:3] == ("basic",) * 3
    assert layers[3:7] == ("middle",) * 4
    assert layers[7:] == ("enhanced",) * (styles - 7)
    assert model(some_styles(model, n=1)).shape == (1, 3, size, size)


def test_layers_land_on_their_resolutions(model: StyleGAN2) -> None:
    """Enhanced styles leave the 32x32 features alone, middle ones the 8x8 features."""
    styles = some_styles(model)
    for layer, untouched, touched in (("enhanced", 32, 64), ("middle", 8, 16), ("basic", 0, 4)):
        changed = styles.clone()
        changed[:, [name == layer for name in model.layer_of_style]] += 1
        if untouched:
            same = model.features(styles, untouched), model.features(changed, untouched)
            assert torch.equal(*same)
        assert not torch.allclose(
            model.features(styles, touched), model.features(changed, touched), atol=1e-2
        )


def test_features_go_back_in_at_every_resolution(model: StyleGAN2) -> None:
    styles = some_styles(model)
    image = model(styles)
    for r in model.resolutions:
        features = model.features(styles, r)
        assert features.shape == (2, model.channels[r], r, r)
        again = model.from_features(features, styles, r)
        torch.testing.assert_close(again, image, atol=1e-4, rtol=0)
        assert not torch.allclose(model.from_features(features + 0.5, styles, r), image, atol=1e-2)
        assert model.head(features, styles, r).shape == (2, 3, 2 * r, 2 * r)
    sixteen = model.features(styles, 16)
    torch.testing.assert_close(
        model.advance(sixteen, styles, 16, 64), model.features(styles, 64), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        model.preview_from_features(sixteen, styles, 16, 32),
        model.preview(styles, 32),
        atol=1e-4,
        rtol=0,
    )


def test_gradients_reach_styles_and_features(model: StyleGAN2) -> None:
    styles = some_styles(model, n=1).requires_grad_()
    features = model.features(styles, 16).detach().requires_grad_()
    model.from_features(features, styles, 16).square().mean().backward()
    assert features.grad is not None and features.grad.abs().max() > 0
    assert styles.grad is not None and bool((styles.grad[0, 5:].abs().sum(dim=1) > 0).all())
    assert not any(p.requires_grad for p in model.parameters())


def test_wrong_calls_are_refused(model: StyleGAN2) -> None:
    styles = some_styles(model)
    calls: list[Callable[[], object]] = [
        lambda: model(styles[:, :-1]),
        lambda: model(styles[0]),
        lambda: model.preview(styles, 48),
        lambda: model.preview(styles, 0),
        lambda: model.features(styles, 128),
        lambda: model.from_features(model.features(styles, 8), styles, 16),
        lambda: model.preview_from_features(model.features(styles, 16), styles, 16, 8),
    ]
    for call in calls:
        with pytest.raises(InvalidInput):
            call()


def test_activations_are_clamped_as_in_nvidias_training() -> None:
    state = make_state("nvidia", upto(8))
    state["synthesis.b4.conv1.bias"] += 1e4
    styles = torch.randn(1, 4, STYLE_DIM, generator=torch.Generator().manual_seed(2))
    assert from_state_dict(state).features(styles, 4).max() == 256
    assert from_state_dict(state, conv_clamp=float("inf")).features(styles, 4).max() > 9000


def save_as(kind: str, layout: str, state: State, path: Path) -> Path:
    if kind == "safetensors":
        safetensors_torch.save_file(state, path)
        return path
    content: object = state
    if kind == "nested":
        content = {"G_ema": state}
        if layout == "rosinality":
            inner = {k: v for k, v in state.items() if k != "latent_avg"}
            content = {
                "g_ema": inner,
                "latent_avg": state["latent_avg"],
                "g_optim": {"state": {0: {"step": 1}}},
                "args": argparse.Namespace(size=32),
            }
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["safetensors", "flat", "legacy", "nested"])
def test_every_kind_of_file_gives_the_same_generator(
    layout: str, kind: str, tmp_path: Path
) -> None:
    state = make_state(layout, upto(16))
    expected = from_state_dict(state)
    loaded = load_stylegan2(save_as(kind, layout, state, tmp_path / "any.name"))
    styles = some_styles(expected)
    assert torch.equal(loaded(styles), expected(styles))
    assert torch.equal(loaded.mean_style, expected.mean_style)


class Exploit:
    """Writes a file when it is unpickled without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_refused_unopened_with_the_cure(tmp_path: Path) -> None:
    state = make_state("nvidia", upto(8))
    for protocol in (2, 4, 5):
        path = tmp_path / f"nvidia{protocol}.pkl"
        ran = tmp_path / f"ran{protocol}"
        with path.open("wb") as file:
            pickle.dump({"G_ema": state, "x": Exploit(ran)}, file, protocol=protocol)
        with pytest.raises(CheckpointError, match=r"never opened.*load_network_pkl.*state_dict"):
            load_stylegan2(path)
        assert not ran.exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_objects_inside_a_torch_file_are_refused(tmp_path: Path, new_format: bool) -> None:
    path, ran = tmp_path / "g.pt", tmp_path / "ran"
    content = {"g_ema": make_state("rosinality", upto(8)), "x": Exploit(ran)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="objects other than tensors"):
        load_stylegan2(path)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["safetensors", "flat", "legacy"])
def test_cut_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = save_as(kind, "nvidia", make_state("nvidia", upto(8)), tmp_path / "g")
    whole = path.read_bytes()
    for length in (0, 7, 20, 500, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_stylegan2(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    other = tmp_path / "other.pt"
    torch.save({"layer.weight": torch.zeros(2, 2)}, other)
    numbers = tmp_path / "list.pt"
    torch.save([1, 2, 3], numbers)
    for path in (picture, other, numbers, tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError):
            load_stylegan2(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("synthesis.b16.conv1.affine.bias"), "conv1.affine.bias is missing"),
        (lambda s: s.pop("mapping.fc0.weight"), "mapping.fc0.weight is missing"),
        (lambda s: s.update({"synthesis.b8.skip.weight": torch.zeros(2)}), "another architecture"),
        (lambda s: s.update({"mapping.embed.weight": torch.zeros(2)}), "class-conditional"),
        (lambda s: s["synthesis.b8.conv0.bias"].fill_(float("nan")), "not finite"),
        (lambda s: s.update({"synthesis.b8.conv0.bias": torch.zeros(3)}), "has shape"),
        (lambda s: s.update({"synthesis.b8.conv0.bias": torch.zeros(16).int()}), "not finite"),
        (lambda s: s.update({"synthesis.b64.x": torch.zeros(1)}), "resolutions must run"),
        (lambda s: s["synthesis.b8.resample_filter"].mul_(torch.eye(4)), "resampling filters"),
    ],
)
def test_another_architecture_is_refused_by_name(
    edit: Callable[[State], object], message: str
) -> None:
    state = make_state("nvidia", upto(16))
    edit(state)
    with pytest.raises(CheckpointError, match=message):
        from_state_dict(state)


def test_stylegan3_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="StyleGAN3"):
        from_state_dict({"synthesis.L0_36_512.weight": torch.zeros(1)})


@pytest.mark.filterwarnings("ignore")
def test_exports_to_onnx_with_the_same_picture(tmp_path: Path) -> None:
    """Services run ONNX Runtime, so an own checkpoint has to pass through it, at any batch size."""
    pytest.importorskip("onnx", reason="export needs onnx")
    ort = pytest.importorskip("onnxruntime", reason="comparison needs onnxruntime")
    model = from_state_dict(make_state("rosinality", upto(32)))
    path = str(tmp_path / "generator.onnx")
    torch.onnx.export(
        model,
        (some_styles(model, n=2),),
        path,
        input_names=["styles"],
        output_names=["image"],
        dynamic_axes={"styles": {0: "N"}, "image": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )
    styles = some_styles(model, n=3, seed=5)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {"styles": styles.numpy()})
    np.testing.assert_allclose(image, model(styles).numpy(), atol=1e-4, rtol=0)
