"""Samples of different sizes in one batch: what is added counts nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from binarize.data import IGNORE, Augment, ImageDepthFolder, ImageMaskFolder, PadCollate
from binarize.data.collate import pad_to_multiple
from binarize.errors import DataError
from binarize.train import Trainer

SHAPES = ((20, 40), (33, 16), (32, 32))


def sample(rows: int, columns: int) -> dict[str, Any]:
    return {
        "image": torch.full((3, rows, columns), 2.0),
        "mask": torch.ones(rows, columns, dtype=torch.long),
        "depth": torch.full((1, rows, columns), 3.0),
        "labelled": torch.tensor(True),
    }


def test_batches_are_filled_to_a_common_multiple() -> None:
    batch = PadCollate()([sample(*shape) for shape in SHAPES])
    assert batch["image"].shape == (3, 3, 64, 64)
    assert batch["labelled"].tolist() == [True] * 3
    for index, (rows, columns) in enumerate(SHAPES):
        known = torch.zeros(64, 64, dtype=torch.bool)
        known[:rows, :columns] = True
        assert torch.equal(batch["image"][index, 1], known * 2.0)
        assert torch.equal(batch["mask"][index], torch.where(known, 1, IGNORE))
        assert torch.equal(batch["depth"][index, 0], known * 3.0)
    assert PadCollate(1)([sample(20, 40), sample(33, 16)])["image"].shape == (2, 3, 33, 40)
    same = PadCollate()([sample(32, 32)])
    assert all(torch.equal(same[key][0], value) for key, value in sample(32, 32).items())
    image, mask = PadCollate()([(sample(3, 5)["image"], sample(3, 5)["mask"])])
    assert image.shape == (1, 3, 32, 32)
    assert (mask == IGNORE).sum() == 32 * 32 - 15
    label = PadCollate()([(sample(3, 5)["image"], torch.tensor(4))])[1]
    assert label.tolist() == [4]
    assert pad_to_multiple(torch.ones(1, 3, 33, 32)).shape == (1, 3, 64, 32)
    with pytest.raises(DataError, match="multiple=0: must be positive; use e.g. 32"):
        PadCollate(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, (rows, columns) in enumerate(SHAPES):
        values = np.random.default_rng(index).integers(0, 3, (rows, columns), dtype=np.uint8)
        for name, array in (
            ("images", np.stack([values * 80] * 3, -1)),
            ("masks", values),
            ("depth", values.astype(np.uint16) * 1000),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_metrics_of_a_batch_are_those_of_its_images(folder: Path, task: str) -> None:
    data: Any
    if task == "depth":
        data = ImageDepthFolder(folder / "images", folder / "depth", depth_scale=0.001)
    else:
        data = ImageMaskFolder(folder / "images", folder / "masks", classes=3)
    trainer = Trainer(
        nn.Conv2d(3, 1 if task == "depth" else 3, 1), task=task, epochs=1, progress=False
    )
    alone = trainer.evaluate(DataLoader(data, 1))
    padded = trainer.evaluate(DataLoader(data, 3, collate_fn=PadCollate()))
    del alone["loss"]  # a mean over the pixels of each batch
    for name, value in alone.items():
        assert padded[name] == pytest.approx(value, abs=1e-6), name


def test_training_at_the_images_sizes(folder: Path) -> None:
    augment = Augment(flip=0.5, rotate=3.0, jitter=0.1)
    data = ImageMaskFolder(folder / "images", folder / "masks", classes=3, augment=augment)
    assert data[0]["image"].shape == (3, *SHAPES[0])
    trainer = Trainer(nn.Conv2d(3, 3, 1), epochs=1, progress=False)
    trainer.fit(DataLoader(data, 3, collate_fn=PadCollate()))
    with pytest.raises(DataError, match="size=None: a zoom needs a size; give"):
        ImageMaskFolder(folder / "images", folder / "masks", classes=3, augment=Augment(zoom=2.0))


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from binarize.cli import main

    out = str(tmp_path / "out")
    data = ["--data", "folder", "--root", str(folder), "--classes", "3"]
    words = [*("--model", "demo:UNet", "--model-arg", "widths=[4,8]"), "--size", "original"]
    words += ["--epochs", "1", "--batch-size", "2", "--quiet", "--output", out]
    assert main(["train", *data, *words]) == 0
    network = f"{out}/binary.safetensors"
    assert main(["eval", network, *data[:4], "--json", "--quiet"]) == 0
    assert '"size": "original"' in capsys.readouterr().out
    images = [str(folder / "images" / f"{index}.png") for index in range(3)]
    assert main(["predict", network, *images, "--output", f"{out}/masks", "--quiet"]) == 0
    for index, (rows, columns) in enumerate(SHAPES):
        with Image.open(f"{out}/masks/{index}.png") as found:
            assert found.size == (columns, rows)
