"""Loading straight to a packed network gives what loading and packing gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import FileError, ModelError
from binarize.file.packed import fill_packed, network_without_values
from binarize.file.slots import find_slots
from binarize.file.stored import read_stored
from binarize.nn import BinaryLayer, ShiftedPReLU
from binarize.nn.packed import PackedUnit, StoredWeight


class Small(nn.Module):
    """With a layer at two names, a frozen norm's buffers, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.alias = self.body
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.head = nn.Conv2d(8, 2, 1)
        self.register_buffer("factor", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.alias(self.body(self.norm(self.stem(x)).relu()).relu())
        return self.head(self.up(y) * self.factor)


def trained(network: nn.Module, policy: str = "bidense") -> nn.Module:
    student = binarize.convert(network, policy, example_inputs=torch.zeros(1, 3, 64, 64))
    with torch.no_grad():
        for module in student.modules():
            part: Any = module
            if isinstance(module, BinaryLayer):
                part.binarizer.b.normal_(std=0.2)
                part.binarizer.a.uniform_(-0.3, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                part.running_mean.normal_(std=0.3)
                part.running_var.uniform_(0.5, 2)
            if isinstance(module, ShiftedPReLU):
                part.shift.normal_(std=0.2)
    return student.eval()


@pytest.mark.parametrize("policy", ["bidense", "bidense-released"])
def test_own_network(tmp_path: Path, policy: str) -> None:
    network = Small()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    student = trained(network, policy)
    path = tmp_path / "small.safetensors"
    binarize.save(student, path)
    packed = binarize.load(path, network, packed=True)
    assert isinstance(packed, binarize.PackedNetwork)
    x = torch.randn(2, 3, 12, 9)
    with torch.no_grad():
        loaded = binarize.load(path, network)
        torch.testing.assert_close(packed(x), binarize.pack(loaded)(x), atol=0, rtol=0)
        torch.testing.assert_close(packed(x), student(x), atol=1e-4, rtol=1e-4)
    kinds = (PackedUnit, StoredWeight)
    assert sum(isinstance(module, kinds) for module in packed.modules()) == 2
    assert packed.network.alias is packed.network.body
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(p.requires_grad for p in packed.parameters())


@pytest.mark.parametrize("name", ["resnetblur18", "convnext_atto"])
def test_network_with_a_name(tmp_path: Path, name: str) -> None:
    student = trained(timm.create_model(name, num_classes=5))
    path = tmp_path / "net.safetensors"
    binarize.save(student, path)
    packed = binarize.load(path, packed=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), binarize.pack(student)(x), atol=1e-4, rtol=1e-4)


def test_no_float_copy_of_a_binary_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.safetensors"
    binarize.save(trained(timm.create_model("resnet18", num_classes=5)), path)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            values = result if isinstance(result, tuple | list) else [result]
            for value in (value for value in values if isinstance(value, Tensor)):
                if value.device.type == "cpu" and value.is_floating_point():
                    largest = max(largest, value.untyped_storage().nbytes())
            return result

    with Watch():
        binarize.load(path, packed=True)
    # The stem (64 x 3 x 7 x 7) is the largest float layer; the largest binary one has 2.4 million.
    assert largest < 4 * 20_000


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    binarize.save(trained(Small()), path)
    with pytest.raises(FileError, match="the file does not say how to build its network"):
        binarize.load(path, packed=True)
    other = Small()
    other.head = nn.Conv2d(8, 3, 1)
    with pytest.raises(ModelError, match="it is not the network that was saved"):
        binarize.load(path, other, packed=True)


def test_a_tensor_without_values_is_named(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    binarize.save(trained(Small()), path)
    empty = network_without_values(Small(), {})
    student = binarize.convert(empty, example_inputs=torch.zeros(1, 3, 16, 16, device="meta"))
    slots = [slot for slot in find_slots(student) if slot.keys != ("head.bias",)]
    with pytest.raises(ModelError) as caught:
        fill_packed(student, slots, read_stored(path), torch.device("cpu"))
    assert str(caught.value) == (
        "model='head.bias': the file has no values for it; give the network: model=..."
    )


def test_whole_numbers_as_parameters(tmp_path: Path) -> None:
    network = Small()
    network.levels = nn.Parameter(torch.tensor([3, 5]), requires_grad=False)
    path = tmp_path / "small.safetensors"
    binarize.save(trained(network), path)
    packed = binarize.load(path, network, packed=True)
    assert packed.network.levels.tolist() == [3, 5]


def test_a_network_without_values_takes_no_memory() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network.register_buffer("unsaved", torch.arange(3), persistent=False)
    empty = network_without_values(network, {})
    assert {value.device.type for value in empty.state_dict().values()} == {"meta"}
    assert torch.equal(empty.unsaved, network.unsaved)  # no file has it
    assert {value.device.type for value in network.state_dict().values()} == {"cpu"}
