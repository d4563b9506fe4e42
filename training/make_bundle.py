"""Make a whole model bundle for a StyleGAN2 checkpoint: prior, encoder, entropy model, heads.

    python -m training.make_bundle --generator G_ema.pt \\
        --config training/configs/own-checkpoint.toml \\
        --faces FOLDER_OF_ALIGNED_PICTURES --out my-bundle

Without `--generator` the built-in prior is taken from the cache. Stages keep what they make in
`--work`; run the command again after an interruption or a change and only what is missing or
concerned is made. Belongs here: the order of the stages. Each stage's work is in the module that
makes the shipped bundle too.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from sfic.bundle import FORMAT, MANIFEST, ModelBundle, file_hash
from sfic.entropy.model import GROUP
from sfic.errors import CheckpointError, ConfigError, SficError
from sfic.layers import LAYERS
from sfic.locations import models_dir
from sfic.networks.codec import CodecShape
from sfic.networks.generator import Generator, MappingNetwork
from sfic.networks.heads import TaskHeads
from sfic.networks.prior import StylePrior
from sfic.networks.stylegan2_checkpoint import load_stylegan2
from training import train_entropy, train_heads
from training.bundle_card import card
from training.codec_checkpoint import collect_symbols, gain_tables, load_codec
from training.codec_data import identity_of, render, sample_styles
from training.data import cache_dir
from training.export import export_codec
from training.export_stylegan2 import export_prior, largest_difference
from training.face_targets import face_files, measure, read_faces, teacher_file
from training.materials import Materials
from training.settings import read_config
from training.stages import Stages, files_digest
from training.teachers import Faceres
from training.train_codec import Trainer

STAGES: Final = 7
INPUT_STEP: Final = 128
BACKBONES: Final = {"imagenet": "efficientnet_lite0", "random": None}
# The graphs in half precision against torch; more means that something was exported wrongly.
LARGEST_DIFFERENCE: Final = 0.25
# A models folder has these beside the bundle, so that SFIC_MODELS can name it.
FOUND_FACES_WITH: Final = ("detector.onnx", "landmarks.onnx")
OWN_SECTIONS: Final = ("whitening", "entropy", "heads")


@dataclass(frozen=True)
class Prior:
    """A generator with its mapping network; `files` are its weights."""

    generator: StylePrior
    mapping: nn.Module
    latent_dim: int
    kind: str
    files: tuple[Path, ...]


def load_prior(checkpoint: Path | None) -> Prior:
    """The StyleGAN2 in a checkpoint, or the built-in generator (from the cache)."""
    if checkpoint is not None:
        own = load_stylegan2(checkpoint)
        return Prior(own, own.mapping, own.latent_dim, "StyleGAN2", (checkpoint,))
    files = tuple(cache_dir() / "generator" / f"{n}.safetensors" for n in ("generator", "mapping"))
    if not all(file.is_file() for file in files):
        raise CheckpointError(
            f"the built-in generator is not in {files[0].parent}: name a --generator"
        )
    mapping = MappingNetwork.load(files[1])
    return Prior(Generator.load(files[0]), mapping, 512, "MobileStyleGAN", files)


class BundleMaker:
    """One run of the command: its configuration, prior and stages."""

    def __init__(
        self,
        config: dict[str, Any],
        prior: Prior,
        faces: list[Path],
        work: Path,
        log: logging.Logger,
    ) -> None:
        """Check what can be checked before hours are spent: ConfigError says what is wrong."""
        self.config, self.prior, self.faces, self.log = config, prior, faces, log
        self.stages = Stages(work, STAGES, log)
        self.teachers = tuple(config.get("teachers", ()))
        free = dict(config.get("shape", {}))
        if "faceres" not in self.teachers:
            free["identity"] = 0
        self.shape = CodecShape.for_generator(prior.generator, **free)
        backbone = config.get("backbone", "imagenet")
        if backbone not in BACKBONES:
            raise ConfigError(f"backbone {backbone!r} is not one of {', '.join(BACKBONES)}")
        weights = BACKBONES[backbone]
        self.backbone = teacher_file(weights) if weights else None
        self.teacher_files = [teacher_file(name) for name in self.teachers]
        if config["input"] % INPUT_STEP:
            raise ConfigError(f"input {config['input']} is not a multiple of {INPUT_STEP}")
        for layer in LAYERS:
            size = getattr(self.shape, layer)
            if size % GROUP:
                raise ConfigError(f"shape.{layer} {size} is not a multiple of {GROUP}")
        steps = train_entropy.steps_of({n: (getattr(self.shape, n),) for n in LAYERS})
        for layer, tokens in steps.items():
            if min(tokens) < 1:
                size = getattr(self.shape, layer)
                raise ConfigError(
                    f"shape.{layer} {size} is too small: it is coded in {len(tokens)} steps"
                )
        self.dev = range(0, len(faces), 10) if len(faces) >= 20 else range(1)
        least = max(config["batch"], self.shape.embedding)
        if len(faces) < least:
            raise ConfigError(
                f"{len(faces)} pictures are too few: batch and shape.embedding need {least}"
            )
        self.entropy_options()

    @property
    def identity(self) -> Faceres | None:
        """The network whose embedding the basic layer carries, if there is one."""
        if not self.shape.identity:
            return None
        return Faceres.load(teacher_file("faceres"), size=224)

    def entropy_options(self, **paths: Path) -> argparse.Namespace:
        """`training.train_entropy`'s options with those of the section `entropy`."""
        here = Path()
        options = train_entropy.options(["--checkpoint", str(here), "--out", str(here)])
        given = self.config.get("entropy", {})
        unknown = sorted(set(given) - set(vars(options)))
        if unknown:
            raise ConfigError(f"unknown settings in [entropy]: {', '.join(unknown)}")
        return argparse.Namespace(**{**vars(options), **given, **paths})

    def make(self, out: Path) -> str:
        """Run all stages; returns the name of the bundle in `out`."""
        prior = self.make_prior()
        faces = self.make_faces()
        synthetic = self.make_synthetic(prior)
        checkpoint = self.make_codec(prior, faces, synthetic) / "checkpoint.pt"
        entropy = self.make_entropy(faces, checkpoint)
        heads = self.make_heads(faces, checkpoint) / "heads.pt"
        done = self.make_export(prior, faces, checkpoint, entropy, heads)
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        for path in sorted(done.iterdir(), key=lambda path: path.name == MANIFEST):
            if path.name != "stage.json":
                shutil.copy2(path, out / path.name)
        for name in FOUND_FACES_WITH:
            shutil.copy2(models_dir() / name, out / name)
        return ModelBundle.load(out).hash

    # -- stages

    def make_prior(self) -> Path:
        """Samples of W for the whitening and synthetic faces, and the graphs that serve."""
        samples = int(self.config.get("whitening", {}).get("samples", 8192))
        seed = self.config["seed"]
        prior = self.prior

        @torch.no_grad()
        def make(folder: Path) -> None:
            random = torch.Generator().manual_seed(seed)
            z = torch.randn(samples, prior.latent_dim, generator=random)
            w = torch.cat([prior.mapping(part) for part in z.split(1024)]).numpy()
            np.save(folder / "w.npy", w)
            export_prior(prior.generator, folder)
            styles = sample_styles(w, 2, np.random.default_rng(seed), self.shape.styles)
            worst = largest_difference(prior.generator, folder, torch.from_numpy(styles))
            self.log.info("graphs differ from torch by at most %.4f of 2", worst)
            if not worst < LARGEST_DIFFERENCE:
                raise CheckpointError(f"the exported generator differs from torch by {worst:.3f}")
            (folder / "report.json").write_text(json.dumps({"difference": worst}))

        inputs = {"weights": files_digest(prior.files), "samples": samples, "seed": seed}
        return self.stages.run("prior", inputs, make)

    def make_faces(self) -> Path:
        """The pictures, and what teachers say of them."""

        def make(folder: Path) -> None:
            pictures = read_faces(self.faces)
            answers, who = measure(pictures, self.teachers)
            self.log.info(
                "%d pictures, a face confirmed in %d", len(pictures), answers["mesh_found"].sum()
            )
            np.save(folder / "pictures.npy", pictures)
            np.savez(folder / "targets.npz", **answers)
            (folder / "teachers.json").write_text(json.dumps(who))

        inputs = {
            "faces": files_digest(self.faces),
            "teachers": self.teachers,
            "weights": files_digest(self.teacher_files),
        }
        return self.stages.run("faces", inputs, make)

    def make_synthetic(self, prior: Path) -> Path:
        """Pairs of pictures and styles."""
        count, seed = self.config["synthetic"], self.config["seed"]

        def make(folder: Path) -> None:
            w = np.load(prior / "w.npy")
            styles = sample_styles(w, count, np.random.default_rng(seed), self.shape.styles)
            np.save(folder / "styles.npy", styles)
            np.save(folder / "pictures.npy", render(self.prior.generator, styles))

        inputs = {"prior": self.stages.keys["prior"], "count": count, "seed": seed}
        return self.stages.run("synthetic", inputs, make)

    def make_codec(self, prior: Path, faces: Path, synthetic: Path) -> Path:
        """The codec; an interrupted training goes on from its last checkpoint."""

        def make(folder: Path) -> None:
            faceres = teacher_file("faceres") if self.shape.identity else None
            fakes = np.load(synthetic / "pictures.npy")
            materials = Materials(
                generator=self.prior.generator,
                shape=self.shape,
                w=np.load(prior / "w.npy"),
                pictures=np.load(faces / "pictures.npy", mmap_mode="r"),
                targets=dict(np.load(faces / "targets.npz")),
                fake_pictures=fakes,
                fake_styles=np.load(synthetic / "styles.npy"),
                fake_embeddings=identity_of(fakes, faceres)["embedding"] if faceres else None,
                teacher=Faceres.load(faceres, size=112) if faceres else None,
                backbone=self.backbone,
            )
            trainer = Trainer(self.config, materials, folder)
            trainer.resume()
            steps = self.config["steps"]

            def report(line: dict[str, Any]) -> None:
                left = (steps - line["step"]) * line["s_per_step"] / 60
                self.log.info(
                    "codec: step %d of %d, loss %.3f, %.0f minutes left",
                    line["step"], steps, line["total"], left,
                )

            trainer.run(report)

        config = {k: v for k, v in self.config.items() if k not in (*OWN_SECTIONS, "name")}
        keys = {name: self.stages.keys[name] for name in ("prior", "faces", "synthetic")}
        backbone = file_hash(self.backbone) if self.backbone else None
        return self.stages.run("codec", {"config": config, "backbone": backbone, **keys}, make)

    def make_entropy(self, faces: Path, checkpoint: Path) -> Path:
        """Entropy model and tables, on the symbols of the pictures."""

        def make(folder: Path) -> None:
            options = self.entropy_options(checkpoint=checkpoint, out=folder)
            codec = load_codec(checkpoint)
            pictures = np.load(faces / "pictures.npy", mmap_mode="r")
            with np.load(faces / "targets.npz") as file:
                embeddings = file["embedding"] if self.shape.identity else None
            held_out = np.zeros(len(pictures), bool)
            held_out[self.dev] = True
            sets = {
                name: collect_symbols(
                    codec, self.prior.generator, pictures[chosen],
                    None if embeddings is None else embeddings[chosen],
                    self.config["input"], options.rates_each, flips=name == "train",
                )
                for name, chosen in (("train", ~held_out), ("dev", held_out))
            }
            report = train_entropy.fit(options, sets, gain_tables(codec))
            (folder / "report.json").write_text(json.dumps(report))

        inputs = {
            "codec": self.stages.keys["codec"],
            "config": self.config.get("entropy", {}),
            "format": FORMAT,
        }
        return self.stages.run("entropy", inputs, make)

    def make_heads(self, faces: Path, checkpoint: Path) -> Path:
        """The machine-task heads."""
        given = self.config.get("heads", {})

        def make(folder: Path) -> None:
            projection = torch.load(checkpoint, weights_only=True)["projection"]
            targets = train_heads.Targets.of(dict(np.load(faces / "targets.npz")), projection)
            heads = train_heads.train(
                load_codec(checkpoint),
                self.identity,
                np.load(faces / "pictures.npy", mmap_mode="r"),
                targets,
                self.config["input"],
                int(given.get("steps", 3000)),
                report=lambda line: self.log.info("heads: %s", line),
            )
            heads.save(folder / "heads.pt")

        inputs = {"codec": self.stages.keys["codec"], "config": given}
        return self.stages.run("heads", inputs, make)

    def make_export(
        self, prior: Path, faces: Path, checkpoint: Path, entropy: Path, heads: Path
    ) -> Path:
        """All files of the bundle, its manifest and its card."""

        def make(folder: Path) -> None:
            meta = export_codec(
                load_codec(checkpoint), TaskHeads.load(heads), self.config["input"],
                self.identity, folder,
            )
            for path in (
                prior / "generator_low.onnx", prior / "generator_high.onnx",
                entropy / "entropy.npz", entropy / "tables.npz",
            ):  # fmt: skip
                shutil.copy2(path, folder / path.name)
            meta["teachers"] = json.loads((faces / "teachers.json").read_text())
            meta["generator"] = {
                "kind": self.prior.kind,
                "resolution": self.prior.generator.resolution,
                "sha256": [file_hash(path) for path in self.prior.files],
            }
            name = ModelBundle.write(folder, meta)
            entropy_report = json.loads((entropy / "report.json").read_text())
            difference = json.loads((prior / "report.json").read_text())["difference"]
            facts = {
                "pictures": len(self.faces),
                "held_out": len(self.dev),
                "difference": difference,
                "bytes_by_rate": entropy_report["dev_bytes_by_rate"],
            }
            (folder / "bundle.md").write_text(card(name, meta, self.config, facts))

        keys = {name: self.stages.keys[name] for name in ("prior", "entropy", "heads")}
        return self.stages.run("bundle", {**keys, "format": FORMAT}, make)


def make_log(work: Path) -> logging.Logger:
    """To standard error, and to `make_bundle.log` in the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("sfic.make_bundle")
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    for handler in (logging.StreamHandler(), logging.FileHandler(work / "make_bundle.log")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    return log


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", type=Path, help="StyleGAN2 checkpoint (default: built-in)")
    parser.add_argument("--config", type=Path, required=True, help="TOML, see training/configs/")
    parser.add_argument("--faces", type=Path, required=True, help="folder of FFHQ-aligned pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    parser.add_argument("--work", type=Path, help="where stages keep their results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        config = read_config(args.config)
        work = args.work or cache_dir() / "bundles" / str(config["name"])
        prior, faces = load_prior(args.generator), face_files(args.faces)
        log = make_log(work)
        name = BundleMaker(config, prior, faces, work, log).make(args.out)
        log.info("model bundle %s is in %s", name, args.out)
    except SficError as error:
        print(f"make_bundle: {error}", file=sys.stderr)
        return error.exit_code
    except KeyError as error:
        print(f"make_bundle: {args.config} lacks the setting {error}", file=sys.stderr)
        return ConfigError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
