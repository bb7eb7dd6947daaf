"""``binarize bench``: the versions of a network side by side, on this machine."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.networks import FORMS, add_network_of_file, add_network_options, nearest
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent
from binarize.errors import BinarizeError
from binarize.extras import require

if TYPE_CHECKING:
    from binarize.bench import Measured, Subject, Version
    from binarize.cli.bench_subject import Inputs

__all__ = ["add", "run"]

_DESCRIPTION = """\
Run the float, compiled, bfloat16 and packed 1-bit versions of a network on this machine's CPU,
interleaved, and report latency, throughput, memory and file size of each. Speed depends on the
network's shapes, not on its weights, so the network need not be trained.
Packed programs (binarize pack) and ONNX files are measured as they are. A network with several
inputs needs a function example_inputs next to the factory in its file."""

_EXAMPLES = [
    (
        "binarize bench smp:Unet:resnet34 --classes 11 --size 480x352",
        "is the 1-bit network worth it?",
    ),
    (
        "binarize bench runs/binary/binary.safetensors --threads 2 -o runs/bench",
        "a saved network; a table, bench.json and bench.png",
    ),
    (
        "binarize bench timm:resnet50 --versions float,packed --no-memory --json",
        "two versions, latency only, as JSON",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "bench",
        run,
        help="measure float, compiled, bf16 and packed versions",
        usage="MODEL",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=f"a saved network, or {FORMS}")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write bench.json and bench.png there"
    )
    parser.add_argument(
        "--policy",
        default="bidense",
        metavar="NAME|FILE",
        help="policy that converts a float network (default bidense)",
    )
    parser.add_argument(
        "--size",
        type=extent,
        metavar="WxH[xD]",
        help="image size (default: the network's own)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images per call (default 1)"
    )
    parser.add_argument(
        "--versions",
        metavar="NAMES",
        help="versions to run (default float,compiled,bf16,packed; ort-packed: the packed network "
        "exported to ONNX Runtime, without its memory)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=20,
        metavar="N",
        help="timed runs of each version (default 20)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of torch (default: torch's own)"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure memory (a process per version)"
    )
    add_network_of_file(parser)
    # Internal: run one version in a separate process and report its memory.
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Measure."""
    for name in ("batch_size", "rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BinarizeError(name.replace("_", "-"), value, "must be at least 1", "correct it")
    from binarize.bench import VERSIONS

    names = None if args.versions is None else args.versions.split(",")
    for name in names or ():
        if name not in (*VERSIONS, "onnx"):
            raise BinarizeError("versions", name, "no such version", nearest(name, VERSIONS))
    if args.output is not None:
        from binarize.cli.records import make_folder

        require("matplotlib")
        make_folder(args.output)
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    from binarize.cli.bench_subject import open_inputs, open_subject

    if args.memory_of is not None:
        _tell_memory(args, out)
        return None
    with out.step(f"opening {args.model}"):
        subject, versions = open_subject(args)
        inputs = open_inputs(args, subject)
    missing = [name for name in names or () if name not in versions]
    if missing:
        raise BinarizeError(
            "versions", missing[0], f"{args.model} has only {', '.join(versions)}", "omit it"
        )
    usual = [name for name, version in versions.items() if not version.asked]
    chosen = {name: versions[name] for name in dict.fromkeys(names or usual)}
    rows = _measure(args, out, subject, chosen, inputs)
    _show(args, out, rows, inputs)
    if all(row.failure for row in rows):
        cause = f"no version runs ({rows[0].failure})"
        raise BinarizeError("model", args.model, cause, "choose another --size or other --versions")
    return None


def _tell_memory(args: argparse.Namespace, out: Output) -> None:
    # Import all libraries of networks that there are, so that the idle process is the same for all.
    for library in ("segmentation_models_pytorch", "timm"):
        if find_spec(library) is not None:
            import_module(library)
    import torch

    from binarize.bench import peak_of_this_process
    from binarize.cli.bench_subject import open_inputs, open_subject

    idle = peak_of_this_process()
    subject, versions = open_subject(args)
    inputs, named = open_inputs(args, subject)
    call = versions[args.memory_of].make(subject)
    with torch.inference_mode():
        for _ in range(2):
            call(*inputs, **named)
    out.emit({"peak_bytes": peak_of_this_process(), "idle_bytes": idle})


def _measure(
    args: argparse.Namespace,
    out: Output,
    subject: Subject,
    versions: Mapping[str, Version],
    inputs: Inputs,
) -> list[Measured]:
    import torch

    from binarize.bench import Measured, time_interleaved
    from binarize.cli.bench_subject import memory_in_a_process, saved

    positional, named = inputs
    calls: dict[str, Callable[[], object]] = {}
    failures: dict[str, str] = {}
    with torch.inference_mode():
        for name, version in versions.items():
            with out.step(f"preparing {name}: {version.summary}"):
                try:
                    call = version.make(subject)
                    call(*positional, **named)
                except Exception as error:  # the other versions still run
                    failures[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                else:
                    calls[name] = partial(call, *positional, **named)
        with out.bar(
            f"timing {len(calls)} versions, interleaved", args.rounds if calls else 0
        ) as move:
            seconds = time_interleaved(calls, rounds=args.rounds, tell=move)
    peaks: dict[str, tuple[int | None, int | None]] = {}
    with tempfile.TemporaryDirectory(prefix="binarize-bench-") as folder:
        # A version that exports first would include the exporter's memory.
        for name in [] if args.no_memory else [n for n in calls if not versions[n].asked]:
            with out.step(f"measuring the memory of {name}"):
                reference = saved(args, subject, Path(folder)) if name == "packed" else args.model
                peaks[name] = memory_in_a_process(args, reference, name)
    return [
        Measured(
            name,
            version.summary,
            args.batch_size,
            tuple(seconds.get(name, ())),
            *peaks.get(name, (None, None)),
            None if name in failures else version.file_bytes(subject),
            failures.get(name, ""),
        )
        for name, version in versions.items()
    ]


def _show(args: argparse.Namespace, out: Output, rows: Sequence[Measured], inputs: Inputs) -> None:
    import torch
    from rich.table import Table
    from torch.utils._pytree import tree_iter

    from binarize.bench import relative_speed
    from binarize.cli.doctor import machine
    from binarize.cli.records import write_json
    from binarize.report.numbers import readable

    base = next((row for row in rows if row.name == "float"), None)
    facts = machine()
    threads = torch.get_num_threads()
    shapes = [list(x.shape) for x in tree_iter(inputs) if isinstance(x, torch.Tensor)]
    shown = ", ".join("×".join(map(str, shape)) for shape in shapes)
    title = f"{args.model} on {shown}, {facts['cpu']}, {threads} thread{'s' if threads > 1 else ''}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("version", style="bold")
    for column in ("latency", "middle half", "images/s", "speed", "memory", "file"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if row.latency is None or row.quartiles is None or row.throughput is None:
            table.add_row(row.name, "failed")
            continue
        speed = None if base is None else relative_speed(base.seconds, row.seconds)
        table.add_row(
            row.name,
            f"{row.latency * 1e3:.4g} ms",
            "–".join(f"{value * 1e3:.3g}" for value in row.quartiles),
            f"{row.throughput:.3g}",
            "" if speed is None else f"{speed:.2f}×",
            "" if row.peak_bytes is None else readable(row.peak_bytes, "B"),
            readable(row.file_bytes, "B"),
        )
    out.print(title)
    out.print(table)
    idle = [row.idle_bytes for row in rows if row.idle_bytes is not None]
    if idle:
        out.print(f"memory includes {readable(min(idle), 'B')} of Python and the libraries")
    for row in rows:
        if row.failure:
            out.print(f"{row.name}: {row.failure}")
    answer = {
        "model": args.model,
        "shape": shapes[0],
        "shapes": shapes,
        "threads": threads,
        "rounds": args.rounds,
        "machine": facts,
        "torch": torch.__version__,
        "versions": [row.to_dict(base) for row in rows],
    }
    if args.output is not None:
        write_json(args.output / "bench.json", answer)
        _draw(args.output / "bench.png", title, rows)
        out.print(f"{args.output / 'bench.json'}, {args.output / 'bench.png'}", wrap=False)
    out.emit(answer)


def _draw(path: Path, title: str, rows: Sequence[Measured]) -> None:
    """Write the chart: latency with its spread, memory and file size of the versions.

    Args:
        path: The file to write.
        title: The title.
        rows: The versions; those that do not run have empty bars.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.45 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes: Any = figure.subplots(1, 3, sharey=True)
    panels = (
        ("latency, ms (line: middle half)", [(row.latency or 0) * 1e3 for row in rows]),
        ("peak memory, MB (light: libraries)", [(row.peak_bytes or 0) / 1e6 for row in rows]),
        ("file, MB", [(row.file_bytes or 0) / 1e6 for row in rows]),
    )
    colors = ["tab:green" if row.name == "packed" else "tab:gray" for row in rows]
    places = range(len(rows))
    for axis, (name, values) in zip(axes, panels, strict=True):
        axis.barh(places, values, color=colors, height=0.6)
        axis.set_title(name, fontsize=9)
        axis.set_xlim(0, 1.35 * max(*values, 1e-9))
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    ends = [list(values) for _, values in panels]
    for place, row in enumerate(rows):
        if row.quartiles is not None:
            low, high = (1e3 * value for value in row.quartiles)
            axes[0].plot([low, high], [place, place], color="black")
            ends[0][place] = max(ends[0][place], high)
        if row.idle_bytes is not None:
            axes[1].barh(place, row.idle_bytes / 1e6, color="white", alpha=0.6, height=0.6)
    for axis, (_, values), right in zip(axes, panels, ends, strict=True):
        for place, value in enumerate(values):
            axis.text(right[place], place, f"  {value:.3g}" if value else "", va="center", size=8)
    axes[0].set_yticks(places, [row.name for row in rows])
    axes[0].invert_yaxis()
    figure.savefig(path)
