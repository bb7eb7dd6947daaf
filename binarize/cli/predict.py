"""``binarize predict``: images in, masks or depth images out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.networks import add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, size
from binarize.errors import BinarizeError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from binarize.train.tasks.protocol import Task

__all__ = ["add", "run"]

_DESCRIPTION = """\
Run a saved network on images. Segmentation writes palette PNGs of class indices, shown in the
classes' colours; with one class, 1 where the network's output is above 0.
Multi-label networks write an image with all colours and NAME_CLASS.png, 1 where the class is
present. Depth writes coloured PNGs, near is bright, and with --raw also 16-bit PNGs in millimetres
(NAME_mm.png). Surface normals are colours (red to the right, green up, blue towards the camera),
edges grey PNGs of their probability. A network for several tasks writes NAME_TASK.png for each.
Results have the size and name of their image and go to the --output folder; input files are never
overwritten. An image that cannot be read is skipped and reported, and the exit code is 1."""

_EXAMPLES = [
    (
        "binarize predict runs/binary/binary.safetensors photo.jpg --output out",
        "one image, with the training's settings",
    ),
    (
        "binarize predict runs/binary/binary.safetensors photos/ --output out \\\n"
        "      --side-by-side",
        "a folder; NAME_side_by_side.png shows image and result together",
    ),
    (
        "binarize predict runs/binary/binary.safetensors photos/ --output out --packed",
        "on XNOR-popcount kernels",
    ),
    (
        "binarize predict depth.safetensors photos/*.jpg --task depth --size 160x120 \\\n"
        "      --normalize imagenet --output out --raw",
        "depth, without any record of the training",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "predict",
        run,
        help="run a saved network on images",
        usage="FILE IMAGE [IMAGE ...] --output DIR",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a file of weights, float or binary")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, or folders of them")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the results"
    )
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="also write NAME_side_by_side.png: the image beside its result",
    )
    parser.add_argument("--raw", action="store_true", help="depth: also millimetres, 16 bits")
    parser.add_argument("--task", metavar="TASK", help="as for train")
    parser.add_argument("--size", type=size, metavar="WxH", help="network input size, e.g. 192x144")
    parser.add_argument("--normalize", metavar="NAME", help="imagenet, symmetric or none")
    parser.add_argument("--max-depth", type=float, metavar="M", help="depth: largest, in metres")
    parser.add_argument(
        "--model", metavar="MODEL", help="the network, if the file does not name it (see train)"
    )
    parser.add_argument(
        "--packed", action="store_true", help="pack the network and run it on XNOR-popcount kernels"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Predict."""
    if args.threads is not None and args.threads < 1:
        raise BinarizeError("threads", args.threads, "must be positive", "use 1 or more")
    from binarize.cli.images import find_images

    images = find_images(args.images)
    import torch

    from binarize.cli.images import predict_heads, read_input, save_image
    from binarize.cli.records import output_folder
    from binarize.cli.results import LEGEND, plan_results
    from binarize.cli.sources import open_file
    from binarize.data.dense import normalisation
    from binarize.data.palette import palette
    from binarize.data.rendering import legend
    from binarize.train.tasks.multitask import heads

    if args.threads:
        torch.set_num_threads(args.threads)
    fallback = None if args.model is None else recipe_from(args, args.model)
    with out.step(f"loading {args.file}"):
        source = open_file(args.file, fallback, packed=args.packed, deployed=True)
    known = source.settings
    normalize = args.normalize or known.get("normalize") or "imagenet"
    stats = normalisation(normalize, known.get("bands"))
    task = _task(args, known)
    shape: Any = args.size or source.size
    colors: Any = known.get("palette") or palette(256)
    tasks = {one.name for one in heads(task).values()}
    names = list(known.get("classes") or []) if tasks & {"segmentation", "multilabel"} else []
    kinds = {"side_by_side": "_side_by_side"} if args.side_by_side else {}
    for head, one in heads(task).items():
        end = f"_{head}" if head else ""
        kinds[f"result{end}"] = end
        if args.raw and one.name == "depth":
            kinds[f"raw{end}"] = f"{end}_mm"
        if one.name == "multilabel":
            kinds |= {f"mask{end} of {name}": f"{end}_{'_'.join(name.split())}" for name in names}
    if len(names) == 1 and "segmentation" in tasks:
        names.insert(0, "background")
    others = [LEGEND] if names else []
    planned = plan_results(images, args.output, kinds, others=others, inputs=[Path(args.file)])
    written: list[dict[str, Any]] = []
    skipped: list[DataError] = []
    with (
        output_folder(args.output),
        out.bar(f"predicting {len(images)} images", len(images)) as move,
    ):
        for number, (path, files) in enumerate(zip(images, planned, strict=True), start=1):
            try:
                image = read_input(path, known)
            except DataError as error:
                skipped.append(error)
            else:
                decoded = predict_heads(source.network, task, image, stats, shape, known)
                result = _write(task, image, decoded, stats, colors, files)
                written.append({"image": path, **result})
            move(number, len(images))
        if written and names:
            save_image(legend(names, colors), args.output / LEGEND)
    if not written:
        raise skipped[0]
    count = len(written)
    out.print(f"{count} result{'s' if count > 1 else ''} in {args.output}", wrap=False)
    out.emit(
        {
            "task": "+".join(one.name for one in heads(task).values()),
            "output": args.output,
            "results": written,
            "skipped": [{"image": one.value, "reason": one.rule} for one in skipped],
        }
    )
    for refused in skipped:
        print(f"error: skipped: {refused}", file=sys.stderr, flush=True)
    return 1 if skipped else None


