"""What each part of the objective is worth: short runs that differ in one thing, before the judges.

    python -m training.ablation --init CODEC.pt [--config training/configs/ablation.toml]

Each variant is trained at 64x64 for a tenth of the schedule from one common start: trunk, basic
synthesis and heads of `--init`, everything else untrained. Its 64 px pictures of dev faces then go
before the judges, bytes being those of the factorised laws that training uses. An entropy
transformer is then trained on the symbols of the first variant: the same pictures with other bytes.
Differences of short runs are small and noisy: the intervals, over faces, say how small.

Resumable: runs go on from their checkpoints in `SFIC_CACHE/ablation`, what was judged is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.report import DOCS, markdown_table, write_markdown, write_result
from sfic.evaluation.codecs import scale
from sfic.evaluation.curves import best_at
from sfic.evaluation.judges import WORKING_SIZE, Judges
from sfic.evaluation.metrics import METRICS, Examiner
from sfic.networks.codec import CORRECTED, CodecShape, FaceCodec
from training import train_entropy
from training.codec_checkpoint import RATE_POSITIONS, collect_symbols, gain_tables
from training.codec_data import identity_targets, resize, to_tensor
from training.data import cache_dir, load_rgb, picture_array, read_index
from training.materials import Materials, shipped_materials
from training.settings import read_config
from training.train_codec import Trainer

SHOWN = ("identity", "vgg", "landmarks", "psnr")
JUDGED_SET = "celebahq512png"
ENTROPY = "entropy transformer in place of factorised laws"

Floats = npt.NDArray[np.float64]


def common_start(init: Path, shape: CodecShape, parts: Sequence[str], seed: int) -> dict[str, Any]:
    """A checkpoint: the parts of `init` whose names begin as `parts` say, the rest untrained."""
    torch.manual_seed(seed)
    state = FaceCodec(shape).state_dict()
    given = torch.load(init, weights_only=True)["average"]
    for name in state:
        if name.startswith(tuple(parts)) and name in given:
            state[name] = given[name].clone()
    return {"codec": state, "average": {k: v.clone() for k, v in state.items()}, "lambda": {}}


def stage_config(run: dict[str, Any], name: str, stage: dict[str, Any]) -> dict[str, Any]:
    """The configuration of one run."""
    config = {**run, "name": name, "losses": dict(run["losses"])}
    for loss in stage.get("without", ()):
        config["losses"][loss] = 0.0
    config["steps"] = round(run["steps"] * stage["share"])
    return config | {k: v for k, v in stage.items() if k not in ("share", "without")}


def train(
    variant: dict[str, Any], run: dict[str, Any], materials: Materials, start: Path, folder: Path
) -> tuple[FaceCodec, Tensor]:
    """The averaged weights of a variant, frozen, and the projection of its basic embedding."""
    stages = variant.get("stages", [{"share": 1.0}])
    before = start
    for i, stage in enumerate(stages):
        config = stage_config(run, variant["name"], stage)
        trainer = Trainer(config, materials, folder / f"stage-{i}")
        trainer.resume(before)
        trainer.run(lambda line: print(variant["name"], json.dumps(line), flush=True))
        before = trainer.checkpoint
    codec = FaceCodec(materials.shape)
    codec.load_state_dict(trainer.average)
    return codec.requires_grad_(False).eval(), trainer.projection


@torch.no_grad()
def coded(
    codec: FaceCodec, materials: Materials, crop: Tensor, embedding: Tensor, rate: int, layers: str
) -> tuple[float, Tensor, Tensor]:
    """Bytes by training's laws, picture [1, 3, S, S] and the basic layer's embedding [1, D]."""
    t = torch.tensor([RATE_POSITIONS[rate - 1]], dtype=torch.float32)
    styles = codec.code_styles(codec.analyse(resize(crop, 128), embedding), t, noise=False)
    stack = codec.whitening.to_styles(styles.coefficients["enhanced"])
    generator = materials.generator
    features = generator.features(stack, CORRECTED)
    preview = generator.head(features, stack, CORRECTED).clamp(-1.2, 1.2)
    bits = sum((float(b) for b in styles.bits.values()), 0.0)
    picture = preview
    if layers != "styles":
        small = resize(crop, codec.shape.picture)
        code, spatial = codec.code_spatial(small, features, preview, t, noise=False)
        _, picture = codec.spatial_synthesis(code, features, preview)
        bits += float(spatial)
    return bits / 8, picture, codec.heads(styles.latents["basic"])["embedding"]


def judge(
    codec: FaceCodec, materials: Materials, projection: Tensor, examiner: Examiner,
    settings: dict[str, Any], layers: str,
) -> dict[str, list[list[float]]]:
    """Bytes, what the judges say, and the cosine of the basic embedding: each [rates][faces]."""
    rows = read_index("dev")
    chosen = [i for i, row in enumerate(rows) if row.set == JUDGED_SET][: settings["faces"]]
    faceres = cache_dir() / "teachers" / "faceres.safetensors"
    embeddings = torch.from_numpy(identity_targets("dev", faceres)["embedding"][chosen])
    wanted = torch.nn.functional.normalize(embeddings @ projection, dim=1)
    names = ("bytes", "embedding", *SHOWN)
    found: dict[str, list[list[float]]] = {n: [[] for _ in settings["rates"]] for n in names}
    for face, i in enumerate(chosen):
        original = load_rgb(rows[i].path, WORKING_SIZE)
        crop = to_tensor(load_rgb(rows[i].path, 256)[None])
        pictures = []
        for r, rate in enumerate(settings["rates"]):
            size, picture, basic = coded(
                codec, materials, crop, embeddings[face : face + 1], rate, layers
            )
            found["bytes"][r].append(size)
            found["embedding"][r].append(float((basic @ wanted[face])[0]))
            rgb = picture[0].clamp(-1, 1).add(1).mul(127.5).round().permute(1, 2, 0)
            pictures.append(scale(rgb.numpy().astype(np.uint8), WORKING_SIZE))
        said = examiner.examine(examiner.reference(original), np.stack(pictures))
        for name in SHOWN:
            for r, one in enumerate(said):
                found[name][r].append(one.values[name])
    return found


def entropy_bytes(
    codec: FaceCodec, materials: Materials, settings: dict[str, Any], run: dict[str, Any]
) -> dict[str, Any]:
    """Report of an entropy transformer trained on the codec's symbols (see `train_entropy.fit`)."""
    faceres = cache_dir() / "teachers" / "faceres.safetensors"
    sets = {}
    for split, count in (("train", settings["entropy_pictures"]), ("dev", 100)):
        pictures = picture_array(read_index(split), 256, split)
        chosen = np.random.default_rng(0).permutation(len(pictures))[:count]
        sets[split] = collect_symbols(
            codec, materials.generator, pictures[chosen],
            identity_targets(split, faceres)["embedding"][chosen], run["input"], 2,
            flips=split == "train", quick=split == "train",
        )
    here = ["--checkpoint", ".", "--out", str(cache_dir() / "ablation" / "entropy")]
    options = train_entropy.options([*here, "--minutes", str(settings["entropy_minutes"])])
    return train_entropy.fit(options, sets, gain_tables(codec))


