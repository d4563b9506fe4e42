"""Reading a StyleGAN2 checkpoint of another code base into `StyleGAN2`.

Two layouts are known by their names: NVIDIA's (`synthesis.b4.const`; stylegan2-ada-pytorch, and the
StyleGAN2 of stylegan3) and rosinality's (`input.input`). Everything about the architecture is read
from shapes. A file is a safetensors file or a torch file of plain tensors; a pickle that could run
code is never opened. Nothing here computes a picture.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfic.errors import CheckpointError
from sfic.networks.stylegan2 import Block, StyledConv, StyleGAN2, ToRGB

__all__ = ["Layout", "from_state_dict", "load_stylegan2"]

Layout = Literal["nvidia", "rosinality"]

NVIDIA_CLAMP = 256.0
"""What NVIDIA's training commands pass as `conv_clamp`; only their pickle holds it."""

_MAPPING_LR = 0.01
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_MAX_RESOLUTION = 4096

_PICKLE_CURE = (
    "it is a Python pickle, which can run code, so it is never opened here; convert it once inside "
    "NVIDIA's stylegan2-ada-pytorch checkout: torch.save({'G_ema': legacy.load_network_pkl("
    "open(PKL, 'rb'))['G_ema'].state_dict()}, 'G_ema.pt') (see docs/how-to/own-checkpoint.md)"
)


def load_stylegan2(path: str | Path, *, conv_clamp: float | None = None) -> StyleGAN2:
    """Load a checkpoint file, in evaluation mode and frozen, on the CPU in float32.

    `path`: safetensors, or `torch.save` of a state dict, of `{'G_ema': ...}` or of `{'g_ema':
    ...}`; told apart by content, not by suffix. `conv_clamp` bounds activations; by default 256 in
    NVIDIA's layout, as their training sets it, and none in rosinality's (`math.inf` takes it away).

    Raises `CheckpointError` for any file that is not such a checkpoint, whole and finite.
    """
    return from_state_dict(_read_tensors(Path(path)), conv_clamp=conv_clamp)


def from_state_dict(state: Mapping[str, object], *, conv_clamp: float | None = None) -> StyleGAN2:
    """Build the generator from tensors in either layout; see `load_stylegan2`."""
    tensors = _unwrap(state)
    layout = _layout(tensors)
    reader = _Reader(tensors)
    if conv_clamp is None and layout == "nvidia":
        conv_clamp = NVIDIA_CLAMP
    with torch.no_grad():
        fill = _from_nvidia if layout == "nvidia" else _from_rosinality
        model = fill(reader, conv_clamp)
    reader.check_all_used()
    return model.eval().requires_grad_(False)


