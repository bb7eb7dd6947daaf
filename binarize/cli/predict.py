"""``binarize predict``: images in, masks or depth pictures out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.networks import add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, size
from binarize.errors import BinarizeError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from binarize.train.task import Task

__all__ = ["add", "run"]

_DESCRIPTION = """\
Run a saved network on pictures. Segmentation gives palette PNGs: the values are class indices,
the look is the classes' colours. Depth gives coloured PNGs, near is bright, and with --raw also
16-bit ones in millimetres. Results have the size of their picture."""

_EXAMPLES = [
    (
        "binarize predict runs/binary/binary.safetensors photo.jpg --output out",
        "one picture, with the settings of the training",
    ),
    (
        "binarize predict runs/binary/binary.safetensors photos/ --output out \\\n"
        "      --side-by-side",
        "a folder, each result beside its picture",
    ),
    (
        "binarize predict runs/binary/binary.safetensors photos/ --output out --packed",
        "computed with bits",
    ),
    (
        "binarize predict depth.safetensors photos/*.jpg --task depth --size 160x120 \\\n"
        "      --normalize imagenet --output out --raw",
        "depth, with nothing known of the training",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "predict",
        run,
        help="run a saved network on pictures",
        usage="FILE IMAGE [IMAGE ...] --output DIR",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a file of weights, float or binary")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the results"
    )
    parser.add_argument(
        "--side-by-side", action="store_true", help="write each result beside its picture"
    )
    parser.add_argument("--raw", action="store_true", help="depth: also millimetres, 16 bits")
    parser.add_argument("--task", metavar="TASK", help="segmentation or depth")
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="size the network works at, e.g. 192x144"
    )
    parser.add_argument("--normalize", metavar="NAME", help="imagenet, symmetric or none")
    parser.add_argument("--max-depth", type=float, metavar="M", help="depth: largest, in metres")
    parser.add_argument(
        "--model", metavar="MODEL", help="the network, if the file does not tell (see train)"
    )
    parser.add_argument(
        "--packed", action="store_true", help="compute with bits: the network is packed"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Predict."""
    if args.threads is not None and args.threads < 1:
        raise BinarizeError("threads", args.threads, "must be positive", "use 1 or more")
    pictures = _pictures(args.images)
    import torch

    from binarize.cli.pictures import legend, save_picture
    from binarize.cli.records import make_folder
    from binarize.cli.sources import open_file
    from binarize.data.dense import normalisation
    from binarize.data.palette import palette

    if args.threads:
        torch.set_num_threads(args.threads)
    fallback = None if args.model is None else recipe_from(args, args.model)
    with out.step(f"loading {args.file}"):
        source = open_file(args.file, fallback, packed=args.packed)
    known = source.settings
    mean, std = normalisation(args.normalize or known.get("normalize") or "imagenet")
    task = _task(args, known)
    shape = args.size or (tuple(known["size"]) if known.get("size") else None)
    make_folder(args.output)
    colors: Any = known.get("palette") or palette(256)
    written = []
    with out.bar(f"predicting {len(pictures)} pictures", len(pictures)) as move:
        for number, path in enumerate(pictures, start=1):
            written.append(_predict(args, source.network, task, path, shape, (mean, std), colors))
            move(number, len(pictures))
    if task.name == "segmentation" and known.get("classes"):
        save_picture(legend(known["classes"], colors), args.output / "legend.png")
    out.print(f"{len(written)} results in {args.output}", wrap=False)
    out.emit({"task": task.name, "output": args.output, "results": written})
    return None


def _pictures(given: list[str]) -> list[Path]:
    """The picture files; refuses two whose results would have one name."""
    from binarize.cli.pictures import find_pictures

    found = find_pictures(given)
    stems: dict[str, Path] = {}
    for path in found:
        if stems.setdefault(path.stem, path) != path:
            raise DataError(
                "images",
                str(path),
                f"has the same name as {stems[path.stem]}, so would its result",
                "predict them into two folders",
            )
    return found


def _task(args: argparse.Namespace, known: Mapping[str, Any]) -> Task:
    from binarize.train import open_task

    name = args.task or known.get("task")
    if name is None:
        raise BinarizeError(
            "task", None, "is not known from the file", "give --task segmentation or --task depth"
        )
    depth = args.max_depth if args.max_depth is not None else known.get("max_depth")
    return open_task(str(name), num_classes=256, max_depth=depth)


def _predict(
    args: argparse.Namespace,
    network: Any,
    task: Any,
    path: Path,
    shape: tuple[int, int] | None,
    stats: Any,
    colors: Any,
) -> dict[str, Any]:
    import torch

    from binarize.cli.pictures import as_input, beside, depth_picture, label_picture, save_picture
    from binarize.cli.start import try_out
    from binarize.data.images import read_image, resize_image

    image = read_image(path)
    rows, columns = image.shape[-2:]
    batch = as_input(image if shape is None else resize_image(image, shape), stats)
    try_out(network, batch)
    with torch.no_grad():
        decoded: Tensor = task.decode(network(batch), (rows, columns))[0]
    target = args.output / f"{path.stem}.png"
    told: dict[str, Any] = {"image": path, "result": target}
    if task.name == "segmentation":
        picture = label_picture(decoded, colors)
        values, counts = decoded.unique(return_counts=True)
        told["pixels"] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    else:
        depth = decoded[0]
        near, far = float(depth.min()), float(depth.max())
        picture = depth_picture(depth, near, far)
        told["metres"] = [near, far]
        if args.raw:
            told["raw"] = args.output / f"{path.stem}_mm.png"
            save_picture(_millimetres(depth), told["raw"])
    if args.side_by_side:
        from PIL import Image

        shown = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        picture = beside([shown, picture])
    save_picture(picture, target)
    return told


def _millimetres(depth: Tensor) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray((depth.cpu().numpy() * 1000).round().clip(0, 65535).astype(np.uint16))
