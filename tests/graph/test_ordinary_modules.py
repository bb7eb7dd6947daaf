"""A converted network is an ordinary module: what users do with modules works with it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import binarize
from binarize.nn import BinaryLayer

X = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(5))


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.skip = nn.Conv2d(channels_in, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class Network(nn.Module):
    """Rewritten blocks, a transposed layer, a gate and a channels-last one."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stages = nn.Sequential(Block(8, 8), Block(8, 12, 2), Block(12, 12))
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.mix = nn.Linear(8, 8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for stage in self.stages:
            h = checkpoint(stage, h, use_reentrant=False) if self.recompute else stage(h)
        h = self.up(h)
        h = h * self.gate(h.mean((2, 3), keepdim=True)).sigmoid()
        h = self.mix(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(h)


def converted(**how: bool) -> nn.Module:
    torch.manual_seed(0)
    return binarize.convert(Network(**how), example_inputs=X)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inference_in_half_precision(dtype: torch.dtype, layout: torch.memory_format) -> None:
    student = converted().eval()
    half = copy.deepcopy(student).to(dtype).to(memory_format=layout)
    with torch.no_grad():
        y = half(X.to(dtype).to(memory_format=layout))
        expected = student(X)
    assert y.dtype == dtype
    # Signs turn over where values lie near a threshold, the more the coarser the type.
    both = torch.stack([y.float().flatten(), expected.flatten()])
    assert torch.corrcoef(both)[0, 1] > (0.9 if dtype == torch.float16 else 0.6)


def test_names_and_hooks_that_users_know() -> None:
    teacher, student = Network(), converted()
    names = dict(teacher.named_modules())
    for name in ("stages.0", "stages.1.conv1", "stages.2.conv2", "up", "mix"):
        assert type(teacher.get_submodule(name)) is type(names[name])
        ours = student.get_submodule(name)
        assert isinstance(ours, type(names[name]))
        seen: list[torch.Size] = []
        before = ours.register_forward_pre_hook(lambda _m, args, s=seen: s.append(args[0].shape))
        after = ours.register_forward_hook(lambda _m, _a, out, s=seen: s.append(out.shape))
        back = ours.register_full_backward_hook(lambda _m, _i, out, s=seen: s.append(out[0].shape))
        student(X).sum().backward()
        assert len(seen) == 3
        assert seen[1] == seen[2]
        for handle in (before, after, back):
            handle.remove()
    weights = {name for name, _ in teacher.named_parameters() if name.endswith("weight")}
    kept = {name for name, _ in student.named_parameters()} & weights
    assert {f"stages.{i}.conv{j}.weight" for i in range(3) for j in (1, 2)} <= kept


def test_hooks_of_the_original_go_on_working() -> None:
    seen: list[str] = []
    teacher = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)), nn.ReLU()),
        nn.Conv2d(8, 2, 1),
    )
    for name in ("1.0", "1.1", "1.2", "2.0", "2.1"):
        module = teacher.get_submodule(name)
        module.register_forward_hook(lambda _m, _a, _out, n=name: seen.append(n))
        module.register_forward_pre_hook(lambda _m, _a, n=name: seen.append(f"before {n}"))
    x = torch.randn(2, 3, 12, 12)
    teacher(x)
    expected, seen[:] = sorted(seen), []
    student = binarize.convert(teacher, example_inputs=x)
    seen.clear()
    student(x)
    assert sorted(seen) == expected


class Handles(nn.Module):
    """Holds the handles of hooks on its layers, as the feature encoders of timm do."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.last = nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))
        layers = {"conv": self.conv, "norm": self.norm, "act": self.act, "last": self.last}
        self.handles = [
            layer.register_forward_hook(
                lambda _m, _a, _k, _o, n=n: seen.append(n), with_kwargs=True
            )
            for n, layer in layers.items()
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(self.stem(x))))
        return self.head(self.last(x))


def test_a_network_that_holds_handles_of_hooks() -> None:
    seen: list[str] = []
    student = binarize.convert(Handles(seen), example_inputs=X)
    twin = copy.deepcopy(student)
    binarize.report(student, X)
    for network in (student, twin):
        seen.clear()
        network(X)
        assert sorted(seen) == ["act", "conv", "last", "norm"]
    for handle in twin.handles:
        handle.remove()
    seen.clear()
    twin(X)
    assert not seen
    student(X)
    assert sorted(seen) == ["act", "conv", "last", "norm"]


def test_an_average_of_weights() -> None:
    student = converted()
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        gradients(student, X)
        optimizer.step()
        average.update_parameters(student)
    assert type(average.module.stages[0]).__name__ == type(student.stages[0]).__name__
    assert average.module(X).shape == student(X).shape
    theirs = dict(average.module.named_parameters())
    for name, parameter in student.named_parameters():
        assert theirs[name] is not parameter
    # A value moved by the second step lies half-way between both.
    assert not torch.equal(theirs["stem.weight"], student.stem.weight)
    average.module.load_state_dict(student.state_dict())
    assert torch.equal(average.module.eval()(X), student.eval()(X))


def test_gradient_checkpoints() -> None:
    plain, spared = converted(), converted(recompute=True)
    assert sum(isinstance(m, BinaryLayer) for m in spared.modules()) == sum(
        isinstance(m, BinaryLayer) for m in plain.modules()
    )
    # The outer forward cannot be rewritten here, and need not be.
    spared.load_state_dict(plain.state_dict())
    ours, theirs = gradients(spared, X), gradients(plain, X)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, msg=name)


@pytest.mark.usefixtures("pooling_exports")
def test_exports_with_dynamic_sizes_where_padding_depends_on_the_size() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        Conv2dSame(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    ).eval()
    sides = {2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    torch.export.export(model, (X,), dynamic_shapes=(sides,))
    student = binarize.convert(model, example_inputs=X).eval()
    program = torch.export.export(student, (X,), dynamic_shapes=(sides,)).module()
    for size in ((16, 20), (17, 33), (30, 9)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(program(x), student(x))
        assert student(x).shape == model(x).shape


WORKER = """
    import os, sys, torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    rank, folder = int(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, folder)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    student = torch.load(f"{folder}/student.pt", weights_only=False)
    x = torch.load(f"{folder}/images.pt")[rank]
    wrapped = DistributedDataParallel(student)
    wrapped(x).square().mean().backward()
    found = {name: p.grad for name, p in student.named_parameters()}
    torch.save(found, f"{folder}/gradients{rank}.pt")
    distributed.barrier()
    # Gloo's threads sometimes abort a process that ends in the usual way.
    os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    student = binarize.convert(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 2, 2),
            nn.Conv2d(8, 2, 1),
        ),
        example_inputs=X,
    )
    images = torch.randn(2, 2, 3, 12, 12)
    torch.save(student, tmp_path / "student.pt")
    torch.save(images, tmp_path / "images.pt")
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER), encoding="utf-8")
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    # All of them first: a leftover one would be blamed on another test.
    told = [worker.communicate(timeout=150)[1] for worker in workers]
    for worker, errors in zip(workers, told, strict=True):
        assert worker.returncode == 0, errors[-3000:]
    alone = [gradients(copy.deepcopy(student), x) for x in images]
    for rank in range(2):
        together = torch.load(tmp_path / f"gradients{rank}.pt")
        for name, gradient in together.items():
            torch.testing.assert_close(gradient, (alone[0][name] + alone[1][name]) / 2, msg=name)
