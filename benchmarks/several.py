"""Three tasks in one pass against one: packed U-Nets that share their bits, random weights.

    python benchmarks/several.py
    python benchmarks/several.py --correct

Prints, for what the tasks have in common, the time of one pass for all three relative to one task
and to three separate networks: medians of rounds in which all run, one thread.

`--correct` asks instead what a second task could save if its sums were made from the first one's.
It keeps the sums of every binary layer, changes a share of the bits of its input at random, and
times the correction against counting anew, layer by layer. Weights are equal. "saved" is the share
of the whole network's time if every layer takes the faster way, "layers" how many are corrected.
With no changed bit, it is a bound for any way of making sums from others.
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
    whole = statistics.median(
        time_interleaved({"one": partial(network, image)}, rounds=rounds)["one"]
    )
    calls = recorded_calls(network, image)
    plain = dict.fromkeys(CHANGED, 0.0)
    saved, layers = dict(plain), dict.fromkeys(CHANGED, 0)
    for arguments in calls:
        for share in CHANGED:
            counting, correcting = time_layer(arguments, share, rounds)
            plain[share] += counting
            saved[share] += max(0.0, counting - correcting)
            layers[share] += correcting < counting
    print(f"{len(calls)} binary layers take {plain[0.0] / whole:.0%} of {1000 * whole:.0f} ms\n")
    print("| changed bits | saved | layers |\n|---|---|---|")
    for share in CHANGED:
        print(f"| {share:.0%} | {saved[share] / whole:.1%} | {layers[share]} |")


def recorded_calls(network: Any, image: torch.Tensor) -> list[tuple[Any, ...]]:
    """Return the arguments of all binary layers of a run."""
    calls: list[tuple[Any, ...]] = []
    forward = StreamedLayer.forward

    def record(self: StreamedLayer, *arguments: Any) -> Any:
        calls.append(arguments)
        return forward(self, *arguments)

    StreamedLayer.forward = record  # type: ignore[method-assign]
    try:
        binarize.Stream(network)(image)
    finally:
        StreamedLayer.forward = forward  # type: ignore[method-assign]
    return calls


def time_layer(arguments: tuple[Any, ...], share: float, rounds: int) -> tuple[float, float]:
    """Return the median seconds of counting anew and of correcting, for a share of changed bits."""
    sources, *rest = arguments
    stream, changed, counted, corrected = UnitStream(), sources, [], []
    for _ in range(rounds + 1):
        # Mirrored at the mean, which is the threshold of these layers, so that only bits change.
        changed = [
            torch.where(torch.rand_like(x) < share, 2 * x.mean((2, 3), keepdim=True) - x, x)
            for x in changed
        ]
        started = time.perf_counter()
        native.unit(changed, *rest)
        between = time.perf_counter()
        native.stream_unit(stream, changed, *rest)
        counted.append(between - started)
        corrected.append(time.perf_counter() - between)
    return statistics.median(counted[1:]), statistics.median(corrected[1:])


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
