"""Packed networks against every engine one might use instead.

    python benchmarks/networks.py                          # all networks, 1 and 2 threads
    python benchmarks/networks.py --networks unet --threads 1 --versions float,ov-int8,packed
    python benchmarks/networks.py --networks unet --versions packed --profile
    python benchmarks/networks.py --networks unet18 --policy cbnn --versions float,summed,packed
    pip install onnx onnxscript onnxruntime openvino nncf  # the other engines

All versions of a network are interleaved in one process, so that a busy machine slows all of them;
each turn repeats short calls. Wall time is what a user waits for; processor time (all threads)
is less sensitive to other load. "packed is" is the speed-up of the packed network: the median over
rounds of the ratio within a round. "like" is the cosine between a version's output and the float
network's (for the packed network: its float simulation's). Weights are random, with norm statistics
from random images. A version that does not run has a row that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from network_profile import Line, peak_rate, profile
from torch import nn

import binarize
from binarize.bench import VERSIONS, Subject, relative_speed, time_interleaved
from binarize.bench.engines import Engines
from binarize.kernels.native import status
from binarize.nn import folding

Call = Callable[[], Any]


def _unet(encoder: str = "resnet34") -> nn.Module:
    import segmentation_models_pytorch as smp

    network: nn.Module = smp.Unet(encoder, encoder_weights=None, classes=11)
    return network


def _deeplab() -> nn.Module:
    import segmentation_models_pytorch as smp

    network: nn.Module = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=11)
    return network


def _paper() -> nn.Module:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    from paper_network import DenseNetwork

    return DenseNetwork(151)


def _resnet() -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("resnet50")
    return network


# Title, constructor, height and width of the image.
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], tuple[int, int]]] = {
    "unet": ("smp U-Net ResNet-34", _unet, (480, 480)),
    "unet18": ("smp U-Net ResNet-18", lambda: _unet("resnet18"), (352, 480)),
    "deeplab": ("smp DeepLabV3+ MobileNetV2", _deeplab, (480, 480)),
    "paper": ("ConvNeXt-Tiny + UPerNet of the BiDense paper", _paper, (480, 480)),
    "resnet50": ("timm ResNet-50", _resnet, (224, 224)),
}
# All but the small one.
USUAL = [name for name in NETWORKS if name != "unet18"]


class Case:
    """A network in all versions, and the input image."""

    def __init__(self, name: str, folder: Path, policy: str = "bidense") -> None:
        _, make, size = NETWORKS[name]
        torch.manual_seed(0)
        images = [torch.randn(2, 3, *size) for _ in range(2)]
        self.image = images[0][:1].contiguous(memory_format=torch.channels_last)

        def student() -> nn.Module:
            made = binarize.convert(self.subject.network, policy, example_inputs=self.image)
            return binarize.recalibrate(made, images).eval()

        self.subject = Subject(
            lambda: binarize.recalibrate(make().eval(), images),
            student,
            lambda: binarize.pack(self.subject.student, self.image),
        )
        single = [image for pair in images for image in pair.split(1)]
        self.engines = Engines(self.subject.network, single, folder)

    def torch(self, version: str) -> Call:
        """A version that ``binarize bench`` knows."""
        call = VERSIONS[version].make(self.subject)
        return lambda: call(self.image)

    def summed(self) -> Call:
        """The packed network without counts of bits: sums in floating point."""
        with patch.object(folding, "MOST_COUNTS", 0):
            packed = binarize.pack(self.subject.student, self.image)
        return lambda: packed(self.image)

    def autocast(self) -> Call:
        """The float network under bfloat16 autocast."""
        network = self.subject.network

        def call() -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return network(self.image)

        return call


Make = Callable[[Case, int], Call]
COMPETITORS: dict[str, tuple[str, Make]] = {
    "float": ("PyTorch float32, channels_last", lambda case, n: case.torch("float")),
    "compiled": ("torch.compile float32, channels_last", lambda case, n: case.torch("compiled")),
    "autocast": ("PyTorch bf16 autocast, channels_last", lambda case, n: case.autocast()),
    "bf16": ("PyTorch bf16 weights, channels_last", lambda case, n: case.torch("bf16")),
    "ort": (
        "ONNX Runtime float32",
        lambda case, n: case.engines.onnxruntime(case.image, n, False),
    ),
    "ort-int8": (
        "ONNX Runtime int8, static, per channel",
        lambda case, n: case.engines.onnxruntime(case.image, n, True),
    ),
    "ov": ("OpenVINO float32", lambda case, n: case.engines.openvino(case.image, n, "f32")),
    "ov-bf16": ("OpenVINO bf16", lambda case, n: case.engines.openvino(case.image, n, "bf16")),
    "ov-int8": (
        "OpenVINO int8, NNCF",
        lambda case, n: case.engines.openvino(case.image, n, "int8"),
    ),
    "summed": ("binarize.pack, sums in floating point", lambda case, n: case.summed()),
    "packed": ("binarize.pack", lambda case, n: case.torch("packed")),
}
ENGINES = [name for name in COMPETITORS if name != "summed"]
SMALL = ("autocast", "bf16", "ort-int8", "ov-bf16", "ov-int8")


def prepare(
    case: Case, names: Sequence[str], threads: int
) -> tuple[dict[str, Call], dict[str, float], dict[str, str]]:
    """Return calls by version, similarities of their outputs, and why a version does not run."""
    calls: dict[str, Call] = {}
    alike: dict[str, float] = {}
    failures: dict[str, str] = {}
    plain = case.subject.network(case.image)
    for name in names:
        started = time.perf_counter()
        try:
            # Exporters and quantizers print what they do.
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                call = COMPETITORS[name][1](case, threads)
                output = torch.as_tensor(call()).double().flatten()
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            missing = isinstance(error, ModuleNotFoundError)
            failures[name] = f"missing: {text}" if missing else f"{type(error).__name__}: {text}"
            continue
        like = case.subject.student(case.image) if name in ("packed", "summed") else plain
        alike[name] = F.cosine_similarity(output, like.double().flatten(), dim=0).item()
        calls[name] = call
        print(f"  {name} ready, {time.perf_counter() - started:.0f} s", flush=True)
    return calls, alike, failures


def measure(
    calls: dict[str, Call], rounds: int, least: float
) -> dict[str, tuple[list[float], list[float]]]:
    """Wall and processor seconds of a call, one number for each round, by version."""
    spent: dict[str, list[float]] = {name: [] for name in calls}

    def noting(name: str, call: Call) -> Call:
        def run() -> None:
            started = time.process_time()
            call()
            spent[name].append(time.process_time() - started)

        return run

    noted = {name: noting(name, call) for name, call in calls.items()}
    wall = time_interleaved(noted, rounds=rounds, least=least)
    found = {}
    for name, seconds in wall.items():
        turns = spent[name][2:]  # after two warm-up calls
        count = len(turns) // rounds
        cpu = [statistics.mean(turns[i * count : (i + 1) * count]) for i in range(rounds)]
        found[name] = (seconds, cpu)
    return found


def table(
    found: dict[str, tuple[list[float], list[float]]],
    alike: dict[str, float],
    failures: dict[str, str],
) -> list[dict[str, Any]]:
    """Print the versions of one network; return the rows."""
    rows = []
    head = f"{'':10}{'wall ms':>9}{'least':>9}{'cpu ms':>9}{'least':>9}"
    print(f"{head}   packed is, wall  least    cpu  least    like")
    packed = found.get("packed")
    for name, (wall, cpu) in found.items():
        row: dict[str, Any] = {"version": name, "summary": COMPETITORS[name][0]}
        row |= {"wall": wall, "cpu": cpu, "like": alike[name]}
        numbers = [f(x) for x in (wall, cpu) for f in (statistics.median, min)]
        line = f"{name:10}" + "".join(f"{1e3 * x:9.1f}" for x in numbers)
        if packed is not None:
            ratios = [
                relative_speed(wall, packed[0]),
                min(wall) / min(packed[0]),
                relative_speed(cpu, packed[1]),
                min(cpu) / min(packed[1]),
            ]
            row["packed is"] = dict(
                zip(("wall", "least wall", "cpu", "least cpu"), ratios, strict=True)
            )
            line += f"{'':12}" + "".join(f"{x or float('nan'):6.2f}x" for x in ratios)
        print(f"{line}{alike[name]:8.3f}")
        rows.append(row)
    for name, why in failures.items():
        print(f"{name:10}does not run: {why}")
        rows.append({"version": name, "summary": COMPETITORS[name][0], "failure": why})
    if packed is not None:
        for label, names in (("float", ("float",)), ("best of bf16 and int8", SMALL)):
            known = [found[name][1] for name in names if name in found]
            if known:
                best = min(known, key=statistics.median)
                ratio = relative_speed(best, packed[1]) or float("nan")
                print(f"packed against {label}: {ratio:.2f}x by processor time")
    return rows


def show_profile(lines: Sequence[Line], rate: float, count: int = 25) -> dict[str, Any]:
    """Print where the packed network's time goes, and its lower bound."""
    whole = sum(line.median for line in lines)
    bits = [line for line in lines if line.binary]
    rest = whole - sum(line.median for line in bits)
    macs = sum(line.macs for line in bits)
    floor = macs / rate + rest
    print(f"  {'ms':>8} {'share':>6} {'calls':>5} {'GMAC/s':>7}")
    for line in lines[:count]:
        speed = f"{line.macs / line.median / 1e9:7.0f}" if line.binary else " " * 7
        share = line.median / whole
        print(f"  {1e3 * line.median:8.2f} {share:6.1%} {line.calls:5} {speed} {line.what}")
    if len(lines) > count:
        left = sum(line.median for line in lines[count:])
        print(f"  {1e3 * left:8.2f} {left / whole:6.1%} {len(lines) - count} more kinds")
    print(
        f"  {1e3 * whole:.1f} ms in total: 1-bit layers {1e3 * (whole - rest):.1f}, the rest"
        f" {1e3 * rest:.1f}\n  floor {1e3 * floor:.1f} ms: {macs / 1e9:.2f} G 1-bit MACs"
        f" at the measured peak of {rate / 1e9:.0f} G/s ="
        f" {1e3 * macs / rate:.1f} ms, plus the rest"
    )
    rows = [{"what": x.what, "macs": x.macs, "calls": x.calls, "seconds": x.median} for x in lines]
    return {"operations": rows, "macs": macs, "rate": rate, "floor": floor, "seconds": whole}


