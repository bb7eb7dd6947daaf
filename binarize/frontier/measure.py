"""The networks of a frontier side by side: their metric, their latency, their bytes."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.bench import time_interleaved
from binarize.bench.engines import Engines
from binarize.file import float_contents
from binarize.latency.measure import machine
from binarize.lower import pack
from binarize.report.frontier import Frontier, Point
from binarize.train import Task
from binarize.train.run import evaluate

__all__ = ["Judge", "Trained", "measure"]

Metrics = Mapping[str, Mapping[str, Any]]
"""Metrics by split."""


@dataclass(frozen=True)
class Trained:
    """A network that was trained for the frontier.

    Attributes:
        network: The network; its latency is measured in the forms that it can have.
        metrics: Its metrics, by split.
        file: Its file.
    """

    network: nn.Module
    metrics: Metrics
    file: Path


class Judge:
    """The metric of networks that were not trained for the frontier.

    Args:
        task: The task.
        loaders: Batches by split: mappings with "image" and the task's target, or tuples.
        images: Images (1, C, H, W) that 8-bit engines are calibrated on.
    """

    def __init__(self, task: Task, loaders: Mapping[str, Any], images: Sequence[Tensor]) -> None:
        self.task = task
        self.images = images
        self._loaders = loaders

    def __call__(self, network: Callable[[Tensor], Any]) -> dict[str, dict[str, Any]]:
        """Return the metrics by split of what takes one image at a time."""
        model, cpu = _OneByOne(network), torch.device("cpu")
        return {
            split: evaluate(model, self.task, loader, cpu, channels_last=False)
            for split, loader in self._loaders.items()
        }


class _OneByOne(nn.Module):
    def __init__(self, network: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._network = network

    def forward(self, x: Tensor) -> Tensor:
        rows = [self._network(row[None].contiguous()) for row in x]
        return torch.cat([torch.as_tensor(row) for row in rows])


def measure(
    network: nn.Module,
    example: Tensor,
    judge: Judge,
    *,
    binarized: Mapping[str, Trained],
    rivals: Mapping[str, Trained],
    folder: Path,
    label: str,
    rounds: int,
    engines: bool,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Frontier:
    """Time networks in turns, and measure the metric of those that were not trained here.

    Float networks are timed in float32, in bfloat16 where the processor has it, and in 8 bits by
    the engines that are installed; their int8 files are taken to have a quarter of the bytes.

    Args:
        network: The float network.
        example: The image that is timed, (1, C, H, W).
        judge: Measures the metric.
        binarized: The converted networks by name.
        rivals: Other float networks by name.
        folder: The frontier's folder; files are named relative to it.
        label: What the float network is called.
        rounds: Timed runs of each.
        engines: Whether OpenVINO and ONNX Runtime take part.
        tell: Called with rounds done and total rounds.

    Returns:
        The points, the float network's forms first.
    """
    with _folder() as room:
        forms = _float_forms(network, "float", example, judge, room if engines else None)
        kinds = dict.fromkeys(forms, "float")
        for name, one in binarized.items():
            call = partial(_run, pack(one.network), example)
            forms[name] = _Form(call, one.file.stat().st_size, one.metrics, one.file)
            kinds[name] = "binarized"
        for name, one in rivals.items():
            made = _float_forms(one.network, name, example, judge, room if engines else None)
            made[name] = made[name]._replace(metrics=one.metrics, file=one.file)
            forms |= made
            kinds |= dict.fromkeys(made, "rival")
        calls = {name: form.call for name, form in forms.items()}
        seconds = time_interleaved(calls, rounds=rounds, tell=tell)
        points = []
        for name, form in forms.items():
            values = form.metrics() if callable(form.metrics) else form.metrics
            numbers = {split: float(row[judge.task.monitor]) for split, row in values.items()}
            place = "" if form.file is None else str(form.file.relative_to(folder))
            points.append(
                Point(name, kinds[name], numbers, tuple(seconds[name]), form.bytes, place)
            )
    known = machine()
    return Frontier(
        label,
        judge.task.monitor,
        judge.task.higher_is_better,
        "×".join(map(str, example.shape)),
        f"{known.processor}, {known.kernels} kernels, {known.threads} thread(s)",
        tuple(points),
    )


class _Form(NamedTuple):
    """A network in a form that runs: its call, bytes, metrics by split (or how to get them)."""

    call: Callable[[], Any]
    bytes: int
    metrics: Metrics | Callable[[], Metrics]
    file: Path | None = None


def _float_forms(
    network: nn.Module, name: str, example: Tensor, judge: Judge, room: Path | None
) -> dict[str, _Form]:
    """Return a float network in float32, bfloat16 and the engines that are installed."""
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = copy.deepcopy(network).to(torch.bfloat16)
    last = example.contiguous(memory_format=torch.channels_last)
    size = float_contents(network).size

    def in_half(x: Tensor) -> Tensor:
        return _run(half, x.bfloat16()).float()

    in_float = partial(_run, network)
    forms = {name: _Form(partial(in_float, last), size, partial(judge, in_float))}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # elsewhere it is emulated, and slow
        forms[f"{name}, bf16"] = _Form(partial(in_half, last), size // 2, partial(judge, in_half))
    if room is None:
        return forms
    threads, quarter = torch.get_num_threads(), size // 4
    # Networks of one size each: what is timed, and what the metric is measured on.
    resized = [
        F.interpolate(x, size=example.shape[2:], mode="bilinear", align_corners=False)
        for x in judge.images
    ]
    folders = [Path(tempfile.mkdtemp(dir=room)) for _ in range(2)]
    timed, judged = (
        Engines(network, images, place)
        for images, place in zip((resized, judge.images), folders, strict=True)
    )

    def judge_by(runner: Callable[[int], Callable[[Any], Any]]) -> Metrics:
        run = runner(threads)
        return judge(lambda x: run(x.numpy()))

    if all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        call = timed.openvino(example, threads, "int8")
        metrics = partial(judge_by, judged.openvino_runner)
        forms[f"{name}, OpenVINO int8"] = _Form(call, quarter, metrics)
    if all(map(importlib.util.find_spec, ("onnxruntime", "onnx"))):
        call = timed.onnxruntime(example, threads, True)
        metrics = partial(judge_by, judged.onnxruntime_runner)
        forms[f"{name}, ONNX Runtime int8"] = _Form(call, quarter, metrics)
    return forms


def _run(network: Callable[[Tensor], Any], x: Tensor) -> Any:
    with torch.inference_mode():
        return network(x)


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for the engines' files."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
