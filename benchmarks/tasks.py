"""A second task that shares the bits of a first one, against a network of its own.

Trains a float network for each task; converts the first and distils it: the base. Then, alike and
for as many epochs, a converted network of its own for the second task, and networks that share the
base's bits with various shares of flips. A stopped run goes on when it is called again. `--agree`
adds networks that are penalized for binarized inputs that differ from the base's, and prints in how
many they differ on the validation images, layer by layer.

    python benchmarks/tasks.py scenes --output runs/tasks
    python benchmarks/tasks.py nyuv2 --root data/nyuv2 --size 120 160 --model smp:Unet:resnet18 \
        --base depth --output runs/tasks-nyuv2
    python benchmarks/tasks.py scenes --flips 0.005 --agree 1 3 10 --output runs/tasks
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import binarize
from binarize.cli.networks import DEMO, Recipe, build
from binarize.data import NYUv2, Scenes
from binarize.train import Agreement

METRIC = {"segmentation": "mIoU", "depth": "δ1"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=("scenes", "nyuv2"))
    parser.add_argument("--root", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 96), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--model", default=DEMO, help="default: the demo's U-Net")
    parser.add_argument("--base", choices=METRIC, default="segmentation", help="first task")
    parser.add_argument("--flips", type=float, nargs="+", default=(0, 0.005, 0.01, 0.05))
    parser.add_argument("--agree", type=float, nargs="+", default=(), metavar="WEIGHT")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--train", type=int, default=192, help="training scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    first, second = args.base, next(task for task in METRIC if task != args.base)

    base = student(args, first)
    file = args.output / "shared.safetensors"
    binarize.save(base, file)
    size = file.stat().st_size
    own = student(args, second)
    binarize.save(own, args.output / "own.safetensors")
    print(f"| network | {METRIC[second]} | bytes added | of the base | flips |")
    print("|---|---|---|---|---|")
    row("of its own", value(args, second, "own"), (args.output / "own.safetensors"), size)
    names = []
    for flips, weight in itertools.product(args.flips, (0, *args.agree)):
        name = f"flips-{flips:g}" + (f"-agree-{weight:g}" if weight else "")
        names.append(name)
        torch.manual_seed(args.seed)
        task = binarize.add_task(base, channels(args, second), flips=flips)
        agreement = Agreement(base, weight) if weight else None
        train(args, second, task, float_network(args, second), name, agreement)
        task.eval()
        binarize.save(task, file, task=name)
        found = next(t for t in binarize.tasks(file) if t.name == name)
        cost = f"{found.bytes:,} | {found.bytes / size:.1%} | {found.flips / found.weights:.2%}"
        what = f"at most {flips:.1%} flipped" + (f", agreement {weight:g}" if weight else "")
        print(f"| {what} | {value(args, second, name):.4f} | {cost} |")
    print(f"\nbase: {METRIC[first]} {value(args, first, 'base'):.4f}, {size:,} bytes")
    for task in METRIC:
        print(f"float: {METRIC[task]} {value(args, task, f'float-{task}'):.4f}")
    if args.agree:
        print_differing(args, file, names)


def print_differing(args: argparse.Namespace, file: Path, names: list[str]) -> None:
    """Print the share of binarized inputs in which each task differs from the base."""
    _, held = datasets(args, args.base)
    images = [batch["image"] for batch in DataLoader(held, batch_size=8)]
    network = build(Recipe(args.model, channels(args, args.base)))
    made = binarize.report_tasks(file, network, batches=images)
    print(f"\n| layer | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for layer in (*made.layers, None):
        shares = (f"{made.differing(name, layer):.1%}" for name in names)
        print(f"| {layer or 'all'} | {' | '.join(shares)} |")


def row(name: str, metric: float, file: Path, size: int) -> None:
    added = file.stat().st_size
    print(f"| {name} | {metric:.4f} | {added:,} | {added / size:.1%} | |")


def datasets(args: argparse.Namespace, task: str) -> tuple[Any, Any]:
    if args.data == "scenes":
        options = {"size": tuple(args.size), "task": task}
        seed = 2 * args.seed
        training = Scenes(args.train, seed=seed, augment=True, **options)
        return training, Scenes(64, seed=seed + 1, **options)
    options = {"size": tuple(args.size), "task": task}
    return (
        NYUv2(args.root, "train", augment=True, **options),
        NYUv2(args.root, "test", **options),
    )


def channels(args: argparse.Namespace, task: str) -> int:
    if task == "depth":
        return 1
    return int((Scenes if args.data == "scenes" else NYUv2).num_classes)


def train(
    args: argparse.Namespace,
    task: str,
    network: Any,
    teacher: Any,
    name: str,
    agreement: Agreement | None = None,
) -> None:
    """Train, or go on; the metrics of the last epoch are in a file."""
    folder = args.output / name
    if (folder / "done.json").exists():
        state = torch.load(folder / "state.pt", weights_only=True)
        network.load_state_dict(state)
        return
    training, held = datasets(args, task)
    trainer = binarize.Trainer(
        network,
        teacher=teacher,
        agreement=agreement,
        task=task,
        epochs=args.epochs,
        seed=args.seed,
        val_every=args.epochs,
        output_dir=folder,
        resume="auto",
        progress=True,
    )
    loader = DataLoader(training, batch_size=8, shuffle=True, drop_last=True)
    history = trainer.fit(loader, DataLoader(held, batch_size=8))
    torch.save(network.state_dict(), folder / "state.pt")
    (folder / "done.json").write_text(json.dumps(history[-1]))
    for checkpoint in folder.glob("*.pt"):
        if checkpoint.name != "state.pt":
            checkpoint.unlink()


def value(args: argparse.Namespace, task: str, name: str) -> float:
    return float(json.loads((args.output / name / "done.json").read_text())[METRIC[task]])


def float_network(args: argparse.Namespace, task: str) -> Any:
    torch.manual_seed(args.seed)
    network = build(Recipe(args.model, channels(args, task)))
    train(args, task, network, None, f"float-{task}")
    return network.eval()


def student(args: argparse.Namespace, task: str) -> Any:
    teacher = float_network(args, task)
    training, _ = datasets(args, task)
    batches = DataLoader(training, batch_size=8, shuffle=True)
    torch.manual_seed(args.seed)
    network = binarize.prepare_student(teacher, "bidense", batches)
    train(args, task, network, teacher, "base" if task == args.base else "own")
    return network.eval()


if __name__ == "__main__":
    main()