def at_bytes(
    judged: dict[str, list[list[float]]], metric: str, budget: float
) -> tuple[float, float] | None:
    """Value at a number of bytes, and its standard error over faces; None below the curve."""
    higher = metric == "embedding" or METRICS[metric].higher_is_better
    sizes, values = np.array(judged["bytes"]), np.array(judged[metric])  # [rates, faces]
    found = best_at(sizes.mean(axis=1), values.mean(axis=1), budget, higher)
    if found is None:
        return None
    rng = np.random.default_rng(0)
    draws = rng.integers(0, sizes.shape[1], (200, sizes.shape[1]))
    again = [
        best_at(sizes[:, d].mean(axis=1), values[:, d].mean(axis=1), budget, higher) for d in draws
    ]
    return found, float(np.std([x for x in again if x is not None]))


def write(results: dict[str, Any], settings: dict[str, Any], init: str) -> Path:
    """JSON to the benchmarks' results, Markdown to the docs; returns the latter's path."""
    labels = {"embedding": "cosine of the basic embedding"}
    parts = [
        f"Runs of {settings['run']['steps']} steps of {settings['run']['batch']} faces at "
        f"{settings['picture']}x{settings['picture']}, all from the trunk and basic synthesis of "
        f"one codec (`{init}`) with everything else untrained; {settings['faces']} faces of "
        f"`{JUDGED_SET}`; bytes by the factorised laws of training, of all layers. In brackets: "
        "standard error over faces (between variants it is smaller: the faces are the same).",
    ]
    variants = {name: found for name, found in results.items() if name != ENTROPY}
    for metric in ("embedding", *SHOWN):
        label = labels.get(metric) or METRICS[metric].label
        decimals = 3 if metric == "embedding" else METRICS[metric].decimals
        rows = []
        for name, judged in variants.items():
            cells = [name]
            for budget in settings["bytes"]:
                found = at_bytes(judged, metric, budget)
                cells.append(
                    "–" if found is None else f"{found[0]:.{decimals}f} ({found[1]:.{decimals}f})"
                )
            rows.append(cells)
        heads = ["variant", *(f"{budget} bytes" for budget in settings["bytes"])]
        parts.append(f"## {label}\n\n{markdown_table(heads, rows)}")
    if ENTROPY in results:
        report = results[ENTROPY]
        before = report["dev_bytes_by_rate_at_start"]["mean"][0]
        after = report["dev_bytes_by_rate"]["mean"][0]
        parts.append(
            f"## Entropy model\n\nThe symbols of the first variant cost {before:.1f} bytes a face "
            f"with factorised tables by rate and {after:.1f} with the transformer "
            f"({100 * (after / before - 1):+.1f} %, {settings['entropy_minutes']} minutes of "
            "training): the same pictures, and so the same scores."
        )
    write_result("ablation", {"init": init, "settings": settings, "results": results})
    return write_markdown(DOCS / "ablation.md", "Ablation", parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, required=True, help="checkpoint to start from")
    parser.add_argument("--config", type=Path, default=Path("training/configs/ablation.toml"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of variants")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = read_config(args.config)
    run, root = settings["run"], cache_dir() / settings["name"]
    root.mkdir(parents=True, exist_ok=True)
    shape = CodecShape(picture=settings["picture"])
    materials = dataclasses.replace(shipped_materials(run), shape=shape)
    start = root / "start.pt"
    if not start.exists():
        torch.save(common_start(args.init, shape, settings["start"], run["seed"]), start)
    examiner = Examiner(Judges(args.threads), SHOWN)
    results: dict[str, Any] = {}
    for number, variant in enumerate(settings["variants"]):
        name = variant["name"]
        kept = root / f"{number}.json"
        if not kept.exists():
            if args.only and name not in args.only:
                continue
            codec, projection = train(variant, run, materials, start, root / str(number))
            layers = variant.get("layers", "enhanced")
            found = judge(codec, materials, projection, examiner, settings, layers)
            kept.write_text(json.dumps(found) + "\n")
        results[name] = json.loads(kept.read_text())
    kept = root / "entropy.json"
    if not args.only and not kept.exists():
        codec, _ = train(settings["variants"][0], run, materials, start, root / "0")
        kept.write_text(json.dumps(entropy_bytes(codec, materials, settings, run)) + "\n")
    if kept.exists():
        results[ENTROPY] = json.loads(kept.read_text())
    print(write(results, settings, args.init.name))


if __name__ == "__main__":
    main()
