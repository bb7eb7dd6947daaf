"""Packed networks in ONNX Runtime: agreement with PyTorch, latency, cost of a new input size.

    python benchmarks/runtime.py [--networks unet,resnet50] [--policy deploy] [--rounds 7]

Every network is converted by a policy (`bidense`) with random weights, packed, and exported with
`runtime="binarize"` for all sizes. "agrees" is the share of positions whose largest channel is the
same as in PyTorch (for one channel: within 1 % of the largest value), on two images whose size
differs from the export's. Times are processor times in ms, medians of interleaved rounds: the float
network in PyTorch (channels last), the packed one in PyTorch, and the exported one. "new size" is
the first call with a new input size, relative to a usual call.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

import binarize
from binarize.runtime import Session

warnings.simplefilter("ignore")


class Stereo(nn.Module):
    """Two images through one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model("resnet18", features_only=True)
        self.join, self.head = nn.Conv2d(512, 64, 3, padding=1), nn.Conv2d(64, 1, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Return the disparity and its logarithm in a dictionary."""
        maps = [self.encoder(x)[3] for x in (left, right)]
        y = self.head(self.join(torch.cat(maps, 1)).relu())
        return {"disparity": y.exp(), "logarithm": y}


class Volume(nn.Module):
    """A 3-D U-Net of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv3d(1, 32, 3, padding=1), nn.Conv3d(32, 64, 3, 2, 1)
        self.body, self.up = nn.Conv3d(64, 64, 3, padding=1), nn.ConvTranspose3d(64, 32, 2, 2)
        self.join, self.head = nn.Conv3d(64, 32, 3, padding=1), nn.Conv3d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        first = self.stem(x).relu()
        deep = self.up(self.body(self.down(first).relu()).relu()).relu()
        return self.head(self.join(torch.cat([deep, first], 1)).relu())


IMAGE = (1, 3, 480, 480)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "unet": (lambda: smp.Unet("resnet34", encoder_weights=None, classes=11), (IMAGE,)),
    "deeplab": (
        lambda: smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=11),
        (IMAGE,),
    ),
    "fpn": (lambda: smp.FPN("resnet18", encoder_weights=None, classes=11), (IMAGE,)),
    "upernet": (
        lambda: smp.UPerNet("tu-convnext_atto", encoder_weights=None, classes=11),
        ((1, 3, 256, 256),),
    ),
    "resnet50": (lambda: timm.create_model("resnet50"), ((1, 3, 224, 224),)),
    "features": (
        lambda: timm.create_model("resnet50", features_only=True),
        ((1, 3, 224, 224),),
    ),
    "depth": (lambda: smp.Unet("resnet18", encoder_weights=None, classes=1), ((1, 3, 256, 320),)),
    "volume": (Volume, ((1, 1, 32, 48, 48),)),
    "stereo": (Stereo, ((1, 3, 128, 160), (1, 3, 128, 160))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--policy", default="bidense")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("network    agrees     largest diff.  float     packed    exported  new size")
    for name in args.networks.split(","):
        make, shapes = NETWORKS[name]
        torch.manual_seed(0)
        measure(name, make().eval(), shapes, args)


def measure(
    name: str,
    network: nn.Module,
    shapes: tuple[tuple[int, ...], ...],
    args: argparse.Namespace,
) -> None:
    inputs = tuple(torch.randn(shape) for shape in shapes)
    student = binarize.convert(network, args.policy, example_inputs=inputs)
    with torch.no_grad():
        student.train()(*(torch.cat([x, x]) for x in inputs))  # 8-bit layers observe their ranges
    student.eval()
    packed = binarize.pack(student, inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        binarize.export_onnx(packed, path, inputs, runtime="binarize")
        session = Session(path, threads=args.threads)
    float_network: Any = network
    if all(x.dim() == 4 for x in inputs):
        float_network = network.to(memory_format=torch.channels_last)
    arrays = [x.numpy() for x in inputs]
    fast = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    calls: list[Callable[[], Any]] = [
        lambda: float_network(*fast),
        lambda: packed(*fast),
        lambda: session(*arrays),
    ]
    with torch.inference_mode():
        agree, largest = agreement(packed, session, inputs)
        for call in calls:
            call()
        times = [[processor_time(call) for call in calls] for _ in range(args.rounds)]
        medians = [statistics.median(row) for row in zip(*times, strict=True)]
        new = [np.ascontiguousarray(x[..., :-32]) for x in arrays]
        area = new[0].size / arrays[0].size
        first = processor_time(lambda: session(*new)) / (medians[2] * area)
    cells = "".join(f"{t:<10.1f}" for t in medians)
    print(f"{name:<11}{agree:<11.6f}{largest:<15.2g}{cells}x{first:.2f}", flush=True)


def agreement(packed: Any, session: Session, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Share of positions that agree, and the largest difference over the largest value."""
    same = count = 0
    largest = 0.0
    for _ in range(2):
        images = tuple(torch.randn(*x.shape[:-1], x.shape[-1] + 32) for x in inputs)
        wanted = torch.utils._pytree.tree_leaves(packed(*images))
        found = torch.utils._pytree.tree_leaves(session(*(x.numpy() for x in images)))
        for one, array in zip(wanted, found, strict=True):
            other = torch.from_numpy(array)
            scale = float(one.abs().max())
            largest = max(largest, float((one - other).abs().max()) / scale)
            alike = one.argmax(1) == other.argmax(1)
            if one.shape[1] == 1:
                alike = (one - other).abs() <= 0.01 * scale
            same += int(alike.sum())
            count += alike.numel()
    return same / count, largest


def processor_time(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


if __name__ == "__main__":
    main()
