"""Packed and exported networks agree with the simulation on real images, where there are some."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.cli.demo_network import UNet
from binarize.data import CamVid

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
ROOT = Path(os.environ.get("BINARIZE_DATA", BESIDE)) / "camvid"
SIZE = 72, 96

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A 1-bit network after a few steps on the training images."""
    if not ROOT.is_dir():
        pytest.skip(f"no folder {ROOT}; set BINARIZE_DATA to the one that has camvid")
    torch.manual_seed(0)
    data = CamVid(ROOT, "train", SIZE)
    network = binarize.convert(UNet(CamVid.num_classes, widths=(16, 32))).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    batches = DataLoader(torch.utils.data.Subset(data, range(0, 320, 4)), batch_size=8)
    for batch in batches:
        loss = F.cross_entropy(network(batch["image"]), batch["mask"], ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def images(count: int) -> list[Tensor]:
    data = CamVid(ROOT, "test", SIZE)
    return [data[index]["image"][None] for index in range(0, 8 * count, 8)]


def agreement(first: list[Tensor], second: list[Tensor]) -> float:
    pairs = zip(first, second, strict=True)
    return sum(float((a.argmax(1) == b.argmax(1)).double().mean()) for a, b in pairs) / len(first)


def test_packed(trained: nn.Module) -> None:
    packed = binarize.pack(trained)
    with torch.no_grad():
        wanted = [trained(image) for image in images(16)]
        assert torch.cat([w.argmax(1).flatten() for w in wanted]).unique().numel() > 2
        assert agreement(wanted, [packed(image) for image in images(16)]) >= 0.999
    assert packed.unfused is None


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    given = images(8)
    binarize.export_onnx(trained, path, given[0])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    found = [torch.from_numpy(session.run(None, {name: image.numpy()})[0]) for image in given]
    with torch.no_grad():
        assert agreement([trained(image) for image in given], found) >= 0.999
