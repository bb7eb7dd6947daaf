"""The networks of a frontier side by side: their metric, their latency, their bytes."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from binarize.cli.datasets import has_split, make_loader, open_data, task_of
from binarize.cli.output import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from binarize.cli.sources import Source
    from binarize.report.frontier import Frontier

__all__ = ["measure"]


def measure(
    args: argparse.Namespace,
    source: Source,
    example: Tensor,
    folders: Mapping[str, Path],
    rivals: Container[str],
    out: Output,
) -> Frontier:
    """Time networks in turns, and measure the metric of those that were not trained here.

    Args:
        args: Parsed options of ``binarize frontier``.
        source: The float network.
        example: An image of the size that is timed.
        folders: The folder of each trained network by its name.
        rivals: Names of those that are other float networks.
        out: Where progress goes.
    """
    from binarize.bench import time_interleaved
    from binarize.cli.sources import open_file
    from binarize.lower import pack
    from binarize.report.frontier import Frontier, Point

    judge = _Judge(args, source, out)
    forms: dict[str, _Form] = _float_forms(source.network, "float", args, judge, example)
    kinds = dict.fromkeys(forms, "float")
    for name, folder in folders.items():
        if name in rivals:
            file = folder / "float.safetensors"
            made = _float_forms(open_file(str(file)).network, name, args, judge, example)
            made[name] = made[name]._replace(metrics=_metrics(file), file=file)
        else:
            file = folder / "binary.safetensors"
            call = _called(pack(open_file(str(file)).network), example)
            made = {name: _Form(call, file.stat().st_size, _metrics(file), file)}
        forms |= made
        kinds |= dict.fromkeys(made, "rival" if name in rivals else "binarized")
    with out.bar(f"timing {len(forms)} networks", args.rounds) as move:
        calls = {name: form.call for name, form in forms.items()}
        seconds = time_interleaved(calls, rounds=args.rounds, tell=move)
    points = []
    for name, form in forms.items():
        values = form.metrics() if callable(form.metrics) else form.metrics
        place = "" if form.file is None else str(form.file.relative_to(args.output))
        numbers = {split: float(row[judge.metric]) for split, row in values.items()}
        points.append(Point(name, kinds[name], numbers, tuple(seconds[name]), form.bytes, place))
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

        from binarize.train.run import evaluate

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
        forms[f"{name}, bf16"] = _Form(partial(in_half, last), size // 2, lambda: judge(in_half))
    if args.no_engines:
        return forms
    threads, quarter = torch.get_num_threads(), size // 4
    # Networks of one size each: what is timed, and what the metric is measured on.
    timed = Engines(network, [_resized(x, example) for x in judge.images], _folder(args))
    judged = Engines(network, judge.images, _folder(args))
    if all(importlib.util.find_spec(x) for x in ("openvino", "nncf")):

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