def _read_tensors(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head.startswith((_ZIP_MAGIC, _LEGACY_TORCH_MAGIC)):
        return _read_torch(path)
    if head.startswith(b"\x80"):
        raise CheckpointError(f"{path}: {_PICKLE_CURE}")
    raise CheckpointError(f"{path}: is neither a safetensors nor a torch file")


def _read_torch(path: Path) -> Mapping[str, object]:
    try:
        # rosinality's trainer keeps its command line in the file; a Namespace can only hold values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is damaged, or holds objects other than tensors; save only the state dict "
            "of the generator: torch.save({'g_ema': g_ema.state_dict()}, PATH)"
        ) from error
    except Exception as error:  # damaged bytes make the restricted reader fail in many ways
        raise CheckpointError(f"{path}: is cut or damaged ({_first_line(error)})") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def _read_safetensors(path: Path) -> Mapping[str, object]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is cut or damaged ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _unwrap(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Find the generator's tensors: in `G_ema`, in `g_ema` beside `latent_avg`, or flat."""
    inner: dict[str, object] = dict(state)
    for key in ("G_ema", "g_ema"):
        nested = state.get(key)
        if isinstance(nested, Mapping):
            inner = dict(nested)
            if "latent_avg" in state:
                inner["latent_avg"] = state["latent_avg"]
    tensors = {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"no generator found among {sorted(map(str, state))[:8]}")
    return tensors


def _layout(tensors: Mapping[str, Tensor]) -> Layout:
    if "synthesis.b4.const" in tensors:
        return "nvidia"
    if "input.input" in tensors:
        return "rosinality"
    if any(name.startswith("synthesis.L") for name in tensors):
        raise CheckpointError("this is a StyleGAN3 generator; the codec takes a StyleGAN2 one")
    raise CheckpointError(
        "not a StyleGAN2 generator: neither synthesis.b4.const (NVIDIA) nor input.input "
        f"(rosinality) is among {sorted(tensors)[:4]}"
    )


class _Reader:
    """Hands out tensors by name with their shape checked, and knows which were never asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Tensor `name` in float32; None in `shape` stands for any size of at least one."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"tensor {name} is missing")
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(
            size < 1 or want not in (None, size) for size, want in zip(found, shape, strict=True)
        ):
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            raise CheckpointError(f"tensor {name} has shape {list(found)}, expected [{wanted}]")
        if not tensor.dtype.is_floating_point or not bool(tensor.isfinite().all()):
            raise CheckpointError(f"tensor {name} holds values that are not finite numbers")
        self._used.add(name)
        return tensor.float()

    def numbers(self, pattern: str) -> list[int]:
        """List the distinct integers that the group of `pattern` matches in the names."""
        found = (re.match(pattern, name) for name in self._tensors)
        return sorted({int(match.group(1)) for match in found if match})

    def resample_filter(self) -> Tensor:
        """Take the one low-pass filter [4, 4] of all layers, sum 1; [1, 3, 3, 1] if none."""
        names = [n for n in self._tensors if n.endswith((".resample_filter", ".kernel"))]
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        filters = [self.take(name, 4, 4) for name in names] or [torch.outer(taps, taps)]
        filters = [f / f.sum() for f in filters]
        if not all(torch.allclose(f, filters[0], atol=1e-6) for f in filters):
            raise CheckpointError("the layers have different resampling filters")
        return filters[0]

    def check_all_used(self) -> None:
        """Refuse a tensor with no place here: it means another architecture, so a wrong picture."""
        left = sorted(set(self._tensors) - self._used)
        if left:
            raise CheckpointError(
                f"this is another architecture than StyleGAN2's skip generator: {left[:4]}"
            )


def _fill_linear(reader: _Reader, linear: nn.Linear, name: str, lr: float = 1.0) -> None:
    """Equalised learning rate (Karras et al. 2018, section 4.1) multiplied into the weights."""
    weight = reader.take(f"{name}.weight", *linear.weight.shape)
    linear.weight.copy_(weight * (lr / linear.in_features**0.5))
    linear.bias.copy_(reader.take(f"{name}.bias", *linear.bias.shape) * lr)


def _fill_mapping(model: StyleGAN2, reader: _Reader, names: list[str]) -> None:
    for layer, name in zip(model.mapping.layers, names, strict=True):
        assert isinstance(layer, nn.Linear)
        _fill_linear(reader, layer, name, _MAPPING_LR)


def _fill_mean_style(model: StyleGAN2, reader: _Reader, name: str) -> None:
    stored = name in reader
    mean = reader.take(name, model.style_dim) if stored else model.estimate_mean_style()
    model.mean_style.copy_(mean)


def _check_resolutions(found: list[int]) -> None:
    expected = [4 << i for i in range(len(found))]
    if len(found) < 2 or found != expected or found[-1] > _MAX_RESOLUTION:
        raise CheckpointError(
            f"resolutions must run 4, 8, ... up to {_MAX_RESOLUTION}; found {found}"
        )


def _blocks(model: StyleGAN2) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _from_nvidia(reader: _Reader, conv_clamp: float | None) -> StyleGAN2:
    if "mapping.embed.weight" in reader:
        raise CheckpointError(
            "the generator is class-conditional; the codec has no class to give it"
        )
    resolutions = reader.numbers(r"synthesis\.b(\d{1,5})\.")
    _check_resolutions(resolutions)
    depth = len(reader.numbers(r"mapping\.fc(\d{1,2})\."))
    channels = {
        r: reader.take(f"synthesis.b{r}.conv1.weight", None, None, 3, 3).shape[0]
        for r in resolutions
    }
    model = StyleGAN2(
        channels,
        style_dim=reader.take("synthesis.b4.conv1.affine.weight", None, None).shape[1],
        latent_dim=reader.take("mapping.fc0.weight", None, None).shape[1],
        mapping_layers=depth,
        conv_clamp=conv_clamp,
    )

    def fill_conv(conv: StyledConv, name: str) -> None:
        conv.weight.copy_(reader.take(f"{name}.weight", *conv.weight.shape))
        conv.bias.copy_(reader.take(f"{name}.bias", *conv.bias.shape))
        _fill_linear(reader, conv.affine, f"{name}.affine")
        if f"{name}.noise_strength" in reader:  # absent where the network was trained without noise
            noise = reader.take(f"{name}.noise_const", *conv.noise.shape)
            conv.noise.copy_(noise * reader.take(f"{name}.noise_strength"))

    def fill_rgb(rgb: ToRGB, name: str) -> None:
        width = rgb.weight.shape[1]
        rgb.weight.copy_(reader.take(f"{name}.weight", 3, width, 1, 1)[:, :, 0, 0] / width**0.5)
        rgb.bias.copy_(reader.take(f"{name}.bias", 3))
        _fill_linear(reader, rgb.affine, f"{name}.affine")

    for r, block in zip(resolutions, _blocks(model), strict=True):
        if block.conv0 is not None:
            fill_conv(block.conv0, f"synthesis.b{r}.conv0")
        fill_conv(block.conv1, f"synthesis.b{r}.conv1")
        fill_rgb(block.to_rgb, f"synthesis.b{r}.torgb")
    model.const.copy_(reader.take("synthesis.b4.const", *model.const.shape))
    model.resample_filter.copy_(reader.resample_filter())
    _fill_mapping(model, reader, [f"mapping.fc{i}" for i in range(depth)])
    _fill_mean_style(model, reader, "mapping.w_avg")
    return model


def _from_rosinality(reader: _Reader, conv_clamp: float | None) -> StyleGAN2:
    resolutions = [4] + [8 << i for i in reader.numbers(r"to_rgbs\.(\d{1,2})\.")]
    _check_resolutions(resolutions)
    depth = len(reader.numbers(r"style\.(\d{1,2})\.weight"))
    last_conv = ["conv1"] + [f"convs.{2 * i + 1}" for i in range(len(resolutions) - 1)]
    channels = {
        r: reader.take(f"{name}.conv.weight", 1, None, None, 3, 3).shape[1]
        for r, name in zip(resolutions, last_conv, strict=True)
    }
    model = StyleGAN2(
        channels,
        style_dim=reader.take("conv1.conv.modulation.weight", None, None).shape[1],
        latent_dim=reader.take("style.1.weight", None, None).shape[1],
        mapping_layers=depth,
        conv_clamp=conv_clamp,
    )

    def fill_conv(conv: StyledConv, name: str, index: int) -> None:
        weight = reader.take(f"{name}.conv.weight", 1, *conv.weight.shape)[0]
        conv.weight.copy_(weight / weight[0].numel() ** 0.5)
        _fill_linear(reader, conv.affine, f"{name}.conv.modulation")
        conv.bias.copy_(reader.take(f"{name}.activate.bias", *conv.bias.shape))
        noise = reader.take(f"noises.noise_{index}", 1, 1, *conv.noise.shape)[0, 0]
        conv.noise.copy_(noise * reader.take(f"{name}.noise.weight", 1))

    def fill_rgb(rgb: ToRGB, name: str) -> None:
        width = rgb.weight.shape[1]
        weight = reader.take(f"{name}.conv.weight", 1, 3, width, 1, 1)[0, :, :, 0, 0]
        rgb.weight.copy_(weight / width**0.5)
        rgb.bias.copy_(reader.take(f"{name}.bias", 1, 3, 1, 1).flatten())
        _fill_linear(reader, rgb.affine, f"{name}.conv.modulation")

    for i, block in enumerate(_blocks(model)):
        if block.conv0 is not None:
            fill_conv(block.conv0, f"convs.{2 * i - 2}", 2 * i - 1)
        fill_conv(block.conv1, last_conv[i], 2 * i)
        fill_rgb(block.to_rgb, "to_rgb1" if i == 0 else f"to_rgbs.{i - 1}")
    model.const.copy_(reader.take("input.input", 1, *model.const.shape)[0])
    model.resample_filter.copy_(reader.resample_filter())
    _fill_mapping(model, reader, [f"style.{i + 1}" for i in range(depth)])
    _fill_mean_style(model, reader, "latent_avg")
    return model
