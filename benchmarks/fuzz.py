"""Hostile input, by the million: packets, files of faces, pictures and settings, mutated by seed.

    python -m benchmarks.fuzz [--count 1000000] [--seed 1] [--corpus DIR]

Everything that comes in from outside has to end in a result or in an error of the tree; anything
else is a finding, printed with its bytes, and the exit status is 1. With `--corpus` an input that
reached a new kind of outcome is kept; `tests/test_corpus.py` runs those of `tests/corpus/`.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from analytics_service.settings import AnalyticsSettings
from benchmarks.report import write_result
from cloud_decoder.settings import DecoderSettings
from edge_encoder.settings import EdgeSettings
from sfic.codec import Codec
from sfic.container import pack_faces, read_container
from sfic.errors import SficError
from sfic.face import EncodedFace
from sfic.locations import demo_photograph
from sfic.packet import open_packet
from sfic.pictures import PictureLimits, from_raw, read_picture
from sfic.sealing import open_layer
from sfic.service.tokens import TokenVerifier, make_token_key

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "corpus"
# As an edge would set them for small inputs: nothing here may take long or much memory.
LIMITS = PictureLimits(max_bytes=1 << 20, max_pixels=1 << 20)
MOST_KEPT = 40
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# Words that mean something to what reads settings.
WORDS: tuple[str, ...] = (
    *("edge", "analytics", "decoder", "listen", "rate", "data_dir", "edges", "rate_limits"),
    *("127.0.0.1:0", "0.0.0.0:1", "[::]:1", "true", "false", "nan", "inf", "-1", "1e999"),
    *("99999999999999999999", "[]", "{}", "null", "insecure", "tls_key", "\x00", "\u2028"),
)


@dataclass
class Target:
    """One way in. `share` of all inputs go there; `take` gets one and may raise `SficError`."""

    name: str
    share: float
    seeds: list[bytes]
    take: Callable[[bytes], object]
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, bytes] = field(default_factory=dict)
    slowest_ms: float = 0.0


def mutate(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The input changed in one to eight places."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(changed) + 1)
        what = chance.randrange(9)
        if what == 0 and changed:
            changed[at % len(changed)] ^= 1 << chance.randrange(8)
        elif what == 1 and changed:
            changed[at % len(changed)] = chance.choice((0, 1, 127, 128, 255))
        elif what == 2:
            changed[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif what == 3:
            del changed[at : at + chance.randrange(1, 17)]
        elif what == 4:
            del changed[at:]
        elif what == 5:
            changed[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
        elif what == 6:
            changed[at:at] = changed[at : at + chance.randrange(1, 64)]
        elif what == 7:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            changed[at : at + 32] = other[start : start + 32]
        else:
            changed[at:at] = chance.choice(WORDS).encode()
    return bytes(changed[: 1 << 16])


def pictures() -> list[bytes]:
    """The astronaut's face, small, in every kind of file."""
    pixels = np.ascontiguousarray(read_picture(demo_photograph())[30:230:10, 120:320:12])
    made = []
    for kind in KINDS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        made.append(buffer.getvalue())
    return made


def take_raw(data: bytes) -> object:
    """The first bytes say width, height and layout; the rest are the pixels."""
    if len(data) < 5:
        return None
    width, height = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
    layout = ("rgb", "bgr", "grey", "nv12", "i420", "rgba", "bgra")[data[4] % 7]
    return from_raw(data[5:], width, height, layout, LIMITS)  # type: ignore[arg-type]


def settings_takers(folder: Path) -> tuple[Callable[[bytes], object], Callable[[bytes], object]]:
    """Settings from a file, and from environment and flags."""
    kinds = (EdgeSettings, AnalyticsSettings, DecoderSettings)
    file = folder / "sfic.toml"

    def from_file(data: bytes) -> object:
        file.write_bytes(data)
        return [kind.load(config=file, environment={}) for kind in kinds]

    def from_words(data: bytes) -> object:
        lines = data.decode("utf-8", "replace").split("\n")
        pairs = [line.partition("=") for line in lines if line and not line.startswith("-")]
        environment = {f"SFIC_EDGE__{name.upper()}": value for name, _, value in pairs}
        flags = [line for line in lines if line.startswith("--") and "help" not in line]
        return EdgeSettings.load(flags, environment=environment)

    return from_file, from_words


