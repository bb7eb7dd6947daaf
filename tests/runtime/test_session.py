"""Exported networks: the packed network's own results, in its own structure, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError
from binarize.runtime import Session

# What torch's exporter and the libraries below it warn about.
pytestmark = pytest.mark.filterwarnings("ignore")


class UNet(nn.Module):
    """A residual block, a decoder that upsamples and concatenates, a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.join = nn.Conv2d(20, 8, 3, padding=1)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.stem(x)))
        deep = F.relu(self.down(first))
        deep = F.relu(self.wide(F.relu(self.depthwise(deep))) + deep)
        return self.head(F.relu(self.join(torch.cat([F.relu(self.up(deep)), first], 1))))


class Nearest(UNet):
    """The same with a fixed upsampling, whose input the binary layers read instead."""

    def forward(self, x: Tensor) -> Any:
        first = F.relu(self.norm(self.stem(x)))
        deep = F.interpolate(F.relu(self.down(first)), scale_factor=2)
        return {
            "out": self.head(F.relu(self.join(torch.cat([deep[:, :12], first], 1)))),
            "all": [deep, first],
        }


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = (
            nn.Conv3d(1, 8, 3, padding=1),
            nn.Conv3d(8, 16, 3, stride=2, padding=1),
        )
        self.head = nn.Conv3d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.leaky_relu(self.body(F.relu(self.stem(x)))))


class Stereo(nn.Module):
    """Two images, one shared encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.join, self.head = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        maps = [F.relu(self.body(F.relu(self.stem(x)))) for x in (left, right)]
        return self.head(F.relu(self.join(torch.cat(maps, 1))))


class Pixelwise(nn.Module):
    """Linear layers over pixels, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.narrow(F.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.head(x + y)


class Same(nn.Module):
    """Padding that depends on the size, as in networks that come from TensorFlow."""

    def __init__(self) -> None:
        super().__init__()
        from timm.layers import Conv2dSame

        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.head = Conv2dSame(8, 16, 3, stride=2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.down(F.relu(self.stem(x)))))


SETTINGS = {
    "task": "segmentation",
    "size": (24, 32),
    "classes": ("sky", "road", "tree", "car"),
    "palette": [[1, 2, 3]],
}


