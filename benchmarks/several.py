"""Three tasks in one pass against one: packed U-Nets that share their bits, random weights.

    python benchmarks/several.py
    python benchmarks/several.py --correct

Prints, for what the tasks have in common, the time of one pass for all three relative to one task
and to three separate networks: medians of rounds in which all run, one thread.

`--correct` asks instead what a second task could save if its sums were made from the first one's.
It keeps the sums of every binary layer, changes a share of the bits of its input at random, and
times the correction against counting anew, layer by layer. Weights are equal. "in layers" is the
share of a network's time that its binary layers take, "saved" the share of the whole time if every
layer takes the faster way, "layers" how many are corrected. With no changed bit, it is a bound for
any way of making sums from others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch

import binarize
from binarize.bench.timing import time_interleaved
from binarize.kernels import native
from binarize.kernels.stream import UnitStream
from binarize.video.layer import StreamedLayer

SHARED: dict[str, list[str]] = {
    "bits only": [],
    "the encoder": ["encoder"],
    "all but the last two decoder blocks": [
        "encoder",
        *(f"decoder.blocks.{i}" for i in range(3)),
    ],
    "all but the last decoder block": ["encoder", *(f"decoder.blocks.{i}" for i in range(4))],
}

CHANGED = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(352, 480), metavar=("ROWS", "COLUMNS")
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--correct", action="store_true", help="what correcting sums could save")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = smp.Unet(args.encoder, encoder_weights=None, classes=1)
    base = binarize.prepare_student(network, "bidense", [torch.randn(2, 3, 64, 64)]).eval()
    image = torch.randn(1, 3, *args.size)
    if args.correct:
        correct(binarize.pack(base), image, args.rounds)
        return
    print("| in common | one pass / one task | one pass / three networks | ms |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, shared in SHARED.items():
            file = Path(folder) / "net.safetensors"
            binarize.save(base, file)
            for task, head in (("labels", 13), ("normals", 3)):
                binarize.save(trained(base, head, shared), file, task=task)
            names = ["base", "labels", "normals"]
            together = binarize.load(file, task=names, packed=True)
            alone = [binarize.load(file, task=task, packed=True) for task in names]
            calls: dict[str, Any] = {
                "together": partial(together, image),
                "one": partial(alone[0], image),
                "three": partial(each_of, alone, image),
            }
            times = time_interleaved(calls, rounds=args.rounds)
            ratios = [
                statistics.median(
                    a / b for a, b in zip(times["together"], times[other], strict=True)
                )
                for other in ("one", "three")
            ]
            middle = 1000 * statistics.median(times["together"])
            print(f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} | {middle:.0f} |", flush=True)


def correct(network: Any, image: torch.Tensor, rounds: int) -> None:
    """Print what correcting the sums of all binary layers saves, by the share of changed bits."""
    calls = recorded_calls(network, image)
    print("| changed bits | in layers | saved | layers |\n|---|---|---|---|")
    for share in CHANGED:
        streams = [UnitStream() for _ in calls]
        inputs = [sources for sources, *_ in calls]
        whole, counting, correcting = [], [], []
        for number in range(rounds + 1):
            for x in inputs:
                change(x, share)
            started = time.perf_counter()
            network(image)
            whole.append(time.perf_counter() - started)
            pairs = [
                time_layer(stream, sources, rest)
                for stream, sources, (_, *rest) in zip(streams, inputs, calls, strict=True)
            ]
            if number:  # the first frame fills the streams
                counting.append([plain for plain, _ in pairs])
                correcting.append([fast for _, fast in pairs])
        gains = [
            statistics.median(
                one[i] - two[i] for one, two in zip(counting, correcting, strict=True)
            )
            for i in range(len(calls))
        ]
        time_of_one = statistics.median(whole[1:])
        part = statistics.median(sum(row) for row in counting) / time_of_one
        saved = sum(gain for gain in gains if gain > 0) / time_of_one
        better = sum(gain > 0 for gain in gains)
        print(f"| {share:.0%} | {part:.0%} | {saved:.1%} | {better} of {len(calls)} |", flush=True)


def recorded_calls(network: Any, image: torch.Tensor) -> list[tuple[Any, ...]]:
    """Return the arguments of all binary layers of a run."""
    calls: list[tuple[Any, ...]] = []
    forward = StreamedLayer.forward

    def record(self: StreamedLayer, *arguments: Any) -> Any:
        sources, *rest = arguments
        calls.append(([x.clone() for x in sources], *rest))
        return forward(self, *arguments)

    StreamedLayer.forward = record  # type: ignore[method-assign]
    try:
        binarize.Stream(network)(image)
    finally:
        StreamedLayer.forward = forward  # type: ignore[method-assign]
    return calls


def change(sources: list[torch.Tensor], share: float) -> None:
    """Change a share of the bits of a layer's input, in place.

    Values are mirrored at the mean, which is the threshold of these layers: only bits change.
    """
    for x in sources:
        mirrored = 2 * x.mean((2, 3), keepdim=True) - x
        x.copy_(torch.where(torch.rand_like(x) < share, mirrored, x))


def time_layer(
    stream: UnitStream, sources: list[torch.Tensor], rest: list[Any]
) -> tuple[float, float]:
    """Return the seconds of counting anew and of correcting the last call's sums."""
    started = time.perf_counter()
    native.unit(sources, *rest)
    between = time.perf_counter()
    native.stream_unit(stream, sources, *rest)
    return between - started, time.perf_counter() - between


def each_of(networks: list[Any], image: torch.Tensor) -> None:
    for network in networks:
        network(image)


def trained(base: Any, head: int, shared: list[str]) -> Any:
    """A task whose numbers differ from the base's wherever they may, as after training."""
    task = binarize.add_task(base, head, shared=shared)
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.randn_like(parameter))
    return task.eval()


if __name__ == "__main__":
    main()