def targets(folder: Path) -> list[Target]:
    """Every way in, with inputs that are good as they are."""
    codec = Codec.load(provider="cpu", threads=1)
    face = codec.encode_picture(read_picture(demo_photograph()))[0]
    packets = [packet for packet in (face.basic, face.middle, face.enhanced) if packet]
    fresh = iter(range(1 << 62))

    def take_layers(data: bytes) -> object:
        layer = next(fresh) % 3
        if layer == 0:
            return codec.decode_symbols(EncodedFace(data), "basic")
        if layer == 1:
            return codec.decode_symbols(EncodedFace(face.basic, data), "middle")
        return codec.decode_symbols(EncodedFace(face.basic, face.middle, data), "enhanced")

    def take_packet(data: bytes) -> object:
        opened = open_packet(data)
        return opened, open_layer(bytes(16), data, "FACE", "basic")

    from_file, from_words = settings_takers(folder)
    _, public = make_token_key()
    (folder / "public.pem").write_bytes(public)
    verifier = TokenVerifier(folder / "public.pem")
    toml = (Path(__file__).resolve().parents[1] / "deploy" / "sfic.toml").read_bytes()
    words = (
        b'listen=127.0.0.1:1\nrate=5\n--effort=1\n--min-face-score=0.5\nrate_limits={"camera":5}'
    )
    token = b"Bearer eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
    raw = [bytes((0, 4, 0, 2, layout)) + bytes(24) for layout in range(7)]
    return [
        Target("packet", 0.55, packets, take_packet),
        Target("layers", 0.005, packets, take_layers),
        Target("faces file", 0.20, [pack_faces([face]), pack_faces([face, face])], read_container),
        Target("picture", 0.12, pictures(), lambda data: read_picture(data, LIMITS)),
        Target("raw frame", 0.10, raw, take_raw),
        Target("settings file", 0.005, [toml], from_file),
        Target("settings words", 0.01, [words], from_words),
        Target("token", 0.01, [token], lambda d: verifier.read(d.decode("latin-1"))),
    ]


def run(target: Target, count: int, chance: random.Random) -> Iterator[tuple[bytes, BaseException]]:
    """Feed a target; yields what it choked on."""
    pool = list(target.seeds)
    for _ in range(count):
        data = mutate(chance, chance.choice(pool), pool)
        started = time.perf_counter()
        try:
            target.take(data)
            kind = "taken"
        except SficError as error:
            kind = f"{error.code}: {re.sub(r'[0-9a-f]{4,}|[0-9]+', 'N', error.message)[:50]}"
        except Exception as error:
            target.outcomes["finding"] += 1
            yield data, error
            continue
        target.slowest_ms = max(target.slowest_ms, 1e3 * (time.perf_counter() - started))
        target.outcomes[kind.partition(":")[0]] += 1
        if kind not in target.kinds and len(target.kinds) < MOST_KEPT:
            target.kinds[kind] = data
            # What reached something new is a good place to go on from.
            pool.append(data)


def keep(corpus: Path, target: Target) -> None:
    """Write what reached each kind of outcome."""
    folder = corpus / target.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for number, (_, data) in enumerate(sorted(target.kinds.items())):
        (folder / f"{number:02}.bin").write_bytes(data)


def main() -> int:
    """Fuzz all targets; 1 when there was a finding."""
    warnings.simplefilter("ignore")  # Pillow tells each oddity of a picture.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=None, help="write the corpus there")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    found = inputs = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for target in targets(Path(folder)):
            chance = random.Random(f"{options.seed} {target.name}")
            count = max(1, round(options.count * target.share))
            for data, error in run(target, count, chance):
                found += 1
                print(f"FINDING in {target.name}: {error!r}\n  {data[:500]!r}", file=sys.stderr)
                if found > 100:
                    return 1
            inputs += count
            if options.corpus:
                keep(options.corpus, target)
            figures[target.name] = {
                "inputs": count,
                "outcomes": dict(sorted(target.outcomes.items())),
                "kinds of outcome": len(target.kinds),
                "slowest, ms": round(target.slowest_ms, 1),
            }
            print(target.name, figures[target.name], flush=True)
    figures["all"] = {
        "inputs": inputs,
        "findings": found,
        "seconds": round(time.perf_counter() - started, 1),
        "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print("wrote", write_result("fuzz", figures))
    return int(found > 0)


if __name__ == "__main__":
    raise SystemExit(main())
