"""The augmentation of BTS for depth: its equation, its presets, and that resumed runs repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from binarize.data import KITTI, Augment, NYUv2, Scenes, open_dataset
from binarize.data.augment import BTS_INDOOR, BTS_OUTDOOR, Depth, RandomTone
from binarize.data.sets.nyuv2_lists import NYUv2Lists
from binarize.errors import DataError
from binarize.train import Trainer


def test_the_equation() -> None:
    """Each channel of every pixel, from the drawn numbers; 0 and 255 are among the values."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    tone = RandomTone(0.5, 0.8, 0.1)
    changed = 0
    for seed in range(12):
        torch.manual_seed(seed)
        chosen, g, b, *c = torch.rand(6, dtype=torch.float64).tolist()
        torch.manual_seed(seed)
        found = tone({"image": tv_tensors.Image(values)})["image"].as_subclass(Tensor)
        assert found.dtype == torch.uint8
        if chosen < 0.5:
            assert torch.equal(found, values)
            continue
        changed += 1
        gamma, factor = 1 + (2 * g - 1) * 0.5, 1 + (2 * b - 1) * 0.8
        for channel in range(3):
            x = values[channel].double() / 255
            y = (factor * (1 + (2 * c[channel] - 1) * 0.1) * x**gamma).clamp(0, 1) * 255
            assert (found[channel].double() - y).abs().max() <= 0.5 + 1e-3
        assert found[:, 0, 0].tolist() == [0, 0, 0]
    assert 0 < changed < 12


def test_half_of_the_images_change_within_their_ranges() -> None:
    tone = RandomTone(0.1, 0.25, 0.05)
    torch.manual_seed(0)
    drawn = [tone.make_params([torch.zeros(3, 2, 2)]) for _ in range(1000)]
    changed = [one for one in drawn if one["factors"] is not None]
    assert 440 < len(changed) < 560
    gammas = torch.tensor([one["gamma"] for one in changed])
    assert 0.9 <= gammas.min() < 0.91
    assert 1.09 < gammas.max() <= 1.1
    factors = torch.tensor([one["factors"] for one in changed])
    brightness = factors.mean(1)
    assert factors.min() >= 0.75 * 0.95
    assert factors.max() <= 1.25 * 1.05
    assert brightness.std() == pytest.approx(0.25 / 3**0.5, rel=0.1)  # uniform
    ratio = factors[:, 0] / factors[:, 1]
    assert 0.95 / 1.05 <= ratio.min() < 1 < ratio.max() <= 1.05 / 0.95


def test_only_the_image_changes_its_tone() -> None:
    tone = RandomTone(0.5, 0.5, 0.5)
    for seed in range(8):
        torch.manual_seed(seed)
        sample = {
            "image": tv_tensors.Image(torch.full((3, 5, 7), 99, dtype=torch.uint8)),
            "mask": tv_tensors.Mask(torch.full((5, 7), 3, dtype=torch.uint8)),
            "depth": Depth(torch.full((1, 5, 7), 4.0)),
        }
        moved = tone(sample)
        assert torch.equal(moved["mask"], sample["mask"])
        assert torch.equal(moved["depth"], sample["depth"])
    grey = tone({"image": tv_tensors.Image(torch.rand(1, 3, 3))})["image"]
    assert grey.shape == (1, 3, 3)
    assert grey.dtype == torch.float32


def test_presets() -> None:
    assert NYUv2.bts == NYUv2Lists.bts == BTS_INDOOR == Augment(0.5, 1, 0, 1, 2.5, 0.1, 0.25, 0.1)
    assert KITTI.bts == BTS_OUTDOOR == Augment(0.5, 1, 0, 1, 1.0, 0.1, 0.1, 0.1)
    assert Scenes(1, (8, 8), augment="bts").augment == BTS_OUTDOOR
    with pytest.raises(DataError) as caught:
        Scenes(1, (8, 8), augment="bst")
    assert str(caught.value) == "augment='bst': unknown; use 'bts', True or an Augment"
    with pytest.raises(DataError, match="gamma=1: must be from 0 to 0.9; choose a value in range"):
        Augment(gamma=1)


def test_nyu_with_it(tmp_path: Path) -> None:
    for name, values in {
        "images/1.jpg": np.full((480, 640, 3), 128, np.uint8),
        "depth/1.png": np.full((480, 640), 51, np.uint8),
        "labels/1.png": np.zeros((480, 640), np.uint8),
    }.items():
        (tmp_path / name).parent.mkdir()
        Image.fromarray(values).save(tmp_path / name)
    (tmp_path / "train.txt").write_text("1\n")
    data = open_dataset("nyuv2", tmp_path, size=(30, 41), fit="crop", augment="bts")
    assert data.augment == BTS_INDOOR
    levels = set()
    for seed in range(12):
        torch.manual_seed(seed)
        item = data[0]
        assert item["image"].shape == (3, 30, 41)
        assert set(item["depth"].unique().tolist()) <= {0.0, 2.0}  # 0 beyond a turned image
        levels.add(tuple(item["image"][:, 15, 20].tolist()))
    assert len(levels) > 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_same_images(workers: int, tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None, **options: Any) -> Any:
        def at(trainer: Trainer, record: Mapping[str, Any]) -> bool:
            return record["epoch"] == stop

        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
        data = Scenes(6, (12, 16), task="depth", augment="bts")
        loader = DataLoader(data, 2, shuffle=True, num_workers=workers)
        trainer = Trainer(
            *(net,), task="depth", epochs=2, output_dir=folder, callbacks=[at], progress=False,
            **options,
        )  # fmt: skip
        history = trainer.fit(loader)
        return net.state_dict(), [record["loss"] for record in history]

    whole = run(tmp_path / "a")
    run(tmp_path / "b", 1)
    again = run(tmp_path / "b", resume="auto")
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    if workers:
        assert whole[1] != run(tmp_path / "c", seed=1)[1]
