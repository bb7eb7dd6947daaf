"""Accuracy of networks converted within a budget, before any training.

Converts a trained float network by several policies and budgets, re-estimates norm statistics on 64
training images, and evaluates on the validation split.

    python benchmarks/budget.py runs/float/float.safetensors --data camvid --root data/camvid \
        --sensitivity sensitivity/sensitivity.json 2.1MB 2.5MB 3MB 4MB 6MB

With ``--more-bits`` (repeatable) each budget is tried without and with the multi-bit layers of
these policies; the sensitivities must have been measured with the same options.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

import binarize
from binarize.cli.sources import open_file
from binarize.data import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("budgets", nargs="+")
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--root")
    parser.add_argument("--sensitivity", required=True)
    parser.add_argument("--more-bits", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = open_file(args.file)
    size, task = tuple(source.settings["size"]), source.settings["task"]

    def batches(split: str, count: int | None) -> DataLoader[Any]:
        data = open_dataset(args.data, args.root, split=split, size=size, task=task)
        count = len(data) if count is None else min(count, len(data))
        chosen = [number * len(data) // count for number in range(count)]
        return DataLoader(Subset(data, chosen), batch_size=8)

    norms, held = list(batches("train", 64)), batches("val", None)
    example = norms[0]["image"][:1]
    classes = int(source.network(example).shape[1])

    def show(name: str, network: Any) -> None:
        binarize.recalibrate(network, norms)
        trainer = binarize.Trainer(network, task=task, num_classes=classes, progress=False)
        value = trainer.evaluate(held)
        report = binarize.report(network, example)
        plan = getattr(network, "binarize_plan", None)
        layers = () if plan is None else plan.layers
        kept = "" if plan is None else str(sum(d.action == "keep" for d in layers))
        kept += (
            f", {more} with more bits" if (more := sum(d.unit is not None for d in layers)) else ""
        )
        score = value["mIoU" if task == "segmentation" else "AbsRel"]
        cells = (name, kept, f"{report.file_bytes:,}", f"{report.ops / 1e9:.3f}", f"{score:.4f}")
        print("| " + " | ".join(cells) + " |", flush=True)

    print("| network | float layers | bytes | GOPs | metric |\n|---|---|---|---|---|")
    for policy in ("bidense", "dense-prediction", "conservative"):
        show(policy, binarize.convert(source.network, policy, example_inputs=example))
    for budget in args.budgets:
        # Drops and agreements require sensitivities.
        for known in (args.sensitivity, None)[: 1 if "=" in budget else 2]:
            made = binarize.convert(
                source.network, example_inputs=example, budget=budget, sensitivity=known
            )
            show(f"bidense, {budget}" + ", without sensitivities" * (known is None), made)
        for bits in _sets(args.more_bits):
            made = binarize.convert(
                source.network,
                example_inputs=example,
                budget=budget,
                sensitivity=args.sensitivity,
                more_bits=bits,
            )
            show(f"bidense, {budget}, {' or '.join(bits)}", made)
    show("float", source.network)


def _sets(names: list[str]) -> list[list[str]]:
    """Each alone, and all together."""
    return [[name] for name in names] + ([names] if len(names) > 1 else [])


if __name__ == "__main__":
    main()
