"""Three tasks in one pass against one: packed U-Nets that share their bits, random weights.

    python benchmarks/several.py

Prints, for what the tasks have in common, the time of one pass for all three relative to one task
and to three separate networks: medians of rounds in which all run, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch

import binarize
from binarize.bench.timing import time_interleaved

SHARED: dict[str, list[str]] = {
    "bits only": [],
    "the encoder": ["encoder"],
    "all but the last two decoder blocks": [
        "encoder",
        *(f"decoder.blocks.{i}" for i in range(3)),
    ],
    "all but the last decoder block": ["encoder", *(f"decoder.blocks.{i}" for i in range(4))],
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(352, 480), metavar=("ROWS", "COLUMNS")
    )
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = smp.Unet(args.encoder, encoder_weights=None, classes=1)
    base = binarize.prepare_student(network, "bidense", [torch.randn(2, 3, 64, 64)]).eval()
    image = torch.randn(1, 3, *args.size)
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
