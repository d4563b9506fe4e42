"""Pictures in: any file, bytes or raw frame becomes uint8 RGB [H, W, 3], or one typed error.

Belongs here: decoding, orientation, colour, bit depth, transparency, and the limits that keep a
hostile picture from costing memory. Not here: finding faces (`detection`), resampling (`sampling`).
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from sfic.errors import InvalidInput, PictureTooLarge, PictureUnreadable

__all__ = ["PictureLimits", "RawFormat", "from_raw", "read_picture"]

RawFormat = Literal["rgb", "bgr", "rgba", "bgra", "grey", "nv12", "i420"]

# Formats that Pillow decodes itself: nothing here starts a program (EPS) or follows a reference.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "TGA")
_CHANNELS: dict[str, int] = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "grey": 1}
# What Pillow's decoders raise on damaged files; all of it is the picture's fault.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(EOFError, OverflowError, struct.error, zlib.error, AssertionError, RuntimeError),
)


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may cost. Checked before any pixel is decoded.

    max_bytes: size of the file; max_pixels: width x height; max_side_ratio: longer side over the
    shorter (a 1 x 100000 strip is within the pixel limit, but no camera makes it).
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_side_ratio: float = 16.0

    def check_bytes(self, size: int) -> None:
        """Raise `PictureTooLarge` if a file of `size` bytes is over the limit."""
        if size > self.max_bytes:
            raise PictureTooLarge(f"picture of {size} bytes, the limit is {self.max_bytes}")

    def check_size(self, width: int, height: int) -> None:
        """Raise `PictureTooLarge` or `PictureUnreadable` if width x height cannot be accepted."""
        if width < 1 or height < 1:
            raise PictureUnreadable(f"picture has no area: {width}x{height}")
        if width * height > self.max_pixels:
            raise PictureTooLarge(
                f"picture of {width}x{height} pixels, the limit is {self.max_pixels} in all"
            )
        if max(width, height) > self.max_side_ratio * min(width, height):
            raise PictureTooLarge(
                f"picture of {width}x{height}: sides differ by more than {self.max_side_ratio:g}x"
            )


_DEFAULT_LIMITS = PictureLimits()


def read_picture(
    source: str | Path | bytes | bytearray | memoryview | BinaryIO,
    limits: PictureLimits = _DEFAULT_LIMITS,
) -> NDArray[np.uint8]:
    """Read a picture as it should be seen: uint8 RGB [H, W, 3], C-contiguous.

    EXIF rotation is applied, an embedded colour profile is converted to sRGB, grey is repeated,
    16-bit is reduced to 8, CMYK and palettes become RGB, transparency is composited on white (what
    a page shows behind it). Of an animation or a multi-page file, the first picture.

    Raises `PictureTooLarge` over a limit, `PictureUnreadable` for all else that is wrong.
    """
    data = _read_bytes(source, limits)
    Image.init()
    available = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(data), formats=available) as image:
            limits.check_size(*image.size)
            return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureTooLarge(f"picture has too many pixels: {error}") from error
    except InvalidInput:
        raise
    except MemoryError as error:
        raise PictureTooLarge("picture does not fit in memory") from error
    except _DECODE_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture in a known format"
        raise PictureUnreadable(f"cannot read the picture: {reason}") from error


def from_raw(
    data: bytes | bytearray | memoryview,
    width: int,
    height: int,
    format: RawFormat = "rgb",
    limits: PictureLimits = _DEFAULT_LIMITS,
) -> NDArray[np.uint8]:
    """Read one uncompressed frame without row padding: uint8 RGB [H, W, 3].

    `nv12` and `i420` are 4:2:0 in BT.601 limited range, with even width and height. Alpha is
    dropped: cameras send it as filler.

    Raises `PictureUnreadable` if the byte count or the format is wrong, `PictureTooLarge` over a
    limit.
    """
    if format not in get_args(RawFormat):
        raise PictureUnreadable(
            f"unknown raw format {format!r}, known: {', '.join(get_args(RawFormat))}"
        )
    limits.check_size(width, height)
    planar = format in ("nv12", "i420")
    if planar and (width % 2 or height % 2):
        raise PictureUnreadable(f"{format} needs even sides, not {width}x{height}")
    expected = width * height * 3 // 2 if planar else width * height * _CHANNELS[format]
    if len(data) != expected:
        raise PictureUnreadable(
            f"a {width}x{height} {format} frame has {expected} bytes, not {len(data)}"
        )
    flat = np.frombuffer(data, np.uint8)
    if planar:
        code = cv2.COLOR_YUV2RGB_NV12 if format == "nv12" else cv2.COLOR_YUV2RGB_I420
        converted = cv2.cvtColor(flat.reshape(height * 3 // 2, width), code)
        return np.ascontiguousarray(converted, dtype=np.uint8)
    pixels = flat.reshape(height, width, _CHANNELS[format])
    if format == "grey":
        return np.repeat(pixels, 3, axis=2)
    if format in ("bgr", "bgra"):
        return np.ascontiguousarray(pixels[:, :, 2::-1])
    return pixels[:, :, :3].copy()


def _read_bytes(
    source: str | Path | bytes | bytearray | memoryview | BinaryIO, limits: PictureLimits
) -> bytes:
    if isinstance(source, (str, Path)):
        try:
            path = Path(source)
            limits.check_bytes(path.stat().st_size)
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PictureUnreadable(f"cannot read {source}: {reason}") from error
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source) if not isinstance(source, bytes) else source
    else:
        data = source.read(limits.max_bytes + 1)
    limits.check_bytes(len(data))
    if not data:
        raise PictureUnreadable("cannot read the picture: it is empty")
    return data


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Decode and bring to upright sRGB, 8 bits; may raise what Pillow's decoders raise."""
    profile = image.info.get("icc_profile")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(np.asarray(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        page = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(page, rgba).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _to_srgb(image, profile)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8))


def _deep_grey_to_rgb(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey of more than 8 bits: integers span 0..65535; floats 0..1, or 0..255 if any exceeds 1."""
    grey = values.astype(np.float32)
    if not np.isfinite(grey).all():
        raise PictureUnreadable("the picture holds values that are not numbers")
    if np.issubdtype(values.dtype, np.integer):
        grey = grey / np.float32(257.0)
    elif grey.max() <= 1.0:
        grey = grey * np.float32(255.0)
    eight = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(eight[:, :, None], 3, axis=2)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert by the embedded profile; one that is broken or does not fit is ignored."""
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return converted if converted is not None else image
