"""Images are read as viewers show them, and damaged ones are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binarize.data.images import read_image, read_map
from binarize.errors import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def smooth(rows: int = 48, columns: int = 80) -> np.ndarray:
    """A photo-like image: gradients and some noise."""
    y, x = np.mgrid[:rows, :columns]
    noise = np.random.default_rng(0).integers(0, 24, (rows, columns, 3))
    waves = np.stack([x * 3, y * 5, 120 + 60 * np.sin(x / 9 + y / 7)], -1)
    return ((waves + noise) % 256).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.dtype.is_floating_point is False
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_shown_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    # Four blocks tell all eight orientations apart; the stored image is what a camera wrote.
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32], upright[:16, 32:] = RED, GREEN
    upright[16:, :32], upright[16:, 32:] = BLUE, WHITE
    # By the standard's table: where row 0 and column 0 of the stored image are seen.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif, **options)
    shown = read(file)
    assert shown.shape == upright.shape
    assert np.abs(shown[8::16, 16::32].astype(int) - upright[8::16, 16::32]).max() < 12


def sixteen_bit_png(path: Path, values: np.ndarray) -> None:
    """Pillow cannot write RGB of 16 bits."""
    rows, columns, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", columns, rows, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, channels: int) -> None:
    values = np.linspace(0, 65535, 16 * 24 * channels).reshape(16, 24, channels).astype(np.uint16)
    sixteen_bit_png(tmp_path / "a.png", values)
    wanted = np.broadcast_to(values / 257, (16, 24, 3))
    assert np.abs(read(tmp_path / "a.png") - wanted).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_of_either_byte_order(tmp_path: Path, order: str) -> None:
    values = (np.arange(12 * 9).reshape(12, 9) * 600).astype(np.uint16)
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (9, 12),
                            values.astype(f"{order}u2").tobytes())  # fmt: skip
    image.save(tmp_path / "a.tif")
    assert np.abs(read(tmp_path / "a.tif")[..., 1] - values / 257).max() <= 1


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"floating-point pixels, here from 0.5 to 0.5, and no"):
        read(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a label map needs integers, this file has floating"):
        read_map(tmp_path / "a.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"32-bit pixels, here from 70000 to 70000"):
        read(tmp_path / "b.tif")
    assert (read_map(tmp_path / "b.tif") == 70000).all()


def test_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    image = np.zeros((2, 3, 4), np.uint8)  # black, and transparent
    image[0, 0] = (*RED, 255)
    image[0, 1] = (0, 0, 0, 128)
    Image.fromarray(image).save(tmp_path / "a.png")
    shown = read(tmp_path / "a.png")
    assert shown[0, 0].tolist() == list(RED)
    assert abs(int(shown[0, 1, 0]) - 127) <= 1
    assert (shown[1] == 255).all()
    grey = Image.fromarray(image).convert("LA")
    grey.save(tmp_path / "b.png")
    assert (read(tmp_path / "b.png")[1] == 255).all()


def test_palettes_bits_cmyk_and_frames(tmp_path: Path) -> None:
    blocks = np.zeros((16, 16, 3), np.uint8)
    blocks[:8], blocks[8:] = RED, BLUE
    image = Image.fromarray(blocks)
    image.quantize(4).save(tmp_path / "p.png")
    image.quantize(4).save(tmp_path / "p.gif", save_all=True, append_images=[image.rotate(90)])
    image.convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    image.convert("CMYK").save(tmp_path / "c.tif")
    for name in ("p.png", "p.gif", "c.jpg", "c.tif"):
        assert np.abs(read(tmp_path / name).astype(int) - blocks).max() < 8, name
    quantized = image.quantize(4)
    quantized.info["transparency"] = int(np.array(quantized)[0, 0])
    quantized.save(tmp_path / "t.png", transparency=quantized.info["transparency"])
    assert (read(tmp_path / "t.png")[:8] == 255).all()
    bits = Image.fromarray(np.eye(8, dtype=bool))
    bits.save(tmp_path / "1.png")
    assert (read(tmp_path / "1.png")[..., 0] == 255 * np.eye(8)).all()


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "full chroma": {"subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
    "optimised": {"optimize": True, "quality": 30},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damaged_jpegs_are_refused_and_whole_ones_are_not(
    tmp_path: Path, kind: str, mode: str
) -> None:
    file = tmp_path / "a.jpg"
    for pixels in (smooth(), np.full((24, 40, 3), 128, np.uint8)):
        Image.fromarray(pixels).convert(mode).save(file, **JPEGS[kind])
        read(file)
        file.write_bytes(file.read_bytes() + b"\0appended by a camera \xff\xd9")
        read(file)
    Image.fromarray(smooth()).convert(mode).save(file, **JPEGS[kind])
    whole = file.read_bytes()
    start = whole.index(b"\xff\xda")
    for share in (0.33, 0.6, 0.9):
        cut = start + int((len(whole) - start) * share)
        for damaged in (
            whole[:cut],  # a download that stopped
            whole[:cut] + b"\xff\xd9",  # the same, ended as if it were whole
            whole[:cut] + b"\xff\xd9" + whole[cut:],  # a marker in the middle
        ):
            file.write_bytes(damaged)
            with pytest.raises(
                DataError, match=r"cannot be read as an image|JPEG data are incomplete"
            ):
                read(file)


def test_broken_metadata_do_not_hurt(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(smooth()).save(out, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    (tmp_path / "a.jpg").write_bytes(out.getvalue())
    assert read(tmp_path / "a.jpg").shape == (48, 80, 3)
