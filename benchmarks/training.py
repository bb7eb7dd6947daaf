"""Cost of a training step of a converted network, relative to the float network.

    python benchmarks/training.py                       # both networks, float32, 1 thread
    python benchmarks/training.py unet --bf16 --threads 2 --compile
    python benchmarks/training.py paper --size 128 --batch 2 --channels-last

Three networks are trained side by side: the float one, the 1-bit one, and the same 1-bit one built
from stock operations only, with a mask where a surrogate gradient needs it ("composed"). With
`--kinds`, also policy `deploy`, and that with its 1-bit layers in 8 bits ("int8"). Steps are
forward, backward and AdamW, interleaved, so that a busy machine slows all of them; ratios are
medians over rounds, of wall time and of processor time. Memory is measured in one process per
network: the peak resident set, and the bytes that autograd saves besides parameters and buffers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.nn import BiConv2d, DistributionAdaptiveBinarizer, ScaledSign, ShiftedPReLU

KINDS = ("float", "binary", "composed", "deploy", "int8")


class ComposedBinarizer(nn.Module):
    """DAB from stock operations; the gradient comes from a polynomial surrogate of the sign."""

    def __init__(self, part: DistributionAdaptiveBinarizer) -> None:
        super().__init__()
        self.k, self.b, self.a = part.k, part.b, part.a

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        mean = x.detach().mean((2, 3), keepdim=True)
        x = x - (self.k.view(shape) * mean + self.b.view(shape)).to(x.dtype)
        size = x.detach().abs().float().mean((1, 2, 3), keepdim=True)
        scale = torch.exp(self.a.view(1, -1, 1, 1) * (size - 1)).to(x.dtype)
        below = (x < 0).to(x.dtype)
        soft = below * (2 * x + x * x) + (1 - below) * (2 * x - x * x)
        soft = torch.where(x.abs() < 1, soft, torch.where(x < 0, -1.0, 1.0).to(x.dtype))
        hard = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        return scale * (hard.detach() - soft.detach() + soft)


class ComposedWeight(nn.Module):
    """Scaled signs from stock operations, with a straight-through gradient."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().mean((1, 2, 3), keepdim=True)
        clipped = weight.clamp(-1, 1)
        hard = scale * torch.where(weight >= 0, 1.0, -1.0)
        return hard.detach() - clipped.detach() + clipped


class ComposedActivation(nn.Module):
    """Shifted PReLU from stock operations."""

    def __init__(self, part: ShiftedPReLU) -> None:
        super().__init__()
        self.shift, self.slope, self.out_shift = part.shift, part.slope, part.out_shift

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        x = F.prelu(x + self.shift.view(shape).to(x.dtype), self.slope.to(x.dtype))
        return x if self.out_shift is None else x + self.out_shift.view(shape).to(x.dtype)


def compose(network: nn.Module) -> nn.Module:
    """Replace the parts of all units by compositions of stock operations."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DistributionAdaptiveBinarizer):
                setattr(module, name, ComposedBinarizer(child))
            elif isinstance(child, ScaledSign) and isinstance(module, BiConv2d):
                setattr(module, name, ComposedWeight())
            elif isinstance(child, ShiftedPReLU):
                setattr(module, name, ComposedActivation(child))
    return network


def build(network: str, kind: str) -> nn.Module:
    """Build a network by name: float, converted, or converted and composed of stock operations."""
    torch.manual_seed(0)
    if network == "unet":
        import segmentation_models_pytorch as smp

        model: nn.Module = smp.Unet("resnet34", encoder_weights=None, classes=11)
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
        from paper_network import DenseNetwork

        model = DenseNetwork(151)
    if kind == "float":
        return model
    policy = "deploy" if kind in ("deploy", "int8") else "bidense"
    example = torch.zeros(1, 3, 64, 64)
    if kind == "int8":
        layers = binarize.plan(model, policy, example_inputs=example).layers
        overrides = {d.site: "int8" for d in layers if d.action == "binarize"}
        return binarize.convert(model, policy, example_inputs=example, overrides=overrides)
    model = binarize.convert(model, policy, example_inputs=example)
    return compose(model) if kind == "composed" else model


def stepper(kind: str, given: argparse.Namespace) -> Callable[[], None]:
    """Return a function that runs one training step."""
    model = build(given.network, kind).train()
    image = torch.randn(given.batch, 3, given.size, given.size)
    label = torch.randint(0, 11, (given.batch, given.size, given.size))
    if given.channels_last:
        model = model.to(memory_format=torch.channels_last)
        image = image.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    call = torch.compile(model) if given.compile else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.bf16):
            loss = F.cross_entropy(call(image).float(), label)
        loss.backward()
        optimizer.step()

    def kept() -> int:
        sizes: dict[int, int] = {}
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

        def pack(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return t

        context = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        with context, torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.bf16):
            model(image)
        return sum(sizes.values())

    step.kept = kept  # type: ignore[attr-defined]
    return step


def peak(kind: str, given: argparse.Namespace) -> None:
    """Print this process's peak memory after three steps, and what autograd saves, in bytes."""
    step = stepper(kind, given)
    for _ in range(3):
        step()
    # Not getrusage: its maximum is inherited from the parent process.
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"resident": resident, "kept": step.kept()}))  # type: ignore[attr-defined]


def times(given: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of interleaved steps."""
    steps = {kind: stepper(kind, given) for kind in given.kinds}
    for step in steps.values():
        step()
        step()
    seconds: dict[str, dict[str, list[float]]] = {k: {"wall": [], "cpu": []} for k in steps}
    for _ in range(given.rounds):
        for kind, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            seconds[kind]["wall"].append(time.perf_counter() - wall)
            seconds[kind]["cpu"].append(time.process_time() - cpu)
    return seconds


def report(given: argparse.Namespace) -> None:
    """Measure one network and print a line per kind."""
    how = [f"{given.batch}x3x{given.size}x{given.size}", "bf16" if given.bf16 else "float32"]
    how += ["channels last"] * given.channels_last + ["compiled"] * given.compile
    print(
        f"{given.network}, {', '.join(how)}, {given.threads} thread(s), torch {torch.__version__}"
    )
    seconds = times(given)
    base: dict[str, int] = {}
    for kind in given.kinds:
        line = f"  {kind:9s}"
        for clock in ("wall", "cpu"):
            mine, floats = seconds[kind][clock], seconds["float"][clock]
            ratio = statistics.median(m / f for m, f in zip(mine, floats, strict=True))
            line += f"  {clock} {min(mine):7.3f} s ×{ratio:4.2f}"
        if not given.no_memory:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
            command += ["--network", given.network]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            bytes_ = json.loads(run.stdout.splitlines()[-1])
            base = base or bytes_
            for name, value in bytes_.items():
                line += f"  {name} {value / 2**20:5.0f} MiB ×{value / base[name]:4.2f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", choices=[[], "unet", "paper"], default=[])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS[:3]))
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.only:
        peak(given.only, given)
        return
    for network in given.networks or ["unet", "paper"]:
        given.network = network
        report(given)


if __name__ == "__main__":
    main()
