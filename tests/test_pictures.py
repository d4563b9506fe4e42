"""Reading pictures: every kind that people have, and every way in which one can be hostile."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from sfic.errors import InvalidInput, PictureTooLarge, PictureUnreadable
from sfic.pictures import PictureLimits, from_raw, read_picture


def pattern(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A smooth picture without symmetry, so that a wrong turn or channel order shows."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [40 + 180 * x / width, 30 + 150 * y / height, 220 - 190 * x * y / (height * width)]
    return np.stack(planes, axis=2).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95}, 12),
        ("JPEG", {"quality": 90, "progressive": True}, 16),
        ("WEBP", {"quality": 95}, 16),
        ("AVIF", {"quality": 95}, 16),
        ("JPEG2000", {}, 2),
        ("GIF", {}, 40),
        ("PPM", {}, 0),
    ],
)
def test_formats(kind: str, options: dict[str, Any], tolerance: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    original = pattern()
    read = read_picture(encode(Image.fromarray(original), kind, **options))
    assert read.dtype == np.uint8 and read.shape == original.shape and read.flags.c_contiguous
    assert np.abs(read.astype(int) - original).max() <= tolerance


def test_path_bytes_and_file_agree(tmp_path: Path) -> None:
    data = encode(Image.fromarray(pattern()), "PNG")
    path = tmp_path / "picture.bin"  # the name says nothing about the format
    path.write_bytes(data)
    expected = pattern()
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        np.testing.assert_array_equal(read_picture(source), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = pattern()
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo(upright))
    read = read_picture(encode(Image.fromarray(stored), "PNG", exif=exif))
    np.testing.assert_array_equal(read, upright)


def test_grey_and_one_bit() -> None:
    grey = pattern()[:, :, 0]
    read = read_picture(encode(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(read, np.repeat(grey[:, :, None], 3, axis=2))
    bits = read_picture(encode(Image.fromarray(grey > 120), "PNG"))
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey(kind: str) -> None:
    grey = pattern()[:, :, 0]
    deep = grey.astype(np.uint16) * 257
    read = read_picture(encode(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(read[:, :, 1], grey)


def test_sixteen_bit_colour() -> None:
    deep = pattern().astype(np.uint16)[:, :, ::-1] * 257
    encoded = cv2.imencode(".png", deep)[1].tobytes()
    assert np.abs(read_picture(encoded).astype(int) - pattern()).max() <= 1


def test_float_tiff() -> None:
    grey = pattern()[:, :, 0]
    for values in (grey / np.float32(255.0), grey.astype(np.float32)):
        read = read_picture(encode(Image.fromarray(values.astype(np.float32)), "TIFF"))
        np.testing.assert_array_equal(read[:, :, 0], grey)
    broken = np.full((8, 8), np.nan, np.float32)
    with pytest.raises(PictureUnreadable, match="not numbers"):
        read_picture(encode(Image.fromarray(broken), "TIFF"))


def test_transparency_is_composited_on_white() -> None:
    rgba = np.dstack([pattern(), np.full(pattern().shape[:2], 255, np.uint8)])
    rgba[:10, :, 3] = 0
    rgba[10:20, :, 3] = 128
    read = read_picture(encode(Image.fromarray(rgba), "PNG")).astype(int)
    assert (read[:10] == 255).all()
    half = (pattern()[10:20].astype(int) * 128 + 255 * 127) / 255
    assert np.abs(read[10:20] - half).max() <= 1
    np.testing.assert_array_equal(read[20:], pattern()[20:])
    palette = Image.fromarray(rgba).quantize(32)
    assert (read_picture(encode(palette, "PNG"))[:8] == 255).all()


def test_palette_and_cmyk() -> None:
    palette = Image.fromarray(pattern()).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(read_picture(encode(palette, "PNG")), expected)
    cmyk = Image.fromarray(pattern()).convert("CMYK")
    read = read_picture(encode(cmyk, "JPEG", quality=95))
    assert np.abs(read.astype(int) - pattern()).mean() < 6


def test_colour_profile_is_converted() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = encode(Image.fromarray(pattern()), "PNG", icc_profile=srgb)
    assert np.abs(read_picture(same).astype(int) - pattern()).max() <= 1
    swapped = srgb.replace(b"rXYZ", b"swap").replace(b"gXYZ", b"rXYZ").replace(b"swap", b"gXYZ")
    red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    read = read_picture(encode(Image.fromarray(red), "PNG", icc_profile=swapped))
    assert np.abs(read.astype(int) - (0, 255, 0)).max() <= 2  # "red" means green in this profile
    broken = encode(Image.fromarray(pattern()), "PNG", icc_profile=b"not a profile" * 20)
    np.testing.assert_array_equal(read_picture(broken), pattern())


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height and whose data is nearly empty."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("width", "height"), [(8001, 8001), (1, 100_000), (100_000, 1), (60_000, 60_000), (17, 1)]
)
def test_limits_hold_before_pixels_are_decoded(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(PictureTooLarge):
        read_picture(_png_of(width, height))


def test_byte_limit_holds_for_every_source(tmp_path: Path) -> None:
    data = encode(Image.fromarray(pattern()), "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    limits = PictureLimits(max_bytes=len(data) - 1)
    for source in (path, data, io.BytesIO(data)):
        with pytest.raises(PictureTooLarge, match="bytes"):
            read_picture(source, limits)
    read_picture(data, PictureLimits(max_bytes=len(data)))


def test_4k_is_within_the_limits() -> None:
    data = encode(Image.fromarray(pattern(2160, 3840)), "JPEG", quality=80)
    assert read_picture(data).shape == (2160, 3840, 3)


def test_what_is_no_picture(tmp_path: Path) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
    for data in (b"", b"hello", b"\xff\xd8\xff", postscript):
        with pytest.raises(PictureUnreadable):
            read_picture(data)
    for path in (tmp_path / "missing.png", tmp_path, "a\0b"):
        with pytest.raises(PictureUnreadable, match="cannot read"):
            read_picture(path)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_files_end_in_one_typed_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"]))
    damaged = bytearray(encode(Image.fromarray(pattern(24, 32)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(damaged)))
    try:
        read = read_picture(bytes(damaged[:cut]))
    except InvalidInput as error:
        assert "\n" not in error.message
    else:
        assert read.dtype == np.uint8 and read.ndim == 3 and read.shape[2] == 3


@pytest.mark.parametrize("layout", ["rgb", "bgr", "rgba", "bgra", "grey"])
def test_raw_packed(layout: Any) -> None:
    rgb = pattern()
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    stored = {
        "rgb": rgb,
        "bgr": rgb[:, :, ::-1],
        "rgba": np.concatenate([rgb, alpha], axis=2),
        "bgra": np.concatenate([rgb[:, :, ::-1], alpha], axis=2),
        "grey": rgb[:, :, 0],
    }[layout]
    expected = np.repeat(rgb[:, :, :1], 3, axis=2) if layout == "grey" else rgb
    read = from_raw(np.ascontiguousarray(stored).tobytes(), 64, 48, layout)
    np.testing.assert_array_equal(read, expected)
    assert read.flags.writeable and read.flags.c_contiguous


@pytest.mark.parametrize("layout", ["nv12", "i420"])
def test_raw_planar(layout: Any) -> None:
    rgb = pattern()
    i420 = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    data = i420.tobytes()
    if layout == "nv12":
        luma, chroma = i420[:48], i420[48:].reshape(2, -1)
        data = luma.tobytes() + np.stack([chroma[0], chroma[1]], axis=1).tobytes()
    read = from_raw(data, 64, 48, layout)
    assert np.abs(read.astype(int) - rgb).mean() < 4


@given(
    size=st.integers(0, 4096),
    width=st.integers(-2, 40),
    height=st.integers(-2, 40),
    layout=st.sampled_from(["rgb", "grey", "bgra", "nv12", "yuyv"]),
)
def test_raw_takes_the_exact_size_or_refuses(
    size: int, width: int, height: int, layout: Any
) -> None:
    try:
        read = from_raw(bytes(size), width, height, layout)
    except InvalidInput:
        return
    assert read.shape == (height, width, 3)
    per_pixel = {"rgb": 3, "grey": 1, "bgra": 4, "nv12": 1.5}[layout]
    assert size == width * height * per_pixel
