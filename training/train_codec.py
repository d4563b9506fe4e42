"""Train the codec end to end: rate of every layer, machine tasks, and quality of every level.

    python -m training.train_codec --config training/configs/codec-v2.toml

One objective, `distortion + sum over layers of lambda(rate) * bits`, with the rate drawn anew for
each face, so that one model covers all rates. The lambdas follow the byte budget of each layer by
dual ascent. Resumes from its last checkpoint in `SFIC_CACHE/<name>/`; logs one JSON line each few
steps to `log.jsonl` beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfic.entropy.transformer import SPATIAL
from sfic.errors import ConfigError
from sfic.networks.codec import KNOTS, LAYERS, FaceCodec, agree, at_rate, quantise
from sfic.networks.efficientnet import EfficientNetLite0
from training.codec_checkpoint import CODED, widened
from training.codec_data import Batch, Batches, resize, to_tensor
from training.codec_start import start_from_bundle
from training.data import cache_dir
from training.feedback import Found, feedback_loss
from training.materials import Materials, shipped_materials
from training.settings import read_config
from training.teachers import Box, crop_and_resize

PARTS = (*LAYERS, "spatial")
TEXTURE_SHIFT = 8  # the largest stride of the features that textures are compared in
# By the factorised laws that training uses; the entropy transformer needs a quarter less.
BYTES_LOW = {"basic": 45.0, "middle": 4.0, "enhanced": 2.0, "spatial": 43.0}
BYTES_HIGH = {"basic": 170.0, "middle": 60.0, "enhanced": 30.0, "spatial": 1500.0}


def target_bits(layer: str, t: Tensor) -> Tensor:
    """Byte budget of a part at rate t in 0..1, in bits: log-linear, 94 to 1,760 bytes in all."""
    low, high = BYTES_LOW[layer], BYTES_HIGH[layer]
    return 8.0 * low * (high / low) ** t


class RateWeights:
    """log lambda(t) of each layer, linear between knots, moved so that the bits meet their budget.

    Distortion falls by less and less for a byte, so lambda comes to be two orders of magnitude
    higher at the lowest rate than at the highest.
    """

    def __init__(self, start: float, step: float) -> None:
        first = math.log(start) - torch.linspace(0.0, 2.0, KNOTS)
        self.knots = {name: first.clone() for name in PARTS}
        self.step = step

    def weight(self, layer: str, t: Tensor) -> Tensor:
        """Lambda for each face of the batch, [N], in distortion per kilobit."""
        return torch.exp(at_rate(self.knots[layer], t))

    def update(self, layer: str, t: Tensor, bits: Tensor) -> None:
        """Raise lambda where bits are over budget; t, bits: [n] of the faces that paid."""
        if len(t) == 0:
            return
        error = (bits / target_bits(layer, t)).log().clamp(-2, 2)
        share = at_rate(torch.eye(KNOTS), t)  # [n, K], of each face in each knot
        self.knots[layer] += self.step * (share * error[:, None]).sum(dim=0) * KNOTS / len(t)
        # Where more bits buy nothing, or fewer would cost everything, the budget is not the law.
        self.knots[layer].clamp_(-9.0, 3.0)


def half() -> torch.autocast:
    """bfloat16 inside the frozen generator: a third of its time on CPUs that have it."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def pyramid_l1(a: Tensor, b: Tensor, levels: int) -> Tensor:
    """Mean absolute difference over `levels` scales, each half the one before: [N]."""
    total = (a - b).abs().mean(dim=(1, 2, 3))
    for _ in range(levels - 1):
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total + (a - b).abs().mean(dim=(1, 2, 3))
    return total


def jittered_box(box: Box, rng: np.random.Generator) -> Box:
    """The teacher's face box, moved and scaled a little: identity must not hang on one crop."""
    x0, y0, x1, y1 = box
    cx, cy, half = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
    half *= float(np.exp(rng.normal(0, 0.06)))
    cx += float(rng.normal(0, 0.015))
    cy += float(rng.normal(0, 0.015))
    return (cx - half, cy - half, cx + half, cy + half)


