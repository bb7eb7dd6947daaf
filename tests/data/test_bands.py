"""Images of one to sixteen bands: read as they are, normalised band by band."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from binarize.cli import main
from binarize.data import Augment, ImageDepthFolder, ImageMaskFolder, UnlabelledFolder, open_dataset
from binarize.data.bands import preview, read_bands
from binarize.errors import DataError
from binarize.train import Trainer

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed (extra 'data')")

ROWS, COLUMNS = 32, 48


def bands(count: int, seed: int = 0, kind: Any = np.uint16) -> np.ndarray:
    """Each band with a mean and a spread of its own."""
    noise = np.random.default_rng(seed).random((count, ROWS, COLUMNS))
    scale = 100 * np.arange(1, count + 1).reshape(-1, 1, 1)
    return (scale * (3 + noise)).astype(kind)


def write(path: Path, values: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(4):
        write(tmp_path / "images" / f"{index}.tif", bands(5, index), planarconfig="separate")
        mask = np.random.default_rng(index).integers(0, 3, (ROWS, COLUMNS), dtype=np.uint8)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_every_arrangement_of_bands(tmp_path: Path, count: int, kind: Any) -> None:
    values = bands(count, kind=np.uint16 if kind is np.uint8 else kind)
    values = (values // 8 if kind is np.uint8 else values).astype(kind)
    path = tmp_path / "a.tif"
    expected = torch.from_numpy(values.astype(np.float32))
    write(path, values, planarconfig="separate") if count > 1 else write(path, values[0])
    assert torch.equal(read_bands(path, count), expected)
    pixels = np.ascontiguousarray(np.moveaxis(values, 0, -1))
    write(path, pixels, planarconfig="contig") if count > 1 else write(path, values[0])
    assert torch.equal(read_bands(path, count), expected)
    with tifffile.TiffWriter(path) as pages:
        for band in values:
            pages.write(band, photometric="minisblack", contiguous=True)
    assert torch.equal(read_bands(path, count), expected)
    with pytest.raises(DataError, match=rf"bands={count}: .* has another number of bands than 17"):
        read_bands(path, 17)


def test_no_data_is_unknown_and_becomes_the_mean(tmp_path: Path) -> None:
    values = bands(4)
    values[:, :8] = 7
    write(
        tmp_path / "a.tif", values, planarconfig="separate", extratags=[(42113, "s", 0, "7", True)]
    )
    image = read_bands(tmp_path / "a.tif", 4)
    assert image[:, :8].isnan().all()
    assert not image[:, 8:].isnan().any()
    data = UnlabelledFolder(tmp_path, bands=4)
    shown = data[0]["image"]
    assert (shown[:, :8] == 0).all()
    assert shown[:, 8:].mean((1, 2)).abs().max() < 1e-4
    assert shown[:, 8:].std((1, 2)).sub(1).abs().max() < 1e-2


def test_other_files_and_what_is_wrong(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert torch.equal(
        read_bands(tmp_path / "a.png", 4), torch.from_numpy(pixels).permute(2, 0, 1).float()
    )
    (tmp_path / "b.tif").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"cannot be read as a TIFF image; replace the file"):
        read_bands(tmp_path / "b.tif", 4)
    with pytest.raises(DataError, match="no such file"):
        read_bands(tmp_path / "c.tif", 4)
    write(tmp_path / "d.tif", np.zeros((2, 4, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"has several images \(\w+\); save one per file"):
        read_bands(tmp_path / "d.tif", 4)
    with pytest.raises(DataError, match="bands=17: must be from 1 to 16"):
        UnlabelledFolder(tmp_path, bands=17)
    assert preview(torch.zeros(5, 2, 2)).unique().tolist() == [128]
    assert preview(torch.zeros(2, 2, 2)).shape == (3, 2, 2)


def test_bands_are_normalised_by_the_training_split(folder: Path) -> None:
    data = ImageMaskFolder(folder / "images", folder / "masks", classes=3, bands=5)
    every = torch.stack([data[index]["image"] for index in range(4)])
    assert every.mean((0, 2, 3)).abs().max() < 1e-4
    assert every.std((0, 2, 3)).sub(1).abs().max() < 1e-3
    write(folder / "val" / "images" / "x.tif", bands(5) * 2, planarconfig="separate")
    (folder / "val" / "masks").mkdir()
    Image.fromarray(np.zeros((ROWS, COLUMNS), np.uint8)).save(folder / "val" / "masks" / "x.png")
    train = open_dataset("folder", folder, size=(16, 24), classes=3, bands=5)
    val = open_dataset("folder", folder, split="val", size=(16, 24), classes=3, bands=5)
    assert train.normalize == val.normalize == data.normalize
    for wrong, says in (
        ("imagenet", "is for RGB images, and these have bands"),
        (((0.0,), (1.0,)), "needs a mean and a deviation for each of 5 channels"),
    ):
        with pytest.raises(DataError, match=says):
            ImageMaskFolder(
                folder / "images", folder / "masks", classes=3, bands=5, normalize=wrong
            )
    with pytest.raises(DataError, match="jitter=0.5: colour changes are for RGB images; use 0"):
        UnlabelledFolder(folder / "images", (8, 8), bands=5, augment=Augment(jitter=0.5))
    raw = UnlabelledFolder(folder / "images", bands=5, normalize="none")
    assert torch.equal(raw[1]["image"], torch.from_numpy(bands(5, 1).astype(np.float32)))


def test_networks_of_five_bands_are_trained(folder: Path) -> None:
    augment = Augment(zoom=2.0, shrink=0.5, rotate=10.0)
    data = ImageMaskFolder(
        folder / "images", folder / "masks", (16, 16), classes=3, bands=5, augment=augment
    )
    trainer = Trainer(nn.Conv2d(5, 3, 1), epochs=1, progress=False)
    trainer.fit(DataLoader(data, 2), DataLoader(data, 2))
    for index in range(4):
        (folder / "depth").mkdir(exist_ok=True)
        np.save(folder / "depth" / f"{index}.npy", np.ones((ROWS, COLUMNS), np.float32))
    deep = ImageDepthFolder(folder / "images", folder / "depth", bands=5)
    assert set(deep[0]) == {"image", "depth"}


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    data = ["--data", "folder", "--root", str(folder)]
    words = [*("--model", "demo:UNet", "--model-arg", "widths=[4,8]"), "--size", "32x32"]
    words += ["--classes", "3", "--in-channels", "5", "--epochs", "1", "--batch-size", "2"]
    assert main(["train", *data, *words, "--quiet", "--output", str(out)]) == 0
    network = str(out / "binary.safetensors")
    capsys.readouterr()
    assert main(["eval", network, *data, "--json", "--quiet"]) == 0
    record = json.loads((out / "metrics.json").read_text())
    assert len(record["description"]["settings"]["normalize"][0]) == 5
    image = str(folder / "images" / "0.tif")
    words = ["predict", network, image, "--output", str(out / "masks"), "--side-by-side"]
    assert main([*words, "--quiet"]) == 0
    assert (out / "masks" / "0_side_by_side.png").exists()
    capsys.readouterr()
    assert main(["data", "check", str(folder), "--in-channels", "5", "--json", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)["splits"][0]
    assert facts["files"]["image"] == {"TIFF 5 bands 16 bits": 4}