def _task(args: argparse.Namespace, known: Mapping[str, Any]) -> Task:
    from binarize.train import open_task

    name = args.task or known.get("task")
    if name is None:
        raise BinarizeError(
            "task",
            None,
            "is not recorded in the file",
            "give --task segmentation, multilabel, depth, normals or edges",
        )
    if "classification" in str(name).split("+"):
        raise BinarizeError(
            "task", name, "it has no picture", "give a network for segmentation or depth"
        )
    depth = args.max_depth if args.max_depth is not None else known.get("max_depth")
    return open_task(str(name), num_classes=256, max_depth=depth)


def _write(
    task: Any,
    image: Tensor,
    decoded: Mapping[str, Tensor],
    stats: Any,
    colors: Any,
    files: Mapping[str, Path],
) -> dict[str, Any]:
    """Write the predictions of an image, and return what the record says of them."""
    from binarize.cli.images import save_image, shown
    from binarize.data.rendering import beside, label_image, prediction_image
    from binarize.train.tasks.multitask import heads

    result: dict[str, Any] = dict(files)
    pictures = []
    for head, one in heads(task).items():
        end = f"_{head}" if head else ""
        value = decoded[head]
        pictures.append(prediction_image(one.name, value, colors))
        save_image(pictures[-1], files[f"result{end}"])
        result |= {f"{key}{end}": number for key, number in _numbers(one.name, value).items()}
        if one.name == "multilabel":
            masks = (file for kind, file in files.items() if kind.startswith(f"mask{end} of "))
            for channel, (mask, file) in enumerate(zip(value, masks, strict=False)):
                save_image(label_image(mask, [(0, 0, 0), colors[channel]]), file)
        if f"raw{end}" in files:
            save_image(_millimetres(value[0]), files[f"raw{end}"])
    if "side_by_side" in files:
        save_image(beside([shown(image, stats), *pictures]), files["side_by_side"])
    return result


def _numbers(task: str, value: Tensor) -> dict[str, Any]:
    """Return what the record says of a prediction."""
    if task == "segmentation":
        values, counts = value.unique(return_counts=True)
        return {"pixels": dict(zip(values.tolist(), counts.tolist(), strict=True))}
    if task == "multilabel":
        return {"pixels": dict(enumerate(value.sum((1, 2)).tolist()))}
    if task == "depth":
        return {"metres": [float(value.min()), float(value.max())]}
    if task == "edges":
        return {"pixels": int((value >= 0.5).sum())}
    return {}


def _millimetres(depth: Tensor) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray((depth.cpu().numpy() * 1000).round().clip(0, 65535).astype(np.uint16))