class Trainer:
    """State of one run: networks, optimiser, rate weights, step.

    With `styles = false` in its configuration a run trains the spatial code alone, on styles that
    stay as they are: three times as many faces a second.
    """

    def __init__(
        self,
        config: dict[str, Any],
        materials: Materials | None = None,
        folder: Path | None = None,
    ) -> None:
        """`materials`: by default the shipped codec's; `folder`: by default the cache's."""
        self.config = config
        self.folder = folder or cache_dir() / config["name"]
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config["seed"])
        self.rng = np.random.default_rng(config["seed"])
        self.materials = m = materials or shipped_materials(config)
        self.generator, self.teacher, self.targets = m.generator, m.teacher, m.targets
        self.codec = FaceCodec(m.shape)
        self.perceptor: EfficientNetLite0 | None = None
        if m.backbone is not None:
            self.codec.trunk.backbone = EfficientNetLite0.load(m.backbone)
            if "textures" in config["losses"]:
                self.perceptor = EfficientNetLite0.load(m.backbone).frozen()
        self.codec.whitening.fit(torch.from_numpy(m.w))
        self.projection = self._embedding_projection()
        embedding = torch.from_numpy(self.targets["embedding"]) @ self.projection
        self.embedding = F.normalize(embedding, dim=1)  # [M, D]
        if m.shape.identity:
            self.codec.start_identity(torch.from_numpy(self.targets["embedding"]))
        if "start_from" in config:
            start_from_bundle(self.codec, Path(config["start_from"]), config["start_parts"])
        if "only" in config:
            for name, parameter in self.codec.named_parameters():
                parameter.requires_grad_(name.startswith(tuple(config["only"])))
        size = config["input"]
        self.fake_pictures, self.fake_styles = m.fake_pictures, m.fake_styles
        self.size = size
        backbone = list(self.codec.trunk.backbone.parameters())
        laws = self.codec.law_parameters()
        networks = (
            self.codec.spatial_analysis,
            self.codec.spatial_refinement,
            self.codec.spatial_synthesis,
        )
        # A block transform that starts right: steps of the networks' size leak the great energy of
        # its first components into the small last ones.
        transform = [
            *self.codec.spatial_refinement.linear.parameters(),
            *self.codec.spatial_synthesis.linear.parameters(),
        ]
        slow = {id(p) for p in transform}
        spatial = [p for network in networks for p in network.parameters() if id(p) not in slow]
        special = {id(p) for p in (*backbone, *laws, *spatial, *transform)}
        rest = [p for p in self.codec.parameters() if id(p) not in special]
        for network in networks:
            network.to(memory_format=torch.channels_last)  # a fifth faster
        c = config
        self.optimiser = torch.optim.AdamW(
            [
                {"params": backbone, "lr": 1.0, "share": 0.3},
                {"params": rest, "lr": 1.0, "share": 1.0},
                {"params": spatial, "lr": 1.0, "share": 1.0},
                {"params": transform, "lr": 1.0, "share": config.get("transform", 1.0)},
                {"params": laws, "lr": 1.0, "share": c.get("laws", 5.0), "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.weights = RateWeights(config["lambda_start"], config["lambda_step"])
        self._set_prices()
        self.found: Found | None = None
        if "feedback" in config:  # the name of a file of `training.feedback`
            if "feedback" not in config["losses"] or config.get("feedback_faces", 0) < 1:
                raise ConfigError("feedback needs a weight, losses.feedback, and feedback_faces")
            self.found = Found.load(cache_dir() / config["feedback"])
        self.step = 0
        self.seconds = 0.0
        self.average = {k: v.clone() for k, v in self.codec.state_dict().items()}

    def _set_prices(self) -> None:
        """Take log lambda of a part at each knot from `[prices]` of the configuration."""
        for part, knots in self.config.get("prices", {}).items():
            self.weights.knots[part] = torch.tensor(knots)

    def _embedding_projection(self) -> Tensor:
        """1024 -> D: the leading principal directions of the teacher's unit embeddings."""
        x = torch.from_numpy(self.targets["embedding"]).double()
        _, _, vt = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
        return vt[: self.codec.shape.embedding].T.float()  # [1024, D]

    # -- checkpoints

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        part = self.checkpoint.with_suffix(".part")
        torch.save(
            {
                "codec": self.codec.state_dict(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "lambda": self.weights.knots,
                "step": self.step,
                "seconds": self.seconds,
                "projection": self.projection,
                "shape": asdict(self.codec.shape),
                "config": self.config,
            },
            part,
        )
        part.rename(self.checkpoint)

    def resume(self, path: Path | None = None) -> None:
        """Go on from our own checkpoint, or start from the weights of another run."""
        own = self.checkpoint.exists()
        source = self.checkpoint if own else path
        if source is None:
            return
        state = torch.load(source, weights_only=True)
        self.average = widened(state["average"], self.codec)
        self.codec.load_state_dict(widened(state["codec"], self.codec))
        self.weights.knots |= state["lambda"]
        self._set_prices()
        if own:
            if len(state["optimiser"]["param_groups"]) == len(self.optimiser.param_groups):
                self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]

    # -- one step

    def done(self) -> float:
        """Part of the run that is over: of its steps, or of its `minutes` if that is more."""
        minutes = self.config.get("minutes", math.inf)
        return max(self.step / self.config["steps"], self.seconds / 60 / minutes)

    def learning_rate(self) -> float:
        c = self.config
        warm = min(1.0, (self.step + 1) / c["warmup"])
        done = min(1.0, self.done())
        return float(c["lr"] * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))))

    def style_losses(
        self, batch: Batch, z: dict[str, Tensor], t: Tensor, noise: bool
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Losses of the style layers, each face judged after one layer, drawn at random.

        Also the styles [N, 16, 512], their features [N, 512, 32, 32] and preview [N, 3, 64, 64].
        """
        c, codec, generator = self.config, self.codec, self.generator
        n = len(batch.index)
        level = torch.from_numpy(self.rng.choice(3, size=n, p=c["level_shares"]))
        coded = codec.code_styles(z, t, noise)
        stack = torch.stack([coded.coefficients[name] for name in LAYERS])  # [3, N, 16, K]
        coefficients = stack[level, torch.arange(n)]  # [N, 16, K]
        styles = codec.whitening.to_styles(coefficients)
        with half():
            features = generator.features(styles, 32)
            preview = generator.head(features, styles, 32).float()
        features = features.float()
        losses: dict[str, Tensor] = {}
        if not c["styles"]:
            return losses, styles, features, preview
        target = resize(batch.target, codec.shape.picture)
        losses["pixels"] = pyramid_l1(preview, resize(target, codec.shape.preview), 3).mean()
        if self.teacher is not None:
            losses["identity"], losses["perceptual"] = self.identity_loss(preview, target)
        losses |= self.task_losses(batch, coded.latents["basic"])
        losses["prior"] = F.relu(coefficients.square().mean(dim=2) - 1.0).mean()
        rate = torch.zeros(())
        for i, name in enumerate(LAYERS):
            pays = level >= i
            rate = rate + self.price(name, t, coded.bits[name], pays)
            losses[f"bytes_{name}"] = coded.bits[name].detach().mean() / 8
        losses["rate"] = rate
        return losses, styles, features, preview

    def spatial_losses(
        self,
        batch: Batch,
        t: Tensor,
        noise: bool,
        styles: Tensor,
        features: Tensor,
        preview: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of the spatial code, which starts from what the styles show, and stops there."""
        c, codec, generator = self.config, self.codec, self.generator
        side = codec.shape.picture
        below, shown = features.detach(), preview.detach().clamp(-1.2, 1.2)
        target = resize(batch.target, side)  # [N, 3, 128, 128]
        few = slice(0, c.get("judged", len(t)))
        corrected = max(c.get("corrected", c.get("judged", len(t))), c["full"])
        synthesis = codec.spatial_synthesis
        with half():
            seen = resize(batch.seen, side)
            code, bits = codec.code_spatial(seen, below, shown, t, noise)
            # What the middle layer shows: coarse channels alone.
            fine = torch.rand(len(t), 1, 1, 1) >= c.get("coarse_alone", 0.0)
            coarse = codec.shape.coarse_channels
            code = torch.cat((code[:, :coarse], code[:, coarse:] * fine), dim=1)
            mixed = synthesis.mixed(code, below)
            picture = synthesis.picture(mixed, code, shown).float()
        # High rates err less, and would count less for it.
        tilt = torch.exp(c.get("tilt", 0.0) * (t - 0.5))
        losses = {
            "picture": (tilt * pyramid_l1(picture, target, 4)).mean(),
            "rate_spatial": self.price("spatial", t, bits, torch.ones(len(t), dtype=torch.bool)),
            "bytes_spatial": bits.detach().mean() / 8,
        }
        if corrected:
            less = slice(0, corrected)
            styles = styles[less].detach()
            with half():
                correction = synthesis.correction(mixed[less])
                head = generator.head(below[less] + correction, styles, 32).float()
            correction = correction.float()
            target64 = resize(target[less], codec.shape.preview)
            losses["pixels_corrected"] = pyramid_l1(head, target64, 3).mean()
            losses["correction"] = (correction.square().mean() + 1e-6).sqrt()
        if self.perceptor is not None:
            losses["textures"] = self.texture_loss(picture[few], target[few])
        if self.teacher is not None:
            losses["picture_identity"], losses["picture_perceptual"] = self.identity_loss(
                picture[few], target[few]
            )
        if c["full"] and self.step >= c.get("full_from", 0):
            few = slice(0, c["full"])
            losses |= self.full_losses(
                below[few] + correction[few], styles[few], picture[few], batch.target[few]
            )
        return losses

    def price(self, part: str, t: Tensor, bits: Tensor, pays: Tensor) -> Tensor:
        """lambda(t) times bits of the faces that pay, over all faces; moves lambda."""
        # Bits dear from the start would leave channels dead that nothing wakes up later.
        ramp = min(1.0, (self.step + 1) / self.config["warmup"])
        weight = ramp * self.weights.weight(part, t) / 1000.0 / len(t)  # [N]
        if self.step > self.config["warmup"]:
            self.weights.update(part, t[pays], bits.detach()[pays])
        return (weight * bits * pays).sum()

    def task_losses(self, batch: Batch, basic: Tensor) -> dict[str, Tensor]:
        """What machines read from the decoded basic latents, against the teachers' answers."""
        heads, index, targets = self.codec.heads(basic), batch.index, self.targets
        losses = {
            "embedding": (1 - (heads["embedding"] * self.embedding[index]).sum(dim=1)).mean()
        }
        known = (batch.landmarks != 0).any(dim=2).any(dim=1)
        distance = (heads["landmarks"] - batch.landmarks).abs().mean(dim=(1, 2))
        losses["landmarks"] = 10 * (distance * known).mean()
        answers = heads["attributes"]
        attributes = torch.zeros(())
        if "age" in targets:
            age = torch.from_numpy(targets["age"][index]) / 50.0
            attributes = attributes + (answers[:, 0] - age).abs().mean()
        for column, name in enumerate(("gender", "smile"), 1):
            if name in targets:
                wanted = torch.from_numpy(targets[name][index]).clamp(0.02, 0.98)
                attributes = attributes + 0.3 * F.binary_cross_entropy_with_logits(
                    answers[:, column], wanted
                )
        return losses | {"attributes": attributes}

    def texture_loss(self, picture: Tensor, target: Tensor) -> Tensor:
        """Distance of features of an ImageNet network at strides 2, 4 and 8."""
        assert self.perceptor is not None
        # From another corner each time: a pattern with the period of the strides, which fixed ones
        # reward, is seen by everyone else.
        y, x = (int(start) for start in self.rng.integers(0, TEXTURE_SHIFT, 2))
        side = picture.shape[2] - TEXTURE_SHIFT
        picture, target = (one[:, :, y : y + side, x : x + side] for one in (picture, target))
        with torch.no_grad():
            want = self.perceptor.features(target, stages=3)
        have = self.perceptor.features(picture, stages=3)
        distance = torch.zeros(())
        for a, b in zip(have, want, strict=True):
            scale = b.square().mean(dim=1, keepdim=True).add(1e-3).rsqrt()  # [N, 1, h, w]
            distance = distance + ((a - b) * scale).abs().mean()
        return distance / len(have)

    def full_losses(
        self, features: Tensor, styles: Tensor, picture: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """Losses of finished pictures, averaged down to the size of the targets.

        Only these see the upper styles on real faces, and whether the blocks above take a corrected
        feature map as the preview does.
        """
        with half():
            image = self.generator.from_features(features, styles, 32)
        image = image.float()
        if image.shape[2] < target.shape[2]:  # a small generator of one's own
            target = resize(target, image.shape[2])
        small = resize(image, target.shape[2])  # [n, 3, S, S], S of the targets
        out = agree(small, picture)
        lower = resize(small, picture.shape[2])
        losses = {
            "pixels_full": pyramid_l1(out, target, 4).mean(),
            # What `agree` has to move must stay little, or the texture sits on other edges.
            "agreement": (lower - picture.detach()).abs().mean(),
        }
        if self.teacher is not None:
            losses["identity_full"], losses["perceptual_full"] = self.identity_loss(out, target)
        if self.perceptor is not None:
            losses["textures_full"] = self.texture_loss(out, target)
        return losses

    def identity_loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """1 - cosine of the teacher's embeddings, and distance of its features, on one crop."""
        assert self.teacher is not None
        box = jittered_box(self.teacher.box, self.rng)
        with torch.no_grad():
            want = self.teacher.features(crop_and_resize(target, 112, box))
        have = self.teacher.features(crop_and_resize(out, 112, box))
        distance = torch.zeros(())
        for a, b in zip(have, want, strict=True):
            scale = b.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt()  # [N, 1, h, w]
            distance = distance + ((a - b) * scale).abs().mean()
        e1 = F.normalize(have[-1].mean(dim=(2, 3)), dim=1)
        e2 = F.normalize(want[-1].mean(dim=(2, 3)), dim=1)
        return (1 - (e1 * e2).sum(dim=1)).mean(), distance / len(have)

    def fake_losses(self, styles: Tensor, z: dict[str, Tensor]) -> dict[str, Tensor]:
        """Synthetic faces know their latents: distance of coefficients, weighted by variance."""
        codec = self.codec
        t = torch.rand(len(styles))
        want = codec.whitening.to_coefficients(styles)  # [N, 16, K]
        latents: dict[str, Tensor] = {}
        for name in LAYERS:
            gain = codec.gains[name](t)
            latents[name] = quantise(z[name] * gain, noise=True) / gain
        have = codec.coefficients(latents)
        weight = codec.whitening.scale.square()
        weight = weight / weight.mean()
        share = {"basic": 0.5, "middle": 0.25, "enhanced": 1.0}
        total = torch.zeros(())
        for name, w in share.items():
            total = total + w * ((have[name] - want).square() * weight).mean()
        return {"latents": total}

    def train_step(self, batch: Batch) -> dict[str, float]:
        c, codec = self.config, self.codec
        count, n = len(self.fake_pictures), len(batch.index)
        fake = np.sort(self.rng.choice(count, c["batch_synthetic"], replace=False))
        shown = torch.cat((batch.seen, to_tensor(self.fake_pictures[fake])))
        embedding = None
        if codec.shape.identity:
            assert self.materials.fake_embeddings is not None
            rows = (self.targets["embedding"][batch.index], self.materials.fake_embeddings[fake])
            embedding = torch.from_numpy(np.concatenate(rows))
        t = torch.rand(n)
        # Noise where most symbols are 0 is an error, and a price, that coding does not have.
        noise = bool(self.rng.random() < c.get("noise", 0.5))
        with torch.set_grad_enabled(bool(c["styles"])):
            z = codec.analyse(resize(shown, self.size), embedding)
            real = {k: v[:n] for k, v in z.items()}
            losses, styles, features, preview = self.style_losses(batch, real, t, noise)
            if c["styles"]:
                known = torch.from_numpy(np.array(self.fake_styles[fake]))
                losses |= self.fake_losses(known, {k: v[n:] for k, v in z.items()})
        losses |= self.spatial_losses(batch, t, noise, styles, features, preview)
        if self.found is not None:
            losses["feedback"] = feedback_loss(
                codec, self.generator, self.found.draw(self.rng, c["feedback_faces"]),
                self.materials.pictures, self.targets["embedding"],
                CODED if c["styles"] else SPATIAL,
            )
        total = sum(
            (c["losses"][name] * value for name, value in losses.items() if name in c["losses"]),
            torch.zeros(()),
        )
        rate = self.learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), c["clip"])
        if torch.isfinite(norm):
            self.optimiser.step()
        keep = min(c["average"], (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.codec.state_dict().items():
                if value.dtype.is_floating_point:
                    self.average[name].lerp_(value, 1 - keep)
        self.step += 1
        result = {name: float(value.detach()) for name, value in losses.items()}
        return result | {"total": float(total.detach()), "norm": float(norm), "lr": rate}

    def run(self, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Train to the last step; `report` is given each line of the log."""
        c = self.config
        self.codec.train()
        self.codec.trunk.backbone.eval()
        if c.get("norms_fixed", False):
            # Statistics of single batches are noise that a fine quantiser pays for.
            self.codec.spatial_analysis.eval()
            self.codec.spatial_refinement.eval()
        batches = iter(
            Batches(
                self.materials.pictures,
                self.targets["landmarks68"],
                c["batch"],
                seed=c["seed"] + self.step,
                degraded=c.get("degraded", 1.0),
            )
        )
        sums: dict[str, list[float]] = defaultdict(list)
        last_save = last_log = time.monotonic()
        with (self.folder / "log.jsonl").open("a") as log:
            while self.done() < 1.0:
                begin = time.monotonic()
                for name, value in self.train_step(next(batches)).items():
                    sums[name].append(value)
                now = time.monotonic()
                self.seconds += now - begin
                if self.step % c["log_every"] == 0:
                    line: dict[str, Any] = {"step": self.step, "hours": self.seconds / 3600}
                    line |= {name: round(float(np.mean(v)), 5) for name, v in sums.items()}
                    line["lambda"] = {
                        k: [round(float(x), 3) for x in v] for k, v in self.weights.knots.items()
                    }
                    line["s_per_step"] = round((now - last_log) / c["log_every"], 3)
                    last_log = now
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    sums.clear()
                    if report is not None:
                        report(line)
                if now - last_save > 180 or self.done() >= 1.0:
                    self.save()
                    last_save = time.monotonic()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from this checkpoint's weights")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(read_config(args.config))
    trainer.resume(args.init)
    trainer.run()


if __name__ == "__main__":
    main()