@pytest.fixture(scope="module")
def unet(export: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A packed U-Net and its file; exporting takes seconds."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("unet") / "network.onnx"
    return export(UNet(), torch.randn(1, 3, 16, 24), path, description={"settings": SETTINGS}), path


def compare(packed: Any, session: Session, *inputs: Tensor) -> None:
    """Same structure and, up to rounding, same values."""
    wanted, found = packed(*inputs), session(*(x.numpy() for x in inputs))
    leaves = torch.utils._pytree.tree_leaves(wanted)
    for one, other in zip(leaves, torch.utils._pytree.tree_leaves(found), strict=True):
        torch.testing.assert_close(torch.from_numpy(other), one, atol=1e-4, rtol=1e-4)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
    assert type(found) is type(wanted) or not isinstance(wanted, dict | list)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "dictionary, upsampled": (Nearest, [(1, 3, 16, 24), (2, 3, 8, 6)]),
    "three dimensions": (Volume, [(1, 1, 8, 8, 6), (2, 1, 5, 6, 7)]),
    "two inputs": (Stereo, [(1, 3, 16, 16), (2, 3, 9, 13)]),
    "linear layers": (Pixelwise, [(1, 3, 16, 16), (2, 3, 24, 20)]),
    "padding by the size": (Same, [(1, 3, 16, 16), (2, 3, 15, 18)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_of_any_size(name: str, exported: Any, pooling_exports: None) -> None:
    make, shapes = NETWORKS[name]
    inputs = (torch.randn(shapes[0]),) * (2 if name == "two inputs" else 1)
    packed, session = exported(make(), inputs)
    for shape in shapes:
        compare(packed, session, *(torch.randn(shape) for _ in inputs))


@pytest.mark.parametrize("policy", ["bidense-released", "groupnet", "lqnet"])
def test_any_policy(policy: str, exported: Any) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()),
        nn.Conv2d(12, 2, 1),
    )
    packed, session = exported(network, torch.randn(1, 3, 9, 8), policy=policy)
    compare(packed, session, torch.randn(2, 3, 6, 7))


def test_unet(unet: tuple[Any, Path]) -> None:
    session = Session(unet[1], threads=1)
    for shape in ((1, 3, 16, 24), (3, 3, 10, 12), (1, 3, 2, 2)):
        compare(unet[0], session, torch.randn(shape))


def test_threads_give_the_same(unet: tuple[Any, Path]) -> None:
    x = torch.randn(1, 3, 160, 192).numpy()
    one, two = (Session(unet[1], threads=count)(x) for count in (1, 2))
    assert np.array_equal(one, two)


def test_the_graph(unet: tuple[Any, Path]) -> None:
    model = onnx.load(unet[1])
    nodes = [node for node in model.graph.node if node.domain == "binarize"]
    # down, depthwise, wide, up, join: with activations, and the block's sum gone.
    assert [node.op_type for node in nodes] == ["BinaryConv"] * 5
    assert {node.op_type for node in model.graph.node if not node.domain} == {
        *("Conv", "Relu", "Transpose")
    }
    transposed = [node for node in model.graph.node if node.op_type == "Transpose"]
    assert len(transposed) == 2  # in and out of the binary part
    assert not model.functions
    known = {each.key: each.value for each in model.metadata_props}
    assert known["binarize_version"] == binarize.__version__
    assert known["binarize_layout"] == "1"
    assert Session(unet[1]).settings == json.loads(json.dumps(SETTINGS))
    weights = {x.name: x for x in model.graph.initializer}
    assert weights["join.bits"].data_type == onnx.TensorProto.UINT8


def test_fixed_sizes(exported: Any) -> None:
    packed, session = exported(Nearest(), torch.randn(2, 3, 12, 8), dynamic=False)
    compare(packed, session, torch.randn(2, 3, 12, 8))
    with pytest.raises(BinarizeError, match="the network cannot be run on it"):
        session(np.zeros((2, 3, 16, 8), np.float32))


# Images


def image(rows: int, columns: int) -> np.ndarray:
    made: np.ndarray = np.random.default_rng(0).integers(0, 256, (rows // 4, columns // 4, 3))
    smooth = Image.fromarray(made.astype(np.uint8)).resize(
        (columns, rows), Image.Resampling.BICUBIC
    )
    return np.asarray(smooth)


def test_segment_does_what_predict_does(unet: tuple[Any, Path], tmp_path: Path) -> None:
    from binarize.cli.images import as_input
    from binarize.data.dense import IMAGENET
    from binarize.runtime.images import shrink
    from binarize.train import open_task

    packed, session = unet[0], Session(unet[1])
    picture = image(50, 70)
    # Resized alike (below): a network of random weights makes much of a difference of 1 in 255.
    small = torch.from_numpy(shrink(picture, (24, 32))).permute(2, 0, 1)
    task = open_task("segmentation", num_classes=4, max_depth=None)
    wanted = task.decode(packed(as_input(small, IMAGENET)), (50, 70))[0].numpy()
    found = session.segment(picture)
    assert found.dtype == np.uint8
    assert found.shape == (50, 70)
    assert (found == wanted).mean() > 0.99
    Image.fromarray(picture).save(tmp_path / "image.png")
    assert np.array_equal(session.segment(tmp_path / "image.png"), found)


def test_resizing_is_torchs() -> None:
    from binarize.data.images import resize_image
    from binarize.runtime.images import resize, shrink

    picture = image(48, 64)
    for size in ((24, 32), (17, 40), (48, 64), (60, 90), (1, 1)):
        wanted = resize_image(torch.from_numpy(picture.copy()).permute(2, 0, 1), size)
        found = shrink(picture, size)
        assert np.abs(found.astype(int) - wanted.permute(1, 2, 0).numpy()).max() <= 1
        maps = torch.randn(2, 3, 9, 12)
        wanted = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(resize(maps.numpy(), size), wanted.numpy(), atol=1e-5)


def test_depth(exported: Any) -> None:
    settings = {"task": "depth", "max_depth": 10.0, "normalize": "symmetric"}
    described = {"settings": settings}
    packed, session = exported(UNet(1), torch.randn(1, 3, 16, 24), description=described)
    picture = image(16, 24)
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = 10 * packed(x).sigmoid()[0, 0]
    np.testing.assert_allclose(session.depth(picture), wanted.numpy(), rtol=1e-3)
    with pytest.raises(BinarizeError) as caught:
        session.segment(picture)
    assert str(caught.value) == (
        "task='segmentation': the network was trained for depth; call depth"
    )


# Without torch

ALONE = """
import sys
import numpy as np
from binarize.runtime import Session
session = Session(sys.argv[1], threads=1)
x = np.load(sys.argv[2])
np.save(sys.argv[3], session(x))
known = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "PIL", "matplotlib")
assert not [name for name in known if name in sys.modules], sorted(sys.modules)
"""


def test_a_process_without_torch(unet: tuple[Any, Path], tmp_path: Path) -> None:
    packed, path = unet
    x = torch.randn(1, 3, 20, 12)
    np.save(tmp_path / "x.npy", x.numpy())
    files = [path, tmp_path / "x.npy", tmp_path / "y.npy"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, files)],
        capture_output=True,
        text=True,
        env=os.environ,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), packed(x).numpy(), atol=1e-4)


