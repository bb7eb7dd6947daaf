"""Tasks that share the bits of a first one, against networks of their own and several heads.

Trains a float network for each task; converts the first and distils it: the base. Then, alike and
for as many epochs, for each further task a converted network of its own, and networks that share
the base's bits with various shares of flips. A stopped run goes on when it is called again.
`--heads` adds one backbone with a head for each task, in float and converted. `--agree` adds
networks that are penalized for binarized inputs that differ from the base's, and prints in how
many they differ on the validation images, layer by layer. `--only` trains for some of the further
tasks, so that several processes can share the work; a last call without it prints everything.

    python benchmarks/tasks.py scenes --output runs/tasks
    python benchmarks/tasks.py nyuv2 --root data/nyuv2 --size 120 160 --model smp:Unet:resnet18 \
        --encoder-weights resnet18.safetensors --tasks segmentation depth normals --heads \
        --flips 0.01 0.02 0.05 0.1 --epochs 6 --bf16 --output runs/tasks-nyuv2
    python benchmarks/tasks.py scenes --flips 0.005 --agree 1 3 10 --output runs/tasks
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.cli.networks import DEMO, Recipe, build
from binarize.cli.weights import load_encoder
from binarize.data import NYUv2, Scenes
from binarize.train import Agreement, MultiTask, unfold_norms

METRIC = {"segmentation": "mIoU", "depth": "δ1", "normals": "mean"}
"""Of each task; that of normals is their mean angle in degrees, where less is better."""


class Heads(nn.Module):
    """A network whose output channels are those of several tasks, one after the other."""

    def __init__(self, network: nn.Module, channels: dict[str, int]) -> None:
        super().__init__()
        self.network = network
        self.channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.network(image).split(list(self.channels.values()), dim=1)
        return dict(zip(self.channels, maps, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=("scenes", "nyuv2"))
    parser.add_argument("--root", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 96), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--model", default=DEMO, help="default: the demo's U-Net")
    parser.add_argument("--encoder-weights", type=Path, metavar="FILE")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=METRIC,
        default=("segmentation", "depth"),
        help="the base's first (default: segmentation depth)",
    )
    parser.add_argument("--only", nargs="*", choices=METRIC, help="train for these, print nothing")
    parser.add_argument("--heads", action="store_true")
    parser.add_argument("--flips", type=float, nargs="+", default=(0, 0.005, 0.01, 0.05))
    parser.add_argument("--agree", type=float, nargs="+", default=(), metavar="WEIGHT")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--train", type=int, default=192, help="training scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only is None:
        print_all(args)
        return
    if args.heads:
        heads_student(args)
    for second in args.only:
        base = student(args, args.tasks[0])
        student(args, second)
        for flips, weight in itertools.product(args.flips, (0, *args.agree)):
            task_network(args, base, second, flips, weight)


def print_all(args: argparse.Namespace) -> None:
    """Train what is not trained yet, save the tasks in one file, and print the tables."""
    first, *others = args.tasks
    base = student(args, first)
    file = args.output / "shared.safetensors"
    binarize.save(base, file)
    size = file.stat().st_size
    names = []
    for second in others:
        own = student(args, second)
        binarize.save(own, own_file(args, second))
        print(f"| {second} network | {METRIC[second]} | bytes added | of the base | flips |")
        print("|---|---|---|---|---|")
        print(f"| float, of its own | {value(args, second, f'float-{second}'):.4f} | | | |")
        row("1-bit, of its own", value(args, second, f"own-{second}"), own_file(args, second), size)
        for flips, weight in itertools.product(args.flips, (0, *args.agree)):
            task, name = task_network(args, base, second, flips, weight)
            names.append(name)
            binarize.save(task, file, task=name)
            found = next(t for t in binarize.tasks(file) if t.name == name)
            cost = f"{found.bytes:,} | {found.bytes / size:.1%} | {found.flips / found.weights:.2%}"
            what = f"at most {flips:.1%} flipped" + (f", agreement {weight:g}" if weight else "")
            print(f"| {what} | {value(args, second, name):.4f} | {cost} |")
        print()
    print(f"base: {METRIC[first]} {value(args, first, 'base'):.4f}, {size:,} bytes")
    print(f"float: {METRIC[first]} {value(args, first, f'float-{first}'):.4f}")
    if args.heads:
        print_heads(args)
    if args.agree:
        print_differing(args, file, names)


def own_file(args: argparse.Namespace, task: str) -> Path:
    return Path(args.output / f"own-{task}.safetensors")


def print_heads(args: argparse.Namespace) -> None:
    """Print the metrics of one backbone with a head for each task, in float and converted."""
    file = args.output / "heads.safetensors"
    binarize.save(heads_student(args), file)
    print(f"\n| one backbone | {' | '.join(args.tasks)} | bytes |")
    print(f"|---|{'---|' * len(args.tasks)}---|")
    for name, size in (("float-heads", ""), ("heads", f"{file.stat().st_size:,}")):
        metrics = json.loads((args.output / name / "done.json").read_text())
        shown = (f"{metrics[f'{task}/{METRIC[task]}']:.4f}" for task in args.tasks)
        print(f"| {name} | {' | '.join(shown)} | {size} |")


def print_differing(args: argparse.Namespace, file: Path, names: list[str]) -> None:
    """Print the share of binarized inputs in which each task differs from the base."""
    first = args.tasks[0]
    _, held = datasets(args, first)
    images = [batch["image"] for batch in DataLoader(held, batch_size=8)]
    network = build(Recipe(args.model, channels(args, first)))
    made = binarize.report_tasks(file, network, batches=images)
    print(f"\n| layer | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for layer in (*made.layers, None):
        shares = (f"{made.differing(name, layer):.1%}" for name in names)
        print(f"| {layer or 'all'} | {' | '.join(shares)} |")


def row(name: str, metric: float, file: Path, size: int) -> None:
    added = file.stat().st_size
    print(f"| {name} | {metric:.4f} | {added:,} | {added / size:.1%} | |")


def datasets(args: argparse.Namespace, task: str) -> tuple[Any, Any]:
    options: dict[str, Any] = {"size": tuple(args.size), "task": task}
    if args.data == "scenes":
        seed = 2 * args.seed
        training = Scenes(args.train, seed=seed, augment=True, **options)
        return training, Scenes(64, seed=seed + 1, **options)
    return (
        NYUv2(args.root, "train", augment=True, **options),
        NYUv2(args.root, "test", **options),
    )


def channels(args: argparse.Namespace, task: str) -> int:
    if task == "segmentation":
        return int((Scenes if args.data == "scenes" else NYUv2).num_classes)
    return {"depth": 1, "normals": 3}[task]


def train(
    args: argparse.Namespace,
    data: str,
    task: Any,
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
    training, held = datasets(args, data)
    trainer = binarize.Trainer(
        network,
        teacher=teacher,
        agreement=agreement,
        task=task,
        epochs=args.epochs,
        bf16=args.bf16 or None,
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


def fresh(args: argparse.Namespace, data: str, count: int) -> Any:
    torch.manual_seed(args.seed)
    network = build(Recipe(args.model, count))
    if args.encoder_weights is not None:
        load_encoder(network, args.encoder_weights)
        training, _ = datasets(args, data)
        some = itertools.islice(DataLoader(training, batch_size=8, shuffle=True), 16)
        unfold_norms(network, [batch["image"] for batch in some])
    return network


def float_network(args: argparse.Namespace, task: str) -> Any:
    network = fresh(args, task, channels(args, task))
    train(args, task, task, network, None, f"float-{task}")
    return network.eval()


def prepared(args: argparse.Namespace, data: str, teacher: Any) -> Any:
    training, _ = datasets(args, data)
    batches = DataLoader(training, batch_size=8, shuffle=True)
    torch.manual_seed(args.seed)
    return binarize.prepare_student(teacher, "bidense", batches)


def student(args: argparse.Namespace, task: str) -> Any:
    teacher = float_network(args, task)
    network = prepared(args, task, teacher)
    name = "base" if task == args.tasks[0] else f"own-{task}"
    train(args, task, task, network, teacher, name)
    return network.eval()


def heads_student(args: argparse.Namespace) -> Any:
    """Return one converted backbone with a head for each task, distilled from its like in float."""
    count = {task: channels(args, task) for task in args.tasks}
    data, task = "+".join(count), MultiTask({name: name for name in count}, weights="uncertainty")
    teacher = Heads(fresh(args, data, sum(count.values())), count)
    train(args, data, task, teacher, None, "float-heads")
    network = prepared(args, data, teacher.eval())
    task = MultiTask({name: name for name in count}, weights="uncertainty")
    train(args, data, task, network, teacher, "heads")
    return network.eval()


def task_network(
    args: argparse.Namespace, base: Any, task: str, flips: float, weight: float
) -> tuple[Any, str]:
    """Return a network that shares the base's bits, and its name."""
    name = f"{task}-flips-{flips:g}" + (f"-agree-{weight:g}" if weight else "")
    torch.manual_seed(args.seed)
    network = binarize.add_task(base, channels(args, task), flips=flips)
    agreement = Agreement(base, weight) if weight else None
    train(args, task, task, network, float_network(args, task), name, agreement)
    return network.eval(), name


if __name__ == "__main__":
    main()
