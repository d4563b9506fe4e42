"""The codec: aligned faces to three packets, packets to pictures and machine-task results.

What belongs here: the order in which networks, quantiser, entropy model and packets are run. Each
of them has a module of its own; training is in `training/`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from sfic import exposure
from sfic.alignment import align
from sfic.analysis import HEADS, Analysis, SamePerson, read_heads
from sfic.bundle import ModelBundle
from sfic.detection import DetectedFace, FaceDetector
from sfic.effort import STEPS, Laws, Refiner
from sfic.entropy.model import PARTS, SPATIAL, EntropyModel, LayerSymbols
from sfic.entropy.tables import TableSet
from sfic.errors import BundleError, InvalidInput, LayerMissing, PacketError, SficError
from sfic.face import EncodedFace
from sfic.face_score import face_score
from sfic.generator import OnnxGenerator, agree, to_rgb
from sfic.layers import LAYERS, Layer, as_layer, up_to
from sfic.onnx_outputs import output_names
from sfic.packet import RATES, PacketHeader, open_packet, parse_header, seal_packet, verify
from sfic.runtime import OPENVINO, choose_provider, make_session

__all__ = ["CROP_SIZE", "SIZES", "Codec"]

Rgb = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

SIZES: Final = (128, 256, 512, 1024)  # of a bundle that does not state its own
CROP_SIZE: Final = 512
# Squared distance, in quantiser steps, that a bit is worth. Where steps balance bits and
# distortion, a uniform quantiser's, step^2 / 12, falls by ln(2) / 6 of a squared step a bit. A
# quarter of it: at all of it faces lose more than their bytes are worth (training/LOG.md).
PRICE: Final = math.log(2.0) / 24.0
PRICE_MIN: Final = 1e-3
PRICE_MAX: Final = 1e3
TARGET_STEPS: Final = 14
# What each part loads, that which takes longest first.
_NETWORKS: Final = {
    "encode": (
        "_analysis", "_style_network", "_generator", "_spatial_analysis", "_detector", "_entropy"
    ),
    "decode": ("_generator", "_style_network", "_correction", "_entropy"),
    "analyze": ("_heads", "_entropy"),
}  # fmt: skip
MOST_BYTES: Final = 1311  # of a face at a rate: 0.01 bit for each of 1024x1024 pixels


class Codec:
    """Encodes and decodes faces with one model bundle.

    Networks are loaded when they are first needed (`warm_up` loads them ahead); they are shared by
    all threads that use the codec.
    """

    def __init__(self, bundle: ModelBundle, provider: str = "auto", threads: int = 0) -> None:
        """Use `load`."""
        self.bundle = bundle
        self._provider = provider
        self._threads = threads

    @classmethod
    def load(
        cls, bundle: Path | str | None = None, *, provider: str = "auto", threads: int = 0
    ) -> Codec:
        """Open the model bundle in a directory (default: the one that ships).

        `provider`: "auto", "cpu", "openvino" or "cuda" (see `sfic.runtime`). `threads`: threads of
        one network, 0: all cores.
        Raises BundleError when the bundle is not whole or lacks the heads of a machine task,
        ProviderUnavailable for a GPU that is not there (when the first large network is loaded).
        """
        directory = None if bundle is None else Path(bundle)
        codec = cls(ModelBundle.load(directory), provider, threads)
        there = output_names(codec.bundle.path("heads.onnx").read_bytes())
        lacking = [name for name in HEADS if name not in there]
        if lacking:
            raise BundleError(
                f"model bundle {codec.model_bundle} has no head for {', '.join(lacking)}: train its"
                " heads again with `python -m training.train_heads`, and export"
            )
        return codec

    @property
    def model_bundle(self) -> str:
        """Name of the model bundle, 16 hex digits."""
        return self.bundle.hash

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the pictures that `decode` makes, ascending; they depend on the bundle."""
        return tuple(int(size) for size in self.bundle.meta.get("sizes", SIZES))

    @cached_property
    def same_person(self) -> SamePerson | None:
        """What a cosine of two embeddings means; None for a bundle that was not calibrated."""
        given = self.bundle.meta.get("same_person")
        if given is None:
            return None
        rows = tuple((float(t), float(m), float(n)) for t, m, n in given["error_rates"])
        return SamePerson(float(given["scale"]), float(given["offset"]), rows)

    @property
    def provider(self) -> str:
        """The execution provider that synthesis really runs on."""
        return self._generator.provider

    def warm_up(self, *parts: Literal["encode", "decode", "analyze"]) -> None:
        """Load what these parts need, and run what is quick, so that the first face is not slow."""
        wanted = parts or ("encode", "decode", "analyze")
        names = dict.fromkeys(name for part in wanted for name in _NETWORKS[part])
        largest = self.sizes[-1] if "decode" in wanted else None

        def load(name: str) -> None:
            network = getattr(self, name)
            if name == "_generator":
                network.load(largest)

        # Reading and arranging a network takes one core.
        with ThreadPoolExecutor(os.cpu_count() or 1, "load") as pool:
            list(pool.map(load, names))
        for part in wanted:
            if part == "encode":
                self.encode(np.zeros((256, 256, 3), np.uint8))
                self._detector.detect(np.zeros((256, 256, 3), np.uint8))
            elif part == "decode":
                self._picture(self._zeros(), self.sizes[0])
            else:
                self._run_heads(np.zeros((1, self._entropy.sizes["basic"][0]), np.float32))

    # -- encoding

    def encode(
        self,
        crop: Rgb,
        rate: int = 5,
        effort: int = 0,
        target_bytes: int | None = None,
        layers: str = "enhanced",
        brighten: bool = False,
    ) -> EncodedFace:
        """Encode an FFHQ-aligned face.

        `crop`: RGB uint8 [S, S, 3], any S from 32. `rate`: 1..9, more bytes and fidelity; a face
        that would be over 1,311 bytes (0.01 bit a pixel) is coded at the next lower rate.
        `effort`: 0..3, more time spent on choosing symbols; docs/figures/effort.md has what it
        gains. `target_bytes`: instead of a rate, the most that all packets together may have, met
        within 5 % unless the highest rate has less.
        `layers`: the highest that is made; "basic", all that machine tasks read, takes a fifth of
        the time. `brighten`: make a face in too little light as bright as others first
        (`sfic.exposure`).
        Raises InvalidInput when an argument is out of its range, MissingExtra when an effort needs
        the `train` extra.
        """
        crop = _checked_crop(crop)
        if effort not in range(4):
            raise InvalidInput(f"effort {effort!r} is not in 0..3")
        if rate not in RATES:
            raise InvalidInput(f"rate {rate!r} is not in 1..9")
        crop, brightened = exposure.brighten(crop) if brighten else (crop, 1.0)
        face = _Face(self, crop, effort, up_to(layers))
        if target_bytes is not None:
            return replace(self._encode_to(face, target_bytes), brightened=brightened)
        coded = self._encode_at(face, rate, face.price)
        while coded.total_bytes > MOST_BYTES and rate > RATES[0]:
            rate -= 1
            coded = self._encode_at(face, rate, face.price)
        return replace(coded, brightened=brightened)

    def encode_picture(
        self,
        picture: Rgb,
        rate: int = 5,
        effort: int = 0,
        target_bytes: int | None = None,
        max_faces: int = 32,
        layers: str = "enhanced",
        brighten: bool = True,
    ) -> list[EncodedFace]:
        """Find, align and encode the faces of a picture, RGB uint8 [H, W, 3]; largest first.

        An empty list when there is none. Each face knows its place, its score and its source size.
        Arguments as in `encode`; faces in too little light are made brighter unless `brighten` is
        False.
        """

        def encode_one(face: DetectedFace) -> EncodedFace:
            crop, placement = align(picture, face, size=CROP_SIZE)
            coded = self.encode(crop, rate, effort, target_bytes, layers, brighten)
            return replace(
                coded,
                placement=placement,
                face_score=face_score(crop, face, placement).score,
                source_size=placement.source_size,
            )

        found = self._detector.detect(picture, max_faces=max_faces)
        if len(found) < 2:
            return [encode_one(face) for face in found]
        # The networks are small: one face a core is faster than all cores for one face.
        return list(self._faces_pool.map(encode_one, found))

    def _analyse(self, crop: Rgb) -> dict[str, FloatArray]:
        """Latents of the three style layers, float32 [1, n] each."""
        size = int(self.bundle.meta["input"])
        outputs = _run(self._analysis, {"crop": _planes(_resize(crop, size))})
        return {name: outputs[name] for name in LAYERS}

    def _encode_at(self, face: _Face, rate: int, price: float) -> EncodedFace:
        """Quantise and code at one rate; `price`: see `EntropyModel.choose`.

        Of the ways to encode that an effort has, the one of least cost.
        """
        ways = face.candidates(rate)
        made = [self._code(values, rate, price, face.layers) for values in ways]
        if len(made) == 1:
            return made[0][0]
        return min(made, key=lambda one: face.cost(one[0], one[1], rate))[0]

    def _code(
        self,
        ideal: Callable[[str, LayerSymbols], FloatArray],
        rate: int,
        price: float,
        layers: Sequence[Layer],
    ) -> tuple[EncodedFace, LayerSymbols]:
        """Packets and symbols; `ideal`: see `EntropyModel.choose`."""
        symbols = LayerSymbols({})
        packets: dict[Layer, bytes] = {}
        for name in layers:
            # Who it is must not be traded away: the basic layer pays the usual price at most.
            worth = min(price, PRICE) if name == "basic" else price
            symbols, payload = self._entropy.choose(name, rate, ideal, symbols, worth)
            header = PacketHeader(name, rate, self.bundle.id)
            checked = [symbols.of_layer(lower) for lower in up_to(name)]
            packets[name] = seal_packet(header, payload, checked)
        coded = EncodedFace(
            packets["basic"], packets.get("middle"), packets.get("enhanced"), face_score=1.0
        )
        return coded, symbols

    def _missing(
        self, crop: Rgb, chosen: Mapping[str, npt.NDArray[np.int32]], rate: int
    ) -> dict[str, FloatArray]:
        """Latents [C, S, S] of both spatial codes: what the chosen styles alone do not show."""
        decoded: dict[str, FloatArray] = {
            name: self._dequantise(name, chosen[name], rate) for name in LAYERS
        }
        styles = self._styles(decoded)
        features = self._generator.features(styles)
        inputs = {
            "crop": _planes(_resize(crop, int(self.bundle.meta["picture"]))),
            "features": features,
            "preview": self._generator.preview(styles, features),
            "gain": np.concatenate([self._gain(part, rate) for part in SPATIAL])[None],
        }
        code = _run(self._spatial_analysis, inputs)["code"][0]
        ends = np.cumsum([self._entropy.sizes[part][0] for part in SPATIAL])
        return dict(zip(SPATIAL, np.split(code, ends[:-1]), strict=True))

    def _encode_to(self, face: _Face, target: int) -> EncodedFace:
        """The lowest rate that reaches `target` bytes, bits made dearer until they fit."""
        best = smallest = self._encode_at(face, RATES[0], PRICE_MAX)
        if target < smallest.total_bytes:
            raise InvalidInput(
                f"{target} bytes are too few for this face: at least {smallest.total_bytes}"
            )
        low, high = RATES[0], RATES[-1]
        while low < high:
            middle = (low + high) // 2
            if self._encode_at(face, middle, face.price).total_bytes >= target:
                high = middle
            else:
                low = middle + 1
        inside, outside = PRICE_MAX, face.price
        for step in range(TARGET_STEPS):
            worth = face.price if step == 0 else math.sqrt(inside * max(outside, PRICE_MIN))
            coded = self._encode_at(face, low, worth)
            if coded.total_bytes > target:
                outside = worth
                continue
            inside = worth
            if coded.total_bytes > best.total_bytes:
                best = coded
            if step == 0 or coded.total_bytes >= 0.98 * target:
                break
        return best

    # -- decoding

    def decode(self, face: EncodedFace, layers: str = "enhanced", size: int | None = None) -> Rgb:
        """Synthesise a face from its layers up to `layers`; RGB uint8 [size, size, 3].

        `size`: one of `sizes`, by default the largest (1024 of 128, 256, 512 and 1024 with the
        bundle that ships); InvalidInput, naming them, for another. Raises LayerMissing when a layer
        is not there, PacketError when one is broken or belongs to another face, BundleMismatch when
        it was made with another model bundle.
        """
        layer = as_layer(layers)
        size = self.sizes[-1] if size is None else size
        if size not in self.sizes:
            raise InvalidInput(f"size {size!r} is not one of {', '.join(map(str, self.sizes))}")
        symbols, rate = self.decode_symbols(face, layer)
        return self.synthesise(symbols, rate, layer, size)

    def synthesise(self, symbols: LayerSymbols, rate: int, layer: Layer, size: int) -> Rgb:
        """The second half of `decode`: a picture from symbols that `decode_symbols` gave."""
        decoded = {
            part: self._dequantise(part, symbols.parts[part], rate)
            for name in up_to(layer)
            for part in PARTS[name]
        }
        return to_rgb(self._picture(decoded, size))

    def _picture(self, decoded: Mapping[str, FloatArray], size: int) -> FloatArray:
        """Latents of some layers to a picture [3, size, size], about [-1, 1]."""
        generator = self._generator
        styles = self._styles(decoded)
        features = generator.features(styles)
        if SPATIAL[0] not in decoded:
            plain: FloatArray = generator.image(styles, features, size)[0]
            return plain
        inputs = {
            "code": np.concatenate([self._known(part, decoded) for part in SPATIAL], axis=1),
            "features": features,
            "preview": generator.preview(styles, features),
        }
        said = _run(self._correction, inputs)
        picture: FloatArray = said["picture"][0]
        if size == picture.shape[1]:
            return picture
        image = generator.image(styles, features + said["correction"], size)[0]
        return agree(image, picture)

    def _zeros(self) -> dict[str, FloatArray]:
        """Latents of a face of which nothing is known."""
        return {
            part: np.zeros((1, *size), np.float32) for part, size in self._entropy.sizes.items()
        }

    def decode_symbols(self, face: EncodedFace, layers: str) -> tuple[LayerSymbols, int]:
        """Symbols of the layers up to `layers`, and the rate they were quantised at."""
        rate = parse_header(face.basic).rate
        symbols = LayerSymbols({})
        for name in up_to(layers):
            packet = face.layers.get(name)
            if packet is None:
                raise LayerMissing(f"the {name} layer of this face is not there", layer=name)
            header, payload, check = open_packet(packet, layer=name, bundle=self.bundle.id)
            if header.rate != rate:
                raise PacketError(
                    f"the {name} packet is of rate {header.rate}, the basic one of {rate}: "
                    "they belong to different encodings"
                )
            symbols = self._entropy.decode(name, rate, payload, symbols)
            verify(check, header, [symbols.of_layer(lower) for lower in up_to(name)])
        return symbols, rate

    # -- machine tasks

    def analyze(self, basic: bytes) -> Analysis:
        """Machine-task results from a basic layer's packet alone. Errors as in `decode`."""
        result = self.analyze_batch([basic])[0]
        if isinstance(result, SficError):
            raise result
        return result

    def analyze_batch(self, basics: Sequence[bytes]) -> list[Analysis | SficError]:
        """As `analyze`, for many faces at once; a broken packet gives its error in its place."""
        results: dict[int, Analysis | SficError] = {}
        opened: dict[int, dict[int, tuple[PacketHeader, bytes, int]]] = {}  # by rate, by place
        for i, packet in enumerate(basics):
            try:
                header, payload, check = open_packet(packet, layer="basic", bundle=self.bundle.id)
            except SficError as error:
                results[i] = error
            else:
                opened.setdefault(header.rate, {})[i] = (header, payload, check)
        latents: dict[int, FloatArray] = {}
        for rate, packets in opened.items():
            payloads = [payload for _, payload, _ in packets.values()]
            decoded = self._entropy.decode_basic(rate, payloads)
            for (i, (header, _, check)), symbols in zip(packets.items(), decoded, strict=True):
                try:
                    if isinstance(symbols, SficError):
                        raise symbols
                    verify(check, header, [symbols.of_layer("basic")])
                except SficError as error:
                    results[i] = error
                else:
                    latents[i] = self._dequantise("basic", symbols.parts["basic"], rate)
        if latents:
            found = self._run_heads(np.concatenate(list(latents.values())))
            results.update(zip(latents, found, strict=True))
        return [results[i] for i in range(len(basics))]

    def _run_heads(self, latents: FloatArray) -> list[Analysis]:
        return read_heads(_run(self._heads, {"basic": latents}), self._score_law)

    @cached_property
    def _score_law(self) -> tuple[float, float]:
        given = self.bundle.meta.get("face_score", {"scale": 1.0, "offset": 0.0})
        return float(given["scale"]), float(given["offset"])

    # -- pieces

    def _gain(self, part: str, rate: int) -> FloatArray:
        gain: FloatArray = self._arrays[f"gain.{part}"][rate - 1]
        return gain[:, None, None] if part in SPATIAL else gain

    def _dequantise(self, part: str, symbols: npt.NDArray[np.int32], rate: int) -> FloatArray:
        """Symbols of one face to latents float32 [1, ...]."""
        latents: FloatArray = (symbols / self._gain(part, rate)).astype(np.float32)[None]
        return latents

    def _styles(self, decoded: Mapping[str, FloatArray]) -> FloatArray:
        """Latents to the generator's styles, float32 [1, styles, style_dim].

        What is to be expected of the upper styles is known with the middle layer.
        """
        inputs = {name: self._known(name, decoded) for name in LAYERS}
        wanted = "styles_enhanced" if LAYERS[1] in decoded else "styles_basic"
        styles: FloatArray = self._style_network.run([wanted], inputs)[0]
        return styles

    def _known(self, part: str, decoded: Mapping[str, FloatArray]) -> FloatArray:
        """Latents of a part [1, ...]; zeros while its layer is not there."""
        if part in decoded:
            return decoded[part]
        return np.zeros((1, *self._entropy.sizes[part]), np.float32)

    def _session(self, name: str, *, arena: bool = False) -> Any:
        return make_session(self.bundle.path(name), self._cpu_provider, self._threads, arena=arena)

    @property
    def _cpu_provider(self) -> str:
        """Of all but synthesis: the other networks take a few milliseconds on one core."""
        return "openvino" if choose_provider(self._provider) == OPENVINO else "cpu"

    @cached_property
    def _analysis(self) -> Any:
        return self._session("analysis.onnx")

    @cached_property
    def _spatial_analysis(self) -> Any:
        return self._session("spatial_analysis.onnx")

    @cached_property
    def _style_network(self) -> Any:
        return self._session("styles.onnx")

    @cached_property
    def _correction(self) -> Any:
        return self._session("correction.onnx", arena=True)

    @cached_property
    def _heads(self) -> Any:
        # Batches of any size, of a small network: not worth compiling for each.
        return make_session(self.bundle.path("heads.onnx"), "cpu", self._threads)

    @cached_property
    def _generator(self) -> OnnxGenerator:
        return OnnxGenerator(
            self.bundle.path("generator_low.onnx"),
            self.bundle.path("generator_high.onnx"),
            provider=self._provider,
            threads=self._threads,
        )

    @cached_property
    def _faces_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count() or 1, "face")

    @cached_property
    def _refiner(self) -> Refiner:
        return Refiner(self.bundle)

    @cached_property
    def _detector(self) -> FaceDetector:
        return FaceDetector(threads=self._threads, provider=self._cpu_provider)

    @cached_property
    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        try:
            with np.load(self.bundle.path("entropy.npz"), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read entropy.npz: {error}") from error

    @cached_property
    def _entropy(self) -> EntropyModel:
        tables = TableSet.load(self.bundle.path("tables.npz"))
        return EntropyModel.from_arrays(self._arrays, tables)


assert tuple(PARTS) == LAYERS


class _Face:
    """A face on its way to packets: its values before rounding, by rate, at one effort."""

    def __init__(self, codec: Codec, crop: Rgb, effort: int, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self._codec = codec
        self._crop = crop
        self._effort = effort
        self._latents = codec._analyse(crop)
        self._small = _planes(_resize(crop, int(codec.bundle.meta["picture"])))
        self._slopes: dict[int, float] = {}
        self._refined_styles: dict[int, dict[str, FloatArray]] = {}
        self._refined_spatial: dict[int, dict[str, FloatArray]] = {}
        # The last spatial codes that were made, and the rate and styles that they were made for.
        self._made_for: tuple[int, tuple[bytes, ...]] = (0, ())
        self._made: dict[str, FloatArray] = {}
        self.price = PRICE if effort else 0.0

    def candidates(self, rate: int) -> list[Callable[[str, LayerSymbols], FloatArray]]:
        """Ways to encode at a rate, each as the `ideal` of `EntropyModel.choose`."""

        def one_pass(part: str, chosen: LayerSymbols) -> FloatArray:
            return self._one_pass(part, chosen, rate)

        def refined(part: str, chosen: LayerSymbols) -> FloatArray:
            if rate not in self._refined_styles:
                self._refined_styles[rate] = self._refine_styles(rate)
            if part in SPATIAL:
                chosen = self._all_styles(chosen, self._refined_styles[rate])
                return self._refine_spatial(chosen, rate)[part]
            return self._refined_styles[rate][part]

        # What refining costs and gains is known of the whole picture alone.
        return [one_pass, refined] if self._effort >= 2 and self.layers == LAYERS else [one_pass]

    def cost(self, coded: EncodedFace, symbols: LayerSymbols, rate: int) -> float:
        """Distortion, and bytes at what they are worth."""
        gains = self._gains(rate)
        distortion = self._codec._refiner.distortion(self._small, symbols.parts, gains)
        return distortion + self._bit(rate) * 8 * coded.total_bytes

    def _one_pass(self, part: str, chosen: LayerSymbols, rate: int) -> FloatArray:
        if part in SPATIAL:
            styles: dict[str, FloatArray] = {
                name: self._one_pass(name, chosen, rate) for name in LAYERS
            }
            value = self._spatial(self._all_styles(chosen, styles), rate)[part]
        else:
            value = self._latents[part][0]
        scaled: FloatArray = value * self._codec._gain(part, rate)
        return scaled

    @staticmethod
    def _all_styles(chosen: LayerSymbols, values: Mapping[str, FloatArray]) -> LayerSymbols:
        """Symbols of all three vectors: those not chosen yet, as their values will be rounded.

        The coarse code of the middle layer is made for the styles of all layers.
        """
        expected = {name: np.rint(values[name]).astype(np.int32) for name in LAYERS}
        return LayerSymbols({name: chosen.parts.get(name, expected[name]) for name in LAYERS})

    def _spatial(self, chosen: LayerSymbols, rate: int) -> dict[str, FloatArray]:
        """Latents of both spatial codes, made at once, for styles that are chosen."""
        made_for = rate, tuple(chosen.parts[name].tobytes() for name in LAYERS)
        if made_for != self._made_for:
            self._made = self._codec._missing(self._crop, chosen.parts, rate)
            self._made_for = made_for
        return self._made

    def _refine_styles(self, rate: int) -> dict[str, FloatArray]:
        start = self._one_pass_all(rate)
        steps = STEPS[self._effort][0]
        return self._codec._refiner.refine(
            self._small, start, self._gains(rate), self._laws(rate), self._bit(rate), steps
        )

    def _refine_spatial(self, chosen: LayerSymbols, rate: int) -> dict[str, FloatArray]:
        """For the styles that are chosen first at a rate: at other prices they hardly differ."""
        if rate not in self._refined_spatial:
            self._refined_spatial[rate] = self._codec._refiner.refine(
                self._small,
                {part: self._one_pass(part, chosen, rate) for part in SPATIAL},
                self._gains(rate),
                self._laws(rate),
                self._bit(rate),
                STEPS[self._effort][1],
                fixed={name: chosen.parts[name] for name in LAYERS},
            )
        return self._refined_spatial[rate]

    def _one_pass_all(self, rate: int) -> dict[str, FloatArray]:
        nothing = LayerSymbols({})
        values: dict[str, FloatArray] = {
            name: self._one_pass(name, nothing, rate) for name in LAYERS
        }
        return values | {part: self._one_pass(part, nothing, rate) for part in SPATIAL}

    def _bit(self, rate: int) -> float:
        """Distortion that a bit is worth: the slope between this face's points around a rate."""
        if rate not in self._slopes:
            points = []
            for other in (max(rate - 1, RATES[0]), min(rate + 1, RATES[-1])):
                values = self._one_pass_all(other)
                symbols = LayerSymbols({k: np.rint(v).astype(np.int32) for k, v in values.items()})
                bits = sum(
                    float(cost.sum())
                    for layer in LAYERS
                    for cost in self._codec._entropy.bits(layer, other, symbols).values()
                )
                distortion = self._codec._refiner.distortion(
                    self._small, symbols.parts, self._gains(other)
                )
                points.append((bits, distortion))
            (few, worse), (many, better) = points
            self._slopes[rate] = max(worse - better, 0.0) / max(many - few, 1.0)
        return self._slopes[rate]

    def _laws(self, rate: int) -> Laws:
        def laws(
            parts: Mapping[str, npt.NDArray[np.int32]],
        ) -> dict[str, tuple[FloatArray, FloatArray]]:
            found: dict[str, tuple[FloatArray, FloatArray]] = {}
            for layer in LAYERS:
                found |= self._codec._entropy.laws(layer, rate, LayerSymbols(parts))
            return found

        return laws

    def _gains(self, rate: int) -> dict[str, FloatArray]:
        return {part: self._codec._gain(part, rate) for part in (*LAYERS, *SPATIAL)}


def _checked_crop(crop: Rgb) -> Rgb:
    if (
        not isinstance(crop, np.ndarray)
        or crop.dtype != np.uint8
        or crop.ndim != 3
        or crop.shape[2] != 3
        or crop.shape[0] != crop.shape[1]
        or not 32 <= crop.shape[0] <= 8192
    ):
        shape = getattr(crop, "shape", None)
        kind = getattr(crop, "dtype", type(crop).__name__)
        raise InvalidInput(
            f"a crop is square RGB, uint8 [S, S, 3] with S in 32..8192, not {kind} {shape}"
        )
    return crop


def _resize(crop: Rgb, size: int) -> Rgb:
    if crop.shape[0] == size:
        return crop
    how = cv2.INTER_AREA if crop.shape[0] > size else cv2.INTER_CUBIC
    resized: Rgb = cv2.resize(crop, (size, size), interpolation=how)  # type: ignore[assignment]
    return resized


def _planes(rgb: Rgb) -> FloatArray:
    """uint8 [S, S, 3] -> float32 [1, 3, S, S] in [-1, 1]."""
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], dtype=np.float32) / 127.5 - 1.0


def _run(session: Any, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    names = _outputs(session)
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _outputs(session: Any) -> list[str]:
    return [output.name for output in session.get_outputs()]