def versions_of_libraries() -> dict[str, str | None]:
    """Return the versions of the libraries that are compared."""
    names = ["torch", "onnxruntime", "openvino", "nncf", "timm", "segmentation-models-pytorch"]
    found: dict[str, str | None] = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _names(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name}: choose from {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--networks",
        type=lambda text: _names(text, list(NETWORKS)),
        default=USUAL,
        help=f"of {','.join(NETWORKS)}",
    )
    parser.add_argument(
        "--versions",
        type=lambda text: _names(text, list(COMPETITORS)),
        default=ENGINES,
        help=f"of {','.join(COMPETITORS)}",
    )
    parser.add_argument(
        "--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2]
    )
    parser.add_argument("--policy", default="bidense", help="of the packed network")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--least", type=float, default=0.1, help="minimum seconds per turn")
    parser.add_argument("--profile", action="store_true", help="profile the packed network")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    libraries = versions_of_libraries()
    print(", ".join(f"{k} {v}" for k, v in libraries.items()), f"kernels {status().active}")
    results: list[dict[str, Any]] = []
    for name in given.networks:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            case = Case(name, Path(folder), given.policy)
            for threads in given.threads:
                torch.set_num_threads(threads)
                torch.compiler.reset()
                print(f"{NETWORKS[name][0]}, {tuple(case.image.shape)}, threads: {threads}")
                calls, alike, failures = prepare(case, given.versions, threads)
                rows = table(measure(calls, given.rounds, given.least), alike, failures)
                result: dict[str, Any] = {"network": name, "threads": threads, "versions": rows}
                if given.profile:
                    lines = profile(case.subject.packed, case.image, given.rounds)
                    result["profile"] = show_profile(lines, peak_rate(given.rounds))
                results.append(result)
                if given.json:
                    facts = {"libraries": libraries, "kernels": status().active}
                    facts |= {"machine": platform.machine()}
                    text = json.dumps({**facts, "results": results}, indent=1)
                    Path(given.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
