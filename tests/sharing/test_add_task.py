"""Tasks that share a base's bits: networks, files, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes
from binarize.errors import BinarizeError, FileError, ModelError
from binarize.nn import BinaryLayer
from binarize.nn.weight_binarizers import FlippedSign

SIZE = (1, 3, 16, 24)


class Net(nn.Module):
    """A small encoder-decoder with a shared layer, a grouped one and a transposed one."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        x = torch.relu(self.up(torch.relu(self.grouped(x))))
        out: Tensor = self.head(x)
        return out


def base_of(network: nn.Module, policy: str = "bidense", **options: Any) -> Any:
    torch.manual_seed(0)
    student = binarize.convert(network, policy, example_inputs=torch.randn(SIZE), **options)
    student.train()
    with torch.no_grad():
        for _ in range(2):
            student(torch.randn(4, *SIZE[1:]))
    return student.eval()


def learn(task: nn.Module, steps: int = 12) -> Any:
    """Some steps with random targets, after which the flips are fixed."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=0.02)
    task.train()
    for step in range(steps):
        for module in task.modules():
            if isinstance(module, FlippedSign):
                module.set_progress(step / steps)
        optimizer.zero_grad()
        y = task(torch.randn(4, *SIZE[1:]))
        (y - torch.randn_like(y)).square().mean().backward()
        optimizer.step()
    return task.eval()


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return base_of(Net())


@pytest.fixture(scope="module")
def task(base: Any) -> Any:
    return learn(binarize.add_task(base, 7, flips=0.05))


X = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(5))


def test_starts_as_the_base(base: Any) -> None:
    before = copy.deepcopy(base.state_dict())
    twin = binarize.add_task(base)
    assert twin.training
    assert torch.equal(twin.eval()(X), base(X))
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_own_head_and_numbers_shared_float_weights(base: Any) -> None:
    twin: Any = binarize.add_task(base, 7, flips=0.05)
    assert twin(X).shape == (2, 7, 16, 24)
    trained = {name for name, p in twin.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias", "stem.bias", "norm.weight"} <= trained
    assert "stem.weight" not in trained
    layers = [name for name, m in twin.named_modules() if isinstance(m, BinaryLayer)]
    assert layers
    assert {f"{name}.weight" for name in layers} <= trained
    assert twin.twice.weight is not base.twice.weight


def test_no_flips_freeze_the_bits(base: Any) -> None:
    twin: Any = learn(binarize.add_task(base, flips=0), 3)
    for module, other in zip(twin.modules(), base.modules(), strict=True):
        if isinstance(module, BinaryLayer):
            assert torch.equal(module.packed_weight()[0], other.packed_weight()[0])


def test_flips_stay_within_the_budget(base: Any, task: Any) -> None:
    count = 0
    for module, other in zip(task.modules(), base.modules(), strict=True):
        if isinstance(module, BinaryLayer):
            flips = int((module.binary_weight()[0] != other.binary_weight()[0]).sum())
            assert flips <= 0.05 * module.weight.numel()
            count += flips
    assert count > 0


def test_file_holds_base_and_tasks(base: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    alone = path.read_bytes()
    binarize.save(task, path, task="edges")
    second: Any = learn(binarize.add_task(base, flips=0.2))
    binarize.save(second, path, task="depth")
    again = {name: binarize.load(path, Net(), task=name) for name in ("edges", "depth")}
    assert torch.equal(again["edges"](X), task(X))
    assert torch.equal(again["depth"](X), second(X))
    assert torch.equal(binarize.load(path, Net())(X), base(X))
    packed = binarize.load(path, Net(), packed=True, task="edges")
    assert torch.equal(packed(X), binarize.pack(task)(X))
    assert torch.allclose(packed(X), task(X), atol=1e-4)
    found = {entry.name: entry for entry in binarize.tasks(path)}
    assert list(found) == ["depth", "edges"]
    whole = path.stat().st_size
    binarize.remove_task(path, "depth")
    assert whole - path.stat().st_size == found["depth"].bytes
    assert torch.equal(binarize.load(path, Net(), task="edges")(X), task(X))
    binarize.remove_task(path, "edges")
    assert path.read_bytes() == alone


def test_a_task_is_replaced(base: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    binarize.save(task, path, task="edges")
    size = path.stat().st_size
    binarize.save(learn(binarize.add_task(base, flips=0)), path, task="edges")
    assert [entry.name for entry in binarize.tasks(path)] == ["edges"]
    assert binarize.tasks(path)[0].flips == 0
    assert path.stat().st_size < size


def test_counts_are_right(base: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    binarize.save(task, path, task="edges")
    (entry,) = binarize.tasks(path)
    pairs = list(zip(task.modules(), base.modules(), strict=True))
    layers = {id(m.weight): (m, o) for m, o in pairs if isinstance(m, BinaryLayer)}.values()
    flips = sum(int((m.binary_weight()[0] != o.binary_weight()[0]).sum()) for m, o in layers)
    assert entry.flips == flips
    assert entry.weights == sum(m.weights for m, _ in layers)
    assert entry.heads == {"head": 7}
    each = {m.site: (int((m.binary_weight()[0] != o.binary_weight()[0]).sum()), m.weights)
            for m, o in layers}  # fmt: skip
    assert entry.layers == each
    alone = tmp_path / "alone.safetensors"
    binarize.save(task, alone)
    tensors = sum(value.nbytes for value in load_file(alone).values())
    assert entry.alone_bytes == tensors
    assert entry.flip_bytes + entry.own_bytes <= entry.bytes


def test_a_loaded_base_and_task_go_on(base: Any, task: Any, tmp_path: Path) -> None:
    """From a file of the base, as its user has it, and once more from a task saved alone."""
    path, alone = tmp_path / "net.safetensors", tmp_path / "task.safetensors"
    binarize.save(base, path)
    twin = learn(binarize.add_task(binarize.load(path, Net()), 2, flips=0.1))
    binarize.save(twin, path, task="two")
    assert torch.equal(binarize.load(path, Net(), task="two")(X), twin(X))
    binarize.save(task, alone)
    assert torch.equal(binarize.load(alone, Net())(X), task(X))
    assert binarize.report(binarize.load(path, Net(), task="two"), X).ops > 0


@pytest.mark.parametrize("policy", ["deploy", "reactnet", "lqnet", "adabin", "xnor"])
def test_other_policies(policy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = base_of(Net(), policy)
    twin = learn(binarize.add_task(base, 5, flips=0.1), 4)
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    binarize.save(twin, path, task="five")
    again = binarize.load(path, Net(), task="five")
    assert torch.equal(again(X), twin(X))
    assert torch.equal(binarize.load(path, Net())(X), base(X))


def test_half_precision(tmp_path: Path) -> None:
    base = base_of(Net()).bfloat16()
    twin = binarize.add_task(base, 3).eval()
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    binarize.save(twin, path, task="three")
    x = X.bfloat16()
    assert torch.equal(binarize.load(path, Net(), task="three")(x), twin(x))


def test_network_of_a_library(tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = smp.Unet("resnet18", encoder_weights=None, classes=1)
    x = torch.randn(1, 3, 32, 32)
    base = binarize.convert(net, example_inputs=x).eval()
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    twin = binarize.add_task(base, 13).eval()
    binarize.save(twin, path, task="parts")
    again = binarize.load(path, task="parts")
    assert torch.equal(again(x), twin(x))
    assert again(x).shape[1] == 13


def test_trainer_trains_a_task_and_resumes(tmp_path: Path) -> None:
    net = base_of(Net(6))
    loader = DataLoader(Scenes(4, size=(16, 16), task="depth", seed=0), batch_size=2)

    def trained(folder: Path, epochs: int, stop: int | None = None) -> Any:
        torch.manual_seed(3)
        task = binarize.add_task(net, 1, flips=0.05)
        options: dict[str, Any] = {"output_dir": folder, "resume": "auto", "progress": False}
        if stop is not None:
            options["callbacks"] = [lambda trainer, record: record["epoch"] == stop]
        trainer = binarize.Trainer(task, task="depth", epochs=epochs, **options)
        history = trainer.fit(loader, loader)
        return task.eval(), history

    whole, history = trained(tmp_path / "whole", 3)
    assert {"δ1", "loss"} <= set(history[-1])
    trained(tmp_path / "parts", 3, stop=1)
    parts, _ = trained(tmp_path / "parts", 3)
    assert torch.equal(whole(X), parts(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flips": -0.1}, "flips=-0.1: must be from 0 to 0.5; write 0.01 for 1 %"),
        ({"flips": 0.51}, "flips=0.51: must be from 0 to 0.5"),
        ({"flips": float("nan")}, "flips=nan: must be from 0 to 0.5"),
        ({"flips": True}, "flips=True: must be from 0 to 0.5"),
        ({"head": 0}, "head=0: must be a positive number of channels; write head=13"),
        ({"head": {"tail": 3}}, "head='tail': the base has no such layer; use one of head"),
        ({"head": {"twice": 3}}, "head='twice': a BiConv2d cannot get another number of channels"),
        ({"head": {"stem": 8}}, "the network does not run with them"),
    ],
)
def test_wrong_arguments(base: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BinarizeError) as caught:
        binarize.add_task(base, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_converted_networks_have_tasks(base: Any) -> None:
    with pytest.raises(ModelError, match="binarize.convert did not make it"):
        binarize.add_task(Net())
    with pytest.raises(ModelError, match="binarize.convert did not make it"):
        binarize.add_task(nn.Sequential(base))


def test_a_task_is_no_base_while_it_learns(base: Any, task: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it is a task itself, whose flips are still learned"):
        binarize.add_task(task)
    path = tmp_path / "task.safetensors"
    binarize.save(task, path)
    again = binarize.load(path, Net())
    assert torch.equal(binarize.add_task(again).eval()(X), again(X))


@pytest.mark.parametrize("name", ["", " ", "a/b", "base", 3])
def test_names(base: Any, task: Any, name: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    with pytest.raises(BinarizeError, match="must be a word without '/', other than 'base'"):
        binarize.save(task, path, task=name)


def test_another_base_is_refused(base: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileError, match="there is no such file"):
        binarize.save(task, path, task="edges")
    assert not path.exists()
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.head.bias[0] += 1
    binarize.save(other, path)
    before = path.read_bytes()
    with pytest.raises(FileError, match="does not hold the base that this task was made for"):
        binarize.save(task, path, task="edges")
    with pytest.raises(ModelError, match="it does not share the bits of a base"):
        binarize.save(base, path, task="edges")
    assert path.read_bytes() == before


def test_unknown_tasks(base: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    with pytest.raises(FileError, match="it has no task 'edges'; it holds one network"):
        binarize.load(path, Net(), task="edges")
    with pytest.raises(FileError, match="it has no task 'edges'"):
        binarize.remove_task(path, "edges")
    assert binarize.tasks(path) == []
    binarize.save(task, path, task="edges")
    with pytest.raises(FileError, match="it has no task 'depth'; use one of edges"):
        binarize.load(path, Net(), task="depth")
    programs = tmp_path / "packed.safetensors"
    binarize.save(binarize.pack(task, X), programs)
    with pytest.raises(FileError, match="packed network, which has no task 'edges'"):
        binarize.load(programs, task="edges")
    with pytest.raises(FileError, match="packed network, which has no task"):
        binarize.load(programs, task=["base"], packed=True)
    with pytest.raises(FileError, match="binarize.save did not write this file"):
        binarize.tasks(programs)


def test_damaged_files_are_refused(base: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    binarize.save(task, path, task="edges")
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(FileError, match="checksum"):
        binarize.load(path, Net(), task="edges")
    with pytest.raises(FileError, match="checksum"):
        binarize.save(task, path, task="more")
    # Writing it anew would give the damage a right checksum.
    with pytest.raises(FileError, match="checksum"):
        binarize.remove_task(path, "edges")
    with pytest.raises(FileError, match="checksum"):
        binarize.tasks(path)
    assert path.read_bytes() == data


def test_flips_of_the_same_seed_are_the_same(base: Any) -> None:
    first, second = (learn(binarize.add_task(base, flips=0.05)) for _ in range(2))
    assert torch.equal(first(X), second(X))


# Several tasks in one pass


# Activations of the network's own forward became modules beside the layers.
FIRST = ["stem", "norm", "twice", "prelu_1", "prelu_2"]


@pytest.fixture(scope="module")
def three(base: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file with two tasks that share the first half of the network, and the networks."""
    path = tmp_path_factory.mktemp("three") / "net.safetensors"
    binarize.save(base, path)
    networks = {"base": base}
    for name, head in (("edges", 2), ("depth.map", 1)):
        task: Any = binarize.add_task(base, head, flips=0.1, shared=FIRST)
        torch.manual_seed(head)
        optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=0.02)
        for module in FIRST:  # the Trainer does it by itself
            task.get_submodule(module).eval()
        for _ in range(5):
            optimizer.zero_grad()
            task(torch.randn(4, *SIZE[1:])).square().mean().backward()
            optimizer.step()
        binarize.save(task.eval(), path, task=name)
        networks[name] = task
    return path, networks


