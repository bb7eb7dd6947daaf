"""``binarize demo``: the whole workflow on synthetic scenes, in two to three minutes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.networks import DEMO, Recipe, build
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import BinarizeError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

    from binarize.data import DenseDataset, Scenes

__all__ = ["add", "run"]

_DESCRIPTION = """\
Build a small float U-Net, train it briefly on synthetic scenes, binarize it, fine-tune it with the
float network as the teacher, save both, and write an image with input, ground truth and both
predictions side by side. Takes two to three minutes on one CPU core, and needs no download."""

_EXAMPLES = [
    ("binarize demo", "the whole demo, in the folder binarize-demo"),
    ("binarize demo --quick --output /tmp/demo", "a preview in a few seconds, barely trained"),
    ("binarize demo --seed 7", "other scenes, other initial weights"),
]


@dataclass(frozen=True)
class Plan:
    """Size and length of the demo."""

    size: tuple[int, int] = (72, 96)
    train: int = 256
    val: int = 48
    epochs: int = 16
    batch: int = 4
    rows: int = 4


_FULL = Plan()
_QUICK = Plan(size=(48, 64), train=64, val=12, epochs=5, rows=2)


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "demo",
        run,
        help="see everything in action, without any download",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("binarize-demo"),
        metavar="DIR",
        help="output folder (default binarize-demo)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--quick", action="store_true", help="a few seconds, barely any training")
    # More threads gain little on such a small network, and cost a lot on a busy machine.
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads of torch (default 1)"
    )


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Run the whole workflow."""
    for name, value, least in (("threads", args.threads, 1), ("seed", args.seed, 0)):
        if value < least:
            raise BinarizeError(name, value, f"must be at least {least}", "correct the number")
    started = time.perf_counter()
    import torch

    from binarize.cli.records import make_folder, write_json
    from binarize.cli.weights import save_float
    from binarize.data import Scenes
    from binarize.file import load, save
    from binarize.prepare import prepare_student
    from binarize.report import report

    torch.set_num_threads(args.threads)
    make_folder(args.output)
    plan = _QUICK if args.quick else _FULL
    folder: Path = args.output

    out.note("1/5  generating scenes: floor, wall, and four kinds of textured solids")
    sets = {
        split: Scenes(count, plan.size, seed=2 * args.seed + odd, task="segmentation", augment=flip)
        for split, count, odd, flip in (("train", plan.train, 0, True), ("val", plan.val, 1, False))
    }
    for split, scenes in sets.items():
        with out.bar(f"     {len(scenes)} {split}", len(scenes)) as move:
            scenes.preload(move)
    torch.manual_seed(args.seed)
    recipe = Recipe(DEMO, classes=sets["train"].num_classes)
    teacher = build(recipe)

    out.note("2/5  training the float network")
    measured = {"float": _train(teacher, None, sets, plan, args.seed, out)}
    settings = _settings(plan, sets["train"])
    description = {"recipe": recipe.to_dict(), "settings": settings}
    save_float(teacher, folder / "float.safetensors", description)

    out.note("3/5  converting it: one bit per weight and per activation")
    example = torch.zeros(1, 3, *plan.size)
    batches = _loader(sets["train"], plan, shuffle=True)
    student: Any = prepare_student(teacher, batches=batches)
    counts = [decision.action for decision in student.binarize_plan.layers]
    out.note(
        f"     {counts.count('binarize')} of {len(counts)} layers, "
        f"{student.binarize_plan.binary_share:.1%} of their weights"
    )

    out.note("4/5  training the 1-bit network, with the float one as its teacher")
    measured["binary"] = _train(student, teacher, sets, plan, args.seed, out)

    out.note("5/5  saving, loading again, writing the image")
    save(student, folder / "binary.safetensors")
    again = load(folder / "binary.safetensors", model=build(recipe))
    counted = report(again, example)
    _draw(folder / "demo.png", sets["val"], teacher, again, plan.rows, measured)
    answer = {
        "description": description,
        "files": {
            "float": "float.safetensors",
            "model": "binary.safetensors",
            "picture": "demo.png",
            "numbers": "metrics.json",
        },
        "metrics": measured,
        "bytes": {
            name: (folder / f"{name}.safetensors").stat().st_size for name in ("float", "binary")
        },
        "ops": {"float": counted.reference_ops, "binary": counted.ops},
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(folder / "metrics.json", answer)
    _show(answer, folder, out)
    out.emit({"folder": folder, **answer})
    return None


def _settings(plan: Plan, scenes: Scenes) -> dict[str, Any]:
    return {
        "task": "segmentation",
        "data": "scenes",
        "size": list(plan.size),
        "normalize": "imagenet",
        "max_depth": None,
        "classes": list(scenes.classes),
        "palette": [list(color) for color in scenes.palette],
    }


def _loader(scenes: Scenes, plan: Plan, *, shuffle: bool) -> DataLoader[Any]:
    from torch.utils.data import DataLoader

    return DataLoader(scenes, batch_size=plan.batch, shuffle=shuffle, drop_last=shuffle)


def _train(
    student: nn.Module,
    teacher: nn.Module | None,
    sets: dict[str, Scenes],
    plan: Plan,
    seed: int,
    out: Output,
) -> dict[str, Any]:
    """Train, and evaluate on the validation scenes."""
    from binarize.train import Trainer

    trainer = Trainer(
        student,
        teacher=teacher,
        task="segmentation",
        epochs=plan.epochs,
        seed=seed,
        val_every=plan.epochs,
        progress=not out.quiet,
    )
    history = trainer.fit(
        _loader(sets["train"], plan, shuffle=True), _loader(sets["val"], plan, shuffle=False)
    )
    last = history[-1]
    return {"mIoU": last["mIoU"], "pixAcc": last["pixAcc"]}


def _show(answer: dict[str, Any], folder: Path, out: Output) -> None:
    from rich.table import Table

    from binarize.report.numbers import readable

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for name in ("float", "1-bit", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("mIoU", "pixAcc"):
        values = [answer["metrics"][kind][name] for kind in ("float", "binary")]
        table.add_row(name, *(f"{value:.3f}" for value in values), "")
    for name, title, unit, word in (
        ("bytes", "file", "B", "smaller"),
        ("ops", "operations", "", "fewer"),
    ):
        before, after = answer[name]["float"], answer[name]["binary"]
        table.add_row(
            title,
            readable(before, unit),
            readable(after, unit),
            f"{before / after:.1f} times {word}",
        )
    out.print(f"\ndone in {answer['seconds']:.0f} s\n")
    out.print(table)
    out.print()
    binary = folder / "binary.safetensors"
    for text, path in (
        ("image", folder / "demo.png"),
        ("1-bit network", binary),
        ("float network", folder / "float.safetensors"),
        ("numbers", folder / "metrics.json"),
    ):
        out.print(f"{text:<14} {path}", wrap=False)
    out.print("\nnext, look at every layer, then at your own network:", wrap=False)
    out.print(f"  binarize report {binary}", wrap=False)
    out.print("  binarize convert smp:Unet:resnet34 --classes 11 --dry-run", wrap=False)
    out.print("  binarize train --help", wrap=False)


def _draw(
    path: Path,
    data: DenseDataset,
    teacher: nn.Module,
    student: nn.Module,
    rows: int,
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """Write input, ground truth, float and 1-bit prediction side by side.

    Args:
        path: The file to write.
        data: Scenes for segmentation.
        teacher: The float network.
        student: The 1-bit network.
        rows: Number of scenes.
        metrics: ``mIoU`` of "float" and "binary", for the titles.
    """
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = torch.tensor(data.palette, dtype=torch.uint8)
    titles = [
        "input",
        "truth",
        f"float, mIoU {metrics['float']['mIoU']:.2f}",
        f"1-bit, mIoU {metrics['binary']['mIoU']:.2f}",
    ]
    height, width = data[0]["image"].shape[-2:]
    cell = 2.6
    figure = Figure(
        figsize=(4 * cell, rows * cell * height / width + 0.75), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, 4, squeeze=False)
    for row, scene in enumerate(_varied(data, rows)):
        sample = data[scene]
        shown = [data.denormalize(sample["image"]).permute(1, 2, 0), colors[sample["mask"]]]
        for network in (teacher, student):
            network.eval()
            with torch.no_grad():
                shown.append(colors[network(sample["image"][None])[0].argmax(0)])
        for column, panel in enumerate(shown):
            axis = axes[row, column]
            axis.imshow(panel.numpy(), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(titles[column], fontsize=11)
    figure.legend(
        handles=[
            Patch(color="#" + bytes(color).hex(), label=name)
            for name, color in zip(data.classes, data.palette, strict=True)
        ],
        loc="outside lower center",
        ncol=len(data.classes),
        frameon=False,
        fontsize=10,
    )
    figure.savefig(path)


def _varied(data: DenseDataset, count: int) -> list[int]:
    """Return a fixed choice of scenes with several classes, neither empty nor crowded."""
    kinds = [len(data[i]["mask"].unique()) for i in range(len(data))]
    return sorted(range(len(data)), key=lambda i: (abs(kinds[i] - 5), i))[:count]
