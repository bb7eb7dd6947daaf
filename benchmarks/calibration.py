"""Agreement of converted networks with their float network, before and after calibration.

Converts a trained float network by policies or within budgets, calibrates it on training images
without any label, and counts the pixels of CamVid's validation split that get the float network's
class.

    python benchmarks/calibration.py runs/float/float.safetensors --root data/camvid bidense
    python benchmarks/calibration.py runs/float/float.safetensors --root data/camvid \
        --images 64 --policy deploy --more-bits int8 --sensitivity sensitivity/sensitivity.json 3MB
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

import binarize
from binarize.cli.sources import open_file
from binarize.data import open_dataset

STEPS: dict[str, dict[str, bool]] = {
    "norms": {"weights": False, "activations": False},
    "norms, activations": {"weights": False, "activations": True},
    "everything": {"activations": True},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("networks", nargs="+", metavar="POLICY|BUDGET")
    parser.add_argument("--root")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--policy", default="bidense", help="policy of the budgets")
    parser.add_argument("--more-bits", action="append", default=[])
    parser.add_argument("--sensitivity")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = open_file(args.file)
    teacher, size = source.network, tuple(source.settings["size"])

    def batches(split: str, count: int | None) -> list[Any]:
        data = open_dataset("camvid", args.root, split=split, size=size, task="segmentation")
        count = len(data) if count is None else min(count, len(data))
        chosen = [number * len(data) // count for number in range(count)]
        return [batch["image"] for batch in DataLoader(Subset(data, chosen), batch_size=8)]

    images, held = batches("train", args.images), batches("val", None)
    truth = classes(teacher, held)

    def show(network: str, step: str, student: Any, seconds: float | None = None) -> None:
        same = [(a == b).float().mean() for a, b in zip(classes(student, held), truth, strict=True)]
        weights = torch.tensor([len(x) for x in held], dtype=torch.float32)
        agreement = float((torch.stack(same) * weights).sum() / weights.sum())
        took = "" if seconds is None else f"{seconds:.0f}"
        print(f"| {network} | {step} | {agreement:.3f} | {took} |", flush=True)

    print("| network | fitted | agreement | seconds |\n|---|---|---|---|")
    for name in args.networks:
        budget = name if name[0].isdigit() or "=" in name else None
        converted = binarize.convert(
            teacher,
            args.policy if budget else name,
            example_inputs=images[0][:1],
            budget=budget,
            sensitivity=args.sensitivity if budget else None,
            more_bits=args.more_bits if budget else (),
        )
        show(name, "nothing", converted)
        student = copy.deepcopy(converted)
        started = time.perf_counter()
        binarize.recalibrate(student, images)
        show(name, "statistics", student, time.perf_counter() - started)
        for step, options in STEPS.items():
            student = copy.deepcopy(converted)
            started = time.perf_counter()
            binarize.calibrate(student, teacher, images, **options)
            show(name, step, student, time.perf_counter() - started)


@torch.no_grad()
def classes(network: Any, batches: list[Any]) -> list[Any]:
    """The most likely class of every pixel."""
    network.eval()
    return [network(images).argmax(1) for images in batches]


if __name__ == "__main__":
    main()