def calls(packed: Any) -> int:
    """Binary layers that a packed network runs."""
    from binarize.kernels.ops import run_unit

    (program,) = packed.programs.values()
    return sum(node.target is run_unit for node in program.module.graph.nodes)


@pytest.mark.parametrize("packed", [False, True])
def test_one_pass_computes_what_each_network_does(
    three: tuple[Path, dict[str, Any]], packed: bool
) -> None:
    path, networks = three
    names = list(networks)
    together = binarize.load(path, Net(), task=names, packed=packed)
    alone = {name: binarize.load(path, Net(), task=name, packed=packed) for name in names}
    for size in (SIZE, (3, 3, 17, 9), (1, 3, 8, 8)):
        x = torch.randn(size)
        found = together(x)
        assert list(found) == names
        for name in names:
            assert torch.equal(found[name], alone[name](x))


def test_what_tasks_share_runs_once(three: tuple[Path, dict[str, Any]]) -> None:
    path, networks = three
    together = binarize.load(path, Net(), task=list(networks), packed=True)
    alone = binarize.load(path, Net(), packed=True)
    together(X)
    alone(X)
    # Of four binary calls, the two of the shared layer run once for all three tasks.
    assert calls(alone) == 4
    assert calls(together) == 2 + 3 * 2


def test_general_programs_and_files_of_several(
    three: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, networks = three
    together = binarize.load(path, Net(), task=list(networks), packed=True)
    for side in (8, 12, 16, 20, 24):
        x = torch.randn(1, 3, side, side)
        together(x)
    binarize.save(together, tmp_path / "programs.safetensors")
    again = binarize.load(tmp_path / "programs.safetensors")
    x = torch.randn(1, 3, 28, 12)
    for name, value in together(x).items():
        assert torch.equal(again(x)[name], value)


@pytest.mark.parametrize("names", [[], ["base", "base"]])
def test_names_of_several(three: tuple[Path, dict[str, Any]], names: list[str]) -> None:
    with pytest.raises(BinarizeError, match="must be different names"):
        binarize.load(three[0], Net(), task=names)


def test_shared_modules_are_checked(base: Any) -> None:
    with pytest.raises(ModelError, match="shared='middle': the base has no such module"):
        binarize.add_task(base, shared=["middle"])
    with pytest.raises(BinarizeError, match="must be a list of names; write"):
        binarize.add_task(base, shared="stem")


def test_everything_shared_but_the_head(base: Any, tmp_path: Path) -> None:
    names = [name for name, _ in base.named_children()]
    task: Any = binarize.add_task(base, 9, shared=names)
    trained = [name for name, p in task.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    path = tmp_path / "net.safetensors"
    binarize.save(base, path)
    binarize.save(task.eval(), path, task="nine")
    (entry,) = binarize.tasks(path)
    assert entry.own_bytes == 9 * 16 * 4 + 9 * 4
    assert entry.flips == entry.flip_bytes == 0


def test_a_frozen_base_gives_a_task_that_learns(base: Any) -> None:
    frozen = copy.deepcopy(base).requires_grad_(False)
    task = binarize.add_task(frozen, 2)
    assert {n for n, p in task.named_parameters() if p.requires_grad} == {
        n for n, p in binarize.add_task(base, 2).named_parameters() if p.requires_grad
    }
