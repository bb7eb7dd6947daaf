"""``binarize frontier``: from a float network to trained networks of every size and speed."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from binarize.cli.datasets import (
    add_data_options,
    has_split,
    make_loader,
    open_data,
    task_of,
)
from binarize.cli.networks import Recipe, add_network_options, build
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent, pair
from binarize.cli.train_options import (
    add_augment_options,
    add_start_options,
    add_training_options,
)
from binarize.errors import BinarizeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from binarize.cli.sources import Source
    from binarize.report.frontier import Frontier

__all__ = ["add", "run"]

_DESCRIPTION = """\
From one trained float network to a set of trained, saved networks along the frontier of accuracy,
time and size. Measures sensitivities and latencies, chooses a treatment for each layer within each
budget, trains each network with the float one as its teacher, then times all of them in turns
beside the float network in float32, bfloat16 (on processors that have it) and, where they are
installed, int8 of OpenVINO (with nncf) and ONNX Runtime. Everything that was finished is kept: the
same command goes on where it stopped. Takes the options of train for the trainings."""

_EXAMPLES = [
    (
        "binarize frontier runs/float/float.safetensors --data camvid \\\n"
        "      --root data/camvid --size 192x144 --bench-size 480x352 --threads 1 \\\n"
        "      --epochs 25 --lr 0.004 --output runs/frontier",
        "the policies bidense and deploy, and three budgets",
    ),
    (
        "binarize frontier runs/float/float.safetensors --data camvid \\\n"
        "      --root data/camvid --point deploy --point time=25%,4MB --epochs 25 \\\n"
        "      --rival 'smp:Unet:resnet18,decoder_channels=[64,32,16,8,4]' \\\n"
        "      --output runs/frontier",
        "two points of your own, and a narrower float network",
    ),
]

POINTS = ("bidense", "deploy", "5%", "7%", "10%")


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "frontier",
        run,
        help="train networks along the frontier of accuracy, time and size",
        usage="FILE --data NAME --output DIR",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="the float network, as train saved it")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for everything written"
    )
    parser.add_argument(
        "--point",
        action="append",
        metavar="POLICY|BUDGET",
        help="a network to train: a policy's, or one within a budget "
        f"(default {', '.join(POINTS)})".replace("%", "%%"),
    )
    parser.add_argument(
        "--policy",
        default="deploy",
        metavar="NAME|FILE",
        help="how layers within budgets become binary (default deploy)",
    )
    parser.add_argument(
        "--rival",
        action="append",
        default=[],
        metavar="MODEL[,KEY=VALUE]",
        help="another float network, such as a narrower one, to be trained and measured alike",
    )
    parser.add_argument(
        "--bench-size",
        type=extent,
        metavar="WxH",
        help="size of the images that are timed (default: that of --size)",
    )
    parser.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="timed runs of each (default 15)"
    )
    parser.add_argument(
        "--sensitivity-images",
        type=int,
        default=32,
        metavar="N",
        help="images that sensitivities are measured on (default 32)",
    )
    parser.add_argument(
        "--no-engines", action="store_true", help="leave out OpenVINO and ONNX Runtime"
    )
    add_network_options(parser)
    add_start_options(parser)
    add_data_options(parser)
    add_augment_options(parser)
    add_training_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Choose, train, measure, write."""
    from binarize.budget import Budget
    from binarize.cli.records import make_folder
    from binarize.cli.sources import open_file
    from binarize.policy import load_policy, policies

    for name in ("rounds", "threads", "sensitivity_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BinarizeError(name.replace("_", "-"), value, "must be at least 1", "correct it")
    load_policy(args.policy)
    plans = list(dict.fromkeys(args.point or POINTS))
    known = policies()
    for name in plans:
        if name not in known and not name.endswith(".toml"):
            Budget.parse(name)
    rivals = {text: _rival(text) for text in dict.fromkeys(args.rival)}
    with out.step(f"opening {args.file}"):
        source = open_file(args.file)
    if source.binary or source.recipe is None:
        raise BinarizeError(
            "file",
            args.file,
            "the frontier starts from a float network that train saved",
            "give float.safetensors of binarize train --policy none",
        )
    for rival in rivals.values():
        build(replace(rival, classes=source.recipe.classes, in_channels=source.recipe.in_channels))
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    make_folder(args.output)
    budgets = [name for name in plans if name not in known and not name.endswith(".toml")]
    guide: dict[str, Any] = {}
    if budgets:
        guide = {
            "sensitivity": _sensitivity(args, out),
            "profile": _profile(args, source, budgets, out),
            "more_bits": ["int8"],
        }
    # All of them, before anything is trained: a budget may be out of reach.
    chosen = {name: _choose(args, source, name, guide, out) for name in budgets}
    for number, name in enumerate([*plans, *rivals], start=1):
        out.note(f"network {number} of {len(plans) + len(rivals)}: {name}")
        folder = args.output / _slug(name)
        if name in rivals:
            _train(args, source.recipe, folder, out, rival=rivals[name])
        else:
            _train(args, source.recipe, folder, out, policy=str(chosen.get(name, name)))
    made = _measure(args, source, plans, rivals, out)
    files = made.save(args.output)
    out.print(str(made), wrap=False)
    out.print(f"written: {', '.join(str(args.output / name) for name in files)}", wrap=False)
    out.emit(made.to_dict())
    return None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", name).strip("_")


def _rival(text: str) -> Recipe:
    """A specification with arguments; commas inside brackets do not part them."""
    parts = re.split(r",(?![^\[(]*[\])])", text)
    return Recipe(parts[0], arguments=dict(pair(part) for part in parts[1:]))


# The steps, each skipped where its result is there


def _sensitivity(args: argparse.Namespace, out: Output) -> Path:
    from binarize.cli import sensitivity
    from binarize.cli.app import build_parser

    path: Path = args.output / "sensitivity.json"
    if not path.exists():
        words = ["sensitivity", args.file, "--data", args.data, "--output", str(args.output)]
        given = build_parser().parse_args(words)
        for name in vars(given).keys() & vars(args).keys() - {"run", "parser", "batch_size"}:
            setattr(given, name, getattr(args, name))
        given.more_bits, given.limit = ["int8"], args.sensitivity_images
        given.model = given.teacher = None
        sensitivity.run(given, out.of_a_step())
    return path


def _profile(
    args: argparse.Namespace, source: Source, budgets: list[str], out: Output
) -> Path | None:
    from binarize.budget import Budget
    from binarize.latency import Profile, profile
    from binarize.latency.measure import machine

    if not any(limit.kind.startswith("time") for name in budgets for limit in Budget.parse(name)):
        return None
    path: Path = args.output / "profile.json"
    if path.exists():
        Profile.load(path).check(machine())
        return path
    with out.bar("measuring latencies", 9) as move:
        made = profile(source.network, _image(args, source), policy=args.policy, tell=move)
    made.save(path)
    return path


def _choose(
    args: argparse.Namespace, source: Source, name: str, guide: Mapping[str, Any], out: Output
) -> Path:
    """The rules that spend a budget, as a file."""
    from binarize.budget import plan
    from binarize.cli.examples import example_for
    from binarize.cli.start import overrides

    path: Path = args.output / f"{_slug(name)}.toml"
    if not path.exists():
        with out.step(f"choosing within {name}"):
            example = example_for(source.network, source.recipe, args.size)
            made = plan(
                source.network,
                args.policy,
                example_inputs=example,
                overrides=overrides(args),
                budget=name,
                **guide,
            )
        made.policy.save(path)
    return path


def _image(args: argparse.Namespace, source: Source) -> Tensor:
    """An image of the size that is timed."""
    import torch

    given = args.bench_size or args.size
    rows, columns = given or source.size or (224, 224)
    channels = 3 if source.recipe is None else source.recipe.in_channels
    return torch.randn(1, channels, rows, columns, generator=torch.Generator().manual_seed(0))


def _train(
    args: argparse.Namespace,
    recipe: Recipe,
    folder: Path,
    out: Output,
    *,
    policy: str = "none",
    rival: Recipe | None = None,
) -> None:
    """Train one network with the float one as its teacher, or go on with it, or leave it."""
    from binarize.cli import train

    if (folder / "metrics.json").exists() and any(folder.glob("*.safetensors")):
        return
    network = recipe if rival is None else rival
    given = argparse.Namespace(**vars(args))
    given.model, given.model_arg = network.spec, list(network.arguments.items())
    given.classes, given.in_channels = recipe.classes, recipe.in_channels
    given.output, given.policy = folder, policy
    given.init = Path(args.file) if rival is None else None
    given.teacher, given.teacher_model = args.file, None
    given.resume = folder if (folder / "last.pt").exists() else None
    given.overwrite = given.resume is None
    if rival is not None:
        given.encoder_weights = None
    if rival is not None or policy.endswith(".toml"):  # the rules have the overrides
        given.keep, given.binarize, given.int8 = [], [], []
    train.run(given, out.of_a_step())


def _measure(
    args: argparse.Namespace,
    source: Source,
    plans: list[str],
    rivals: Mapping[str, Recipe],
    out: Output,
) -> Frontier:
    """Time all networks in turns, and measure the metric of what was not trained here."""
    from binarize.bench import time_interleaved
    from binarize.cli.sources import open_file
    from binarize.lower import pack
    from binarize.report.frontier import Frontier, Point

    judge = _Judge(args, source, out)
    example = _image(args, source)
    forms: dict[str, _Form] = _float_forms(source.network, "float", args, judge, example)
    kinds = dict.fromkeys(forms, "float")
    for name in plans:
        file = args.output / _slug(name) / "binary.safetensors"
        packed = pack(open_file(str(file)).network)
        forms[name] = _Form(_called(packed, example), file.stat().st_size, _metrics(file), file)
        kinds[name] = "binarized"
    for name in rivals:
        file = args.output / _slug(name) / "float.safetensors"
        network = open_file(str(file)).network
        made = _float_forms(network, name, args, judge, example)
        made[name] = made[name]._replace(metrics=_metrics(file), file=file)
        forms |= made
        kinds |= dict.fromkeys(made, "rival")
    with out.bar(f"timing {len(forms)} networks", args.rounds) as move:
        calls = {name: form.call for name, form in forms.items()}
        seconds = time_interleaved(calls, rounds=args.rounds, tell=move)
    points = []
    for name, form in forms.items():
        values = form.metrics() if callable(form.metrics) else form.metrics
        file = "" if form.file is None else str(form.file.relative_to(args.output))
        numbers = {split: float(row[judge.metric]) for split, row in values.items()}
        points.append(Point(name, kinds[name], numbers, tuple(seconds[name]), form.bytes, file))
    recipe: Any = source.recipe
    return Frontier(
        recipe.spec,
        judge.metric,
        judge.higher,
        "×".join(map(str, example.shape)),
        _where(),
        tuple(points),
    )


class _Form(NamedTuple):
    """A network in a form that runs: its call, bytes, metrics by split (or how to get them)."""

    call: Callable[[], Any]
    bytes: int
    metrics: Any
    file: Path | None = None


def _where() -> str:
    from binarize.latency.measure import machine

    known = machine()
    return f"{known.processor}, {known.kernels} kernels, {known.threads} thread(s)"


def _metrics(file: Path) -> dict[str, Any]:
    """The metrics that a training wrote, by split."""
    record = json.loads((file.parent / "metrics.json").read_text(encoding="utf-8"))
    return {split: record[split] for split in ("val", "test") if split in record}


def _called(network: Any, example: Tensor) -> Callable[[], Any]:
    import torch

    def call() -> Any:
        with torch.inference_mode():
            return network(example)

    return call


class _Judge:
    """The data, read once, and the metric of networks on them."""

    def __init__(self, args: argparse.Namespace, source: Source, out: Output) -> None:
        from binarize.train import open_task

        splits = [split for split in ("val", "test") if has_split(args, split)]
        self._data = {split: open_data(args, split, out, known=source.settings) for split in splits}
        first = next(iter(self._data.values()))
        classes, depth = first.num_classes, first.max_depth
        name = task_of(args, source.settings)
        self._task = open_task(name, num_classes=classes, max_depth=depth)
        self.metric, self.higher = self._task.monitor, self._task.higher_is_better
        train = open_data(args, "train", out, known=source.settings, preload=False)
        count = min(32, len(train))
        self.images = [train[i * len(train) // count]["image"][None] for i in range(count)]

    def __call__(self, network: Callable[[Tensor], Any]) -> dict[str, Any]:
        """The metrics by split of what takes one image at a time."""
        import torch

        from binarize.train.evaluation import evaluate

        class Wrapped(torch.nn.Module):
            def forward(self, x: Tensor) -> Any:
                rows = [network(row[None].contiguous()) for row in x]
                return torch.cat([torch.as_tensor(row) for row in rows])

        model, cpu = Wrapped(), torch.device("cpu")
        return {
            split: evaluate(model, self._task, make_loader(data, 1), cpu, channels_last=False)
            for split, data in self._data.items()
        }


def _float_forms(
    network: nn.Module, name: str, args: argparse.Namespace, judge: _Judge, example: Tensor
) -> dict[str, _Form]:
    """A float network in float32, bfloat16 and the engines that are installed."""
    import copy
    import importlib.util

    import torch

    from binarize.bench.engines import Engines
    from binarize.file import float_contents

    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = copy.deepcopy(network).to(torch.bfloat16)
    last = example.contiguous(memory_format=torch.channels_last)
    size = float_contents(network).size

    def in_half(x: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = half(x.bfloat16()).float()
        return result

    def in_float(x: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = network(x)
        return result

    forms = {name: _Form(_called(network, last), size, lambda: judge(in_float))}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # elsewhere it is emulated, and slow
        half_call = lambda: in_half(last)  # noqa: E731
        forms[f"{name}, bf16"] = _Form(half_call, size // 2, lambda: judge(in_half))
    if args.no_engines:
        return forms
    threads, quarter = torch.get_num_threads(), size // 4
    # Networks of one size each: what is timed, and what the metric is measured on.
    timed = Engines(network, [_resized(x, example) for x in judge.images], _folder(args))
    judged = Engines(network, judge.images, _folder(args))
    with_openvino = all(importlib.util.find_spec(x) for x in ("openvino", "nncf"))
    if with_openvino:

        def openvino() -> Any:
            run = judged.openvino_runner(threads)
            return judge(lambda x: run(x.numpy()))

        call = timed.openvino(example, threads, "int8")
        forms[f"{name}, OpenVINO int8"] = _Form(call, quarter, openvino)
    if all(importlib.util.find_spec(x) for x in ("onnxruntime", "onnx")):

        def onnxruntime() -> Any:
            run = judged.onnxruntime_runner(threads)
            return judge(lambda x: run(x.numpy()))

        call = timed.onnxruntime(example, threads, True)
        forms[f"{name}, ONNX Runtime int8"] = _Form(call, quarter, onnxruntime)
    return forms


def _folder(args: argparse.Namespace) -> Path:
    """A folder for what engines read; it goes with the process."""
    folder = tempfile.TemporaryDirectory()
    args.folders = [*getattr(args, "folders", []), folder]
    return Path(folder.name)


def _resized(image: Tensor, example: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.interpolate(image, size=example.shape[2:], mode="bilinear", align_corners=False)
