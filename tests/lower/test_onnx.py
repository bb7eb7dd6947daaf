"""ONNX files: standard operators, small, and the network's own results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.data import Scenes
from binarize.errors import BinarizeError
from binarize.nn import BiConv1d, BiConv2d, BiConv3d, BiConvTranspose2d, ShiftedPReLU
from binarize.runtime import Session


class Net(nn.Module):
    """Float stem and head around units with all that an exporter may stumble on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.down = BiConv2d(64, 65, 3, stride=2, padding=1)
        self.act = ShiftedPReLU(65)
        self.up = BiConvTranspose2d(65, 32, 2, stride=2)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.act(self.down(self.stem(x)))))


# What torch's exporter and the libraries below it warn about.
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_gives_the_same(shop: SimpleNamespace, tmp_path: Path) -> None:
    network = shop.train_like(Net())
    path = tmp_path / "net.onnx"
    picture = Scenes(1, (24, 32), seed=0)[0]["image"][None]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    binarize.export_onnx(network, path, picture)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    weights = {x.name: x for x in model.graph.initializer if x.name.endswith("bits")}
    assert weights["down.bits"].data_type == onnx.TensorProto.UINT8
    assert list(weights["down.bits"].dims) == [64 * 65 * 9 // 8]
    assert path.stat().st_size < 0.5 * 4 * sum(p.numel() for p in network.parameters())
    assert str(Path(__file__).parent) not in path.read_bytes().decode("latin1")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    (result,) = session.run(None, {session.get_inputs()[0].name: picture.numpy()})
    with torch.no_grad():
        wanted = network(picture)
    torch.testing.assert_close(torch.from_numpy(result), wanted, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Named(nn.Module):
    """Two images, one by keyword, and a number, which is not an image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, gain: Tensor, *, other: Tensor) -> Tensor:
        return self.net(x) * gain + self.net(other)


@pytest.mark.filterwarnings("ignore")
def test_any_size(shop: SimpleNamespace, tmp_path: Path, pooling_exports: None) -> None:
    network, path = shop.train_like(Net()), tmp_path / "net.onnx"
    # A single image is an example for any batch size.
    binarize.export_onnx(network, path, torch.randn(1, 3, 8, 12), dynamic=True)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in ((1, 3, 8, 12), (3, 3, 20, 10), (1, 3, 2, 2)):
        picture = torch.randn(shape)
        (result,) = session.run(None, {session.get_inputs()[0].name: picture.numpy()})
        with torch.no_grad():
            wanted = network(picture)
        torch.testing.assert_close(torch.from_numpy(result), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_any_length(shop: SimpleNamespace, tmp_path: Path) -> None:
    layers = nn.Conv1d(2, 8, 3), BiConv1d(8, 8, 3, padding=1), nn.Conv1d(8, 3, 1)
    network, path = shop.train_like(nn.Sequential(*layers)), tmp_path / "net.onnx"
    binarize.export_onnx(network, path, torch.randn(1, 2, 20), dynamic=True)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 2, "length"]
    for shape in ((1, 2, 20), (3, 2, 7), (2, 2, 3)):
        signal = torch.randn(shape)
        (result,) = session.run(None, {session.get_inputs()[0].name: signal.numpy()})
        with torch.no_grad():
            wanted = network(signal)
        torch.testing.assert_close(torch.from_numpy(result), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_any_size_of_named_inputs(
    shop: SimpleNamespace, tmp_path: Path, pooling_exports: None
) -> None:
    network, path = shop.train_like(Named()), tmp_path / "net.onnx"
    inputs = {
        "x": torch.randn(1, 3, 8, 12),
        "gain": torch.ones(1),
        "other": torch.randn(1, 3, 8, 12),
    }
    binarize.export_onnx(network, path, inputs, dynamic=True)
    session = onnxruntime.InferenceSession(path)
    shapes = {given.name: given.shape for given in session.get_inputs()}
    assert shapes["gain"] == [1]
    assert [type(size) for size in shapes["other"]] == [str, int, str, str]
    inputs = {"x": torch.randn(2, 3, 6, 4), "gain": torch.ones(1), "other": torch.randn(2, 3, 6, 4)}
    (result,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        wanted = network(**inputs)
    torch.testing.assert_close(torch.from_numpy(result), wanted, atol=1e-4, rtol=1e-4)


class Pyramid(nn.Module):
    """Pools to a few positions, however large the image: windows depend on its size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), BiConv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu())
        for size in (3, (2, None), (None, 5), 1):
            x = x + F.interpolate(F.adaptive_avg_pool2d(x, size), x.shape[2:])
        return self.head(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("runtime", ["standard", "binarize"])
def test_windows_that_follow_the_size(
    runtime: str, shop: SimpleNamespace, tmp_path: Path, pooling_exports: None
) -> None:
    network, path = shop.train_like(Pyramid()), tmp_path / "net.onnx"
    binarize.export_onnx(network, path, torch.randn(1, 3, 6, 9), dynamic=True, runtime=runtime)
    session = Session(path)
    for shape in ((1, 3, 6, 9), (2, 3, 7, 11), (1, 3, 24, 10), (1, 3, 2, 3)):
        image = torch.randn(shape)
        with torch.no_grad():
            wanted = network(image)
        found = torch.from_numpy(session(image.numpy()))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_units_read_volumes_before_upsampling(shop: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    network = shop.train_like(nn.Sequential(nn.Upsample(scale_factor=2), BiConv3d(4, 4, 1)))
    x = torch.randn(1, 4, 2, 3, 4)
    binarize.export_onnx(network, path, x, runtime="binarize")
    assert "Resize" not in {node.op_type for node in onnx.load(path).graph.node}
    with torch.no_grad():
        found = torch.from_numpy(Session(path)(x.numpy()))
        torch.testing.assert_close(found, network(x), atol=1e-4, rtol=1e-4)


class OneSize(Net):
    """A forward that can do no other size than it was written for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.zeros(8, 12))


@pytest.mark.filterwarnings("ignore")
def test_one_size_is_not_any_size(shop: SimpleNamespace, tmp_path: Path) -> None:
    network, path = shop.train_like(OneSize()), tmp_path / "net.onnx"
    with pytest.raises(BinarizeError) as caught:
        binarize.export_onnx(network, path, torch.zeros(1, 3, 8, 12), dynamic=True)
    told = str(caught.value)
    assert told.startswith("model='OneSize': it cannot be exported for all sizes (")
    assert told.endswith("; set dynamic=False")
    assert list(tmp_path.iterdir()) == []


def test_refusals(shop: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = shop.train_like(Net())
    picture = torch.zeros(1, 3, 8, 8)
    with pytest.raises(BinarizeError, match="there is no folder"):
        binarize.export_onnx(network, tmp_path / "none" / "net.onnx", picture)
    with pytest.raises(BinarizeError, match="it has no binary layers"):
        binarize.export_onnx(nn.Conv2d(3, 3, 1).eval(), tmp_path / "net.onnx", picture)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BinarizeError) as caught:
        binarize.export_onnx(network, "net.onnx", picture)
    assert str(caught.value) == (
        "path='net.onnx': writing ONNX needs the package onnx; pip install onnx onnxscript"
    )
    assert list(tmp_path.iterdir()) == []
