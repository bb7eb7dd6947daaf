"""A stream of frames against the packed network on each frame alone, one thread.

    python benchmarks/stream.py --network binary.safetensors --root data/camvid
    python benchmarks/stream.py --network binary.safetensors --root data/camvid --tolerance 0.05
    python benchmarks/stream.py --units

The videos are made of CamVid's test frames, which are a second apart: those themselves; one of them
again and again; a slow pan over it by a pixel or a quarter of one per frame; an object that moves
over it, without and with sensor noise (a standard deviation of 1/255, rounded to 8 bits). Both run
on each frame, one after the other; "time" is the median over frames of the ratio, "with checks" the
ratio of all frames together, the first ones included. "changed" is the share of input bits that
differ from frame to frame, weighted by layers' operations: the floor of what exact correction
takes. With a tolerance, "agree" is the share of pixels with the class of the exact output, "mIoU"
what these classes score against the exact ones, and "flicker" the share of pixels whose exact class
differs from the frame before. `--units` measures from which share of
changed bits a layer of a stream is slower than a plain one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import binarize
from binarize.kernels import native, pack_weight
from binarize.kernels.stream import UnitStream

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
Video = Callable[[int], Tensor]


def videos(root: Path, size: tuple[int, int]) -> dict[str, Video]:
    """Frame i of each video, as (3, H, W) in [0, 1]."""
    files = sorted((root / "test" / "images").iterdir())
    noise = torch.Generator().manual_seed(0)

    def image(index: int) -> Tensor:
        picture = Image.open(files[index % len(files)]).convert("RGB")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    scene, thing = image(60), image(10)[:, 150:198, 200:264]
    height, width = scene.shape[1] - 40, scene.shape[2] - 100

    def view(x: Tensor, left: int = 0) -> Tensor:
        part = x[None, :, 20 : 20 + height, left : left + width]
        return F.interpolate(part, size=size, mode="bilinear", antialias=True)[0]

    def quarter(i: int) -> Tensor:
        left, part = divmod(i, 4)
        return (1 - part / 4) * view(scene, left) + part / 4 * view(scene, left + 1)

    def moving(i: int) -> Tensor:
        x, left = scene.clone(), 40 + 2 * (i % 120)
        x[:, 140:188, left : left + 64] = thing
        return view(x)

    def noisy(i: int) -> Tensor:
        x = moving(i)
        return ((x + torch.randn(x.shape, generator=noise) / 255) * 255).round().clamp(0, 255) / 255

    return {
        "the same frame": lambda i: view(scene),
        "CamVid, 1 frame/s": lambda i: view(image(i)),
        "pan, 1 pixel": lambda i: view(scene, i % 100),
        "pan, 1/4 pixel": quarter,
        "moving object": moving,
        "moving object, noise": noisy,
    }


@torch.no_grad()
def measure(args: argparse.Namespace) -> None:
    network = binarize.load(args.network, packed=True)
    print("| video | changed | saved | time | with checks | agree | mIoU | flicker | ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, frame in videos(args.root, (args.size[0], args.size[1])).items():
        stream = binarize.Stream(network, tolerance=args.tolerance, measure=not args.every)
        plain, streamed, flicker = [], [], []
        before, pairs = None, torch.zeros(0)
        network(((frame(0) - MEAN) / DEVIATION)[None])  # records its program
        for i in range(args.frames):
            x = ((frame(i) - MEAN) / DEVIATION)[None]
            results = {}
            # In turns, as the first finds other things in the caches than the second.
            for call, times in ((network, plain), (stream, streamed))[:: 1 if i % 2 else -1]:
                started = time.perf_counter()
                results[call] = call(x)
                times.append(time.perf_counter() - started)
            wanted, got = results[network], results[stream]
            assert args.tolerance or torch.equal(got, wanted)
            classes, count = wanted.argmax(1), wanted.shape[1]
            both = count * classes + got.argmax(1)
            found = torch.bincount(both.flatten(), minlength=count**2)
            pairs = found if i == 0 else pairs + found
            if before is not None:
                flicker.append((before != classes).float().mean().item())
            before = classes
        report = stream.report()
        changed = sum(r.changed * r.operations for r in report.layers) / sum(
            r.operations for r in report.layers
        )
        table = pairs.double().view(round(pairs.numel() ** 0.5), -1)
        union = table.sum(0) + table.sum(1) - table.diag()
        score = (table.diag() / union)[union > 0].mean()
        ratio = statistics.median(b / a for a, b in zip(plain[5:], streamed[5:], strict=True))
        print(
            f"| {name} | {changed:.1%} | {report.saved:.1%} | {ratio:.2f} |"
            f" {sum(streamed) / sum(plain):.2f} | {table.diag().sum() / table.sum():.1%} |"
            f" {score:.1%} | {statistics.mean(flicker):.1%} |"
            f" {1000 * statistics.median(plain):.0f} |",
            flush=True,
        )
        if args.layers:
            print(report, flush=True)


def units(args: argparse.Namespace) -> None:
    """Layers of random signs of which a share changes."""
    shares = (0.0, 0.002, 0.01, 0.03, 0.06, 0.09, 0.12, 0.15, 0.2)
    print("| layer, 3x3 | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    print("|---|" + "---|" * len(shares))
    for channels, outputs, size in (
        *((64, 64, (72, 96)), (128, 128, (36, 48)), (256, 256, (18, 24)), (512, 512, (9, 12))),
        *((128, 32, (144, 192)), (32, 16, (288, 384))),
    ):
        shape = (1, channels, *size)
        signs = torch.randn(outputs, channels, 3, 3)
        convolution = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros", False, [0, 0])
        rest = (
            pack_weight(signs, stride=[1, 1], dilation=[1, 1]),
            *(torch.ones(outputs), torch.zeros(outputs), None, torch.zeros(channels), None, None),
            *convolution,
            *("none", [0, 0], [], None, None, None, False),
        )
        cells = []
        for share in shares:
            stream, x = UnitStream(), torch.randn(shape)
            ratios: list[float] = []
            for _ in range(args.frames):
                x = torch.where(torch.rand(shape) < share, -x, x)
                x = x.contiguous(memory_format=torch.channels_last)
                started = time.perf_counter()
                native.unit([x], [1], [], *rest)
                between = time.perf_counter()
                native.stream_unit(stream, [x], [1], [], *rest)
                ratios.append((time.perf_counter() - between) / (between - started))
            cells.append(f"{statistics.median(ratios[1:]):.2f}")
        print(f"| {channels} to {outputs}, {size[0]}x{size[1]} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", type=Path, help="a 1-bit network of CamVid's classes")
    parser.add_argument("--root", type=Path, help="CamVid's folder")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(128, 192), metavar=("ROWS", "COLUMNS")
    )
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--every", action="store_true", help="stream every layer, unmeasured")
    parser.add_argument("--layers", action="store_true", help="print the reports")
    parser.add_argument("--units", action="store_true", help="measure single layers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.units:
        units(args)
    elif args.network is None or args.root is None:
        parser.error("--network and --root are needed, or --units")
    else:
        measure(args)


if __name__ == "__main__":
    main()
