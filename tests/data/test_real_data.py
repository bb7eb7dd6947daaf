"""The real data sets, where they are.

Set ``BINARIZE_DATA`` to a folder with ``camvid`` and ``nyuv2``; without it they are looked for
in ``shared/data`` beside the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from binarize.data import CamVid, NYUv2

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
ROOT = Path(os.environ.get("BINARIZE_DATA", BESIDE))


def _root(name: str) -> Path:
    if not (ROOT / name).is_dir():
        pytest.skip(f"no {name} in {ROOT}; set BINARIZE_DATA to the folder that has it")
    return ROOT / name


pytestmark = pytest.mark.data


def test_camvid() -> None:
    root = _root("camvid")
    sizes = [len(CamVid(root, split, (36, 48))) for split in ("train", "val", "test")]
    assert sizes == [367, 101, 233]
    data = CamVid(root, "val", (90, 120))
    counts = data.class_counts()
    assert (counts > 0).all()
    # the road is the largest class in the lower half of a road scene
    lower = data[0]["mask"][60:]
    assert data.classes[int(torch.bincount(lower[lower < 11]).argmax())] == "road"
    full = CamVid(root, "val", None)[0]
    raw = np.array(Image.open(data.pairs[0][1]))
    expected = torch.from_numpy(raw).long()
    expected[expected == 11] = 255
    assert torch.equal(full["mask"], expected)


def test_nyuv2() -> None:
    root = _root("nyuv2")
    train, test = NYUv2(root, "train", (60, 80)), NYUv2(root, "test", (60, 80), task=None)
    assert (len(train), len(test)) == (795, 654)
    assert not set(train.stems) & set(test.stems)
    item = test[0]
    assert item["depth"].min() > 0.6
    assert item["depth"].max() <= 10
    assert item["mask"][item["mask"] != 255].max() < 13
    image = NYUv2(root, "test", None, normalize="none")[0]["image"]
    assert image.shape == (3, 426, 560)
    # none of the white border is left
    assert all(edge.mean() < 0.98 for edge in (image[:, 0], image[:, -1], image[:, :, 0]))