# Mistakes


def told(run: Callable[[], Any]) -> str:
    with pytest.raises(BinarizeError) as caught:
        run()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_wrong_inputs(unet: tuple[Any, Path]) -> None:
    session = Session(unet[1])
    x = np.zeros((1, 3, 16, 24), np.float32)
    assert told(lambda: session()) == (
        "input='0 arrays': the network takes x; give one array for each"
    )
    assert told(lambda: session(y=x)) == "input='y': the network takes x; give one array for each"
    assert told(lambda: session(x.astype(np.uint8))).startswith("input='x: uint8': must be tensor")
    assert "the network cannot be run on it" in told(lambda: session(x[:, :2]))
    assert told(lambda: session("x")) == (
        "input='str': is not a numpy array; convert it: numpy.asarray"
    )
    assert "uint8 of shape (H, W, 3)" in told(lambda: session.segment(x))
    assert "cannot be read as an image" in told(lambda: session.segment(__file__))
    assert session(x.astype(np.float64)).shape == (1, 4, 16, 24)
    assert session(x[:0]).shape == (0, 4, 16, 24)


def test_wrong_files(
    unet: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(unet[1].read_bytes())
    assert "no such file" in told(lambda: Session(tmp_path / "none.onnx"))
    assert told(lambda: Session(path, threads=0)) == "threads=0: must be positive; use 1 or more"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot load it" in told(lambda: Session(path))
    model = onnx.load_from_string(whole)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "layout":
                attribute.i += 1
    path.write_bytes(model.SerializeToString())
    assert "reads weights of layout 1; use a newer operator library" in told(lambda: Session(path))
    path.write_bytes(whole)
    monkeypatch.setattr(sys.modules["binarize.runtime"], "__path__", [str(tmp_path)])
    assert told(lambda: Session(path)) == (
        "library='libbinarize_ort.so': this installation has no operator library: no C++ compiler "
        "worked when it was built; install a C++ compiler and CMake, then install the package again"
    )


def test_unknown_runtime(tmp_path: Path) -> None:
    student = binarize.convert(UNet()).eval()
    assert (
        told(
            lambda: binarize.export_onnx(
                student, tmp_path / "x.onnx", torch.zeros(1, 3, 8, 8), runtime="tensorrt"
            )
        )
        == "runtime='tensorrt': is unknown; use one of standard, binarize"
    )
    assert not list(tmp_path.iterdir())
