"""The results of packed networks, and the feature maps that their programs still write."""

from __future__ import annotations

import inspect
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.errors import SlowWarning
from binarize.kernels import native
from binarize.nn import BiConv2d, ShiftedPReLU


def assert_alike(packed: Any, network: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Both the modules one by one and the program give the network's result."""
    with torch.no_grad():
        wanted = network(*args, **kwargs)
        for result in (packed.network(*args, **kwargs), packed(*args, **kwargs)):
            torch.testing.assert_close(result, wanted, atol=1e-4, rtol=1e-4)
        again = packed(*args, **kwargs)  # now from the program
    torch.testing.assert_close(again, wanted, atol=1e-4, rtol=1e-4)


def test_unet_is_one_chain_of_units(shop: SimpleNamespace) -> None:
    network = shop.student(shop.UNet())
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(2, 3, 12, 16))
    assert packed.unfused is None
    operators = shop.operators(packed)
    packed.float()  # forgets its programs
    with torch.inference_mode():
        assert_alike(packed, network, torch.randn(2, 3, 12, 16))
        made_there = binarize.pack(shop.student(shop.UNet()))
        made_there(torch.randn(2, 3, 12, 16))
    assert shop.operators(packed) == shop.operators(made_there) == operators
    # Stem and head, the stem's norm and activation.
    found = "convolution addcmul relu_ conv1x1".split()
    assert shop.operators(packed) == found
    down, conv1, conv2, up = shop.calls(packed)
    assert [len(call["sources"]) for call in (down, conv1, conv2, up)] == [1, 1, 1, 2]
    assert up["upsample"] == [2, 1]
    assert all(call["act_slope"] is not None for call in (down, conv1, conv2, up))
    assert [call["want_means"] for call in (down, conv1, conv2, up)] == [True, True, True, False]
    assert [len(call["means"]) for call in (down, conv1, conv2, up)] == [0, 1, 1, 2]
    # Those of the stem's feature map are computed by its readers.
    (program,) = packed.programs.values()
    left = up["means"][1]
    assert getattr(program.module, left.target).numel() == 0


def test_addition_behind_a_unit(shop: SimpleNamespace) -> None:
    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = BiConv2d(4, 6, 3, padding=1)
            self.two = BiConv2d(4, 6, 1)
            self.act = nn.LeakyReLU(0.3, inplace=True)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.act(self.one(x) + self.two(y))

    network = shop.train_like(Merge())
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5))
    assert shop.operators(packed) == []
    assert sorted(len(call["residuals"]) for call in shop.calls(packed)) == [0, 1]
    assert sum(call["act_slope"] is not None for call in shop.calls(packed)) == 1


class Tail(nn.Module):
    """A binary layer followed by an operation that must not be fused into it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.unit = BiConv2d(4, 4, 3, padding=1)
        self.act = ShiftedPReLU(4, channel_dim=-1)
        self.what = what

    def forward(self, x: Tensor) -> Any:
        y = self.unit(x)
        if self.what == "broadcast":
            return y + x.mean((2, 3), keepdim=True)
        if self.what == "scaled":
            return torch.add(y, x, alpha=0.5)
        if self.what == "twice":
            return F.relu(y), y
        if self.what == "itself":
            return y + y
        if self.what == "number":
            return y + 1
        if self.what == "other type":
            return y + x.double()
        if self.what == "after":
            return F.relu(y) + x
        if self.what == "view":
            return F.relu(y.flatten(2)).sum(2)
        if self.what == "other dimension":
            return self.act(y)
        return F.gelu(y)


@pytest.mark.parametrize(
    "what",
    [
        *"broadcast scaled twice itself number after view gelu".split(),
        *("other type", "other dimension"),
    ],
)
def test_tail_that_stays(shop: SimpleNamespace, what: str) -> None:
    network = shop.train_like(Tail(what))
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(2, 4, 6, 4))
    assert packed.unfused is None
    (call,) = shop.calls(packed)
    assert call["residuals"] == []
    assert (call["act_slope"] is not None) == (what == "after")


class Head(nn.Module):
    """A unit that reads what an operation made."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.unit = BiConv2d(6, 4, 3, padding=1)
        self.what = what

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.what == "nested":
            z = torch.cat(
                [F.interpolate(torch.cat([x, y], 1), scale_factor=2), y.repeat(1, 1, 2, 2)], 1
            )
        elif self.what == "rows":
            z = torch.cat([x, x, y], 2).repeat(1, 3, 1, 1)
        elif self.what == "odd":
            z = F.interpolate(torch.cat([x, y, x], 1), size=(7, 5))
        elif self.what == "one side":
            z = F.interpolate(torch.cat([x, y, x], 1), size=(8, 3))
        elif self.what == "smooth":
            z = F.interpolate(torch.cat([x, y, x], 1), scale_factor=2, mode="bilinear")
        elif self.what == "exact":
            z = F.interpolate(torch.cat([x, y, x], 1), scale_factor=3, mode="nearest-exact")
        else:
            z = F.interpolate(
                torch.cat([x, y, x], 1), scale_factor=2.4, recompute_scale_factor=False
            )
        return self.unit(z)


@pytest.mark.parametrize(
    ("what", "factors"),
    [
        ("nested", [2, 2, 1]),
        ("rows", [1]),
        ("odd", [1]),
        ("one side", [1]),
        ("smooth", [1]),
        ("exact", [3, 3, 3]),
        ("uneven", [1]),
    ],
)
def test_what_a_unit_reads(shop: SimpleNamespace, what: str, factors: list[int]) -> None:
    network = shop.train_like(Head(what))
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(2, 2, 4, 3), torch.randn(2, 2, 4, 3))
    (call,) = shop.calls(packed)
    assert call["upsample"] == factors


class Normed(nn.Module):
    """Float convolutions with norms, whose feature maps are outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3, bias=False)
        self.bn = nn.BatchNorm2d(20)
        self.up = nn.ConvTranspose2d(20, 9, 2, stride=2)
        self.bn2 = nn.BatchNorm2d(9)
        self.unit = BiConv2d(9, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = F.relu(self.bn(self.conv(x)))
        second = self.bn2(self.up(first))
        return first, second, self.unit(second)


def test_norms_round_as_the_network_does(shop: SimpleNamespace) -> None:
    network = shop.train_like(Normed())
    packed = binarize.pack(network)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 17, 16).contiguous(memory_format=layout)
        with torch.no_grad():
            wanted = network(x)
        for found in (packed(x), packed(x)):
            for map_, other in zip(found[:2], wanted[:2], strict=True):
                assert torch.equal(map_, other)
            torch.testing.assert_close(found[2], wanted[2])
    packed = binarize.pack(network)
    packed(x)
    assert shop.operators(packed) == "convolution addcmul relu_ convolution addcmul".split()
    # They write over what the convolutions made.
    (program,) = packed._programs.values()
    norms = [node for node in program.module.graph.nodes if "addcmul" in str(node.target)]
    assert all(node.kwargs["out"] is node.args[1] for node in norms)


def test_norm_whose_input_is_read_elsewhere(shop: SimpleNamespace) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.unit = BiConv2d(4, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return self.unit(self.bn(y)), y

    network = shop.train_like(Net())
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(1, 3, 7, 6))
    assert shop.operators(packed) == ["convolution", "native_batch_norm"]


@pytest.mark.parametrize("gain", ["none", "computed"])
def test_norms_with_other_gains(shop: SimpleNamespace, gain: str) -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight.exp(), self.bias, eps=self.eps)

    norm = nn.BatchNorm2d(4, affine=False) if gain == "none" else Norm(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norm, BiConv2d(4, 4, 3)).eval()
    with torch.no_grad():
        for value in (norm.running_mean, norm.running_var, *norm.parameters()):
            value.uniform_(0.5, 2)
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(2, 3, 7, 6))
    assert packed.unfused is None
    # Only a norm of known numbers becomes one multiplication and addition.
    assert ("addcmul" in shop.operators(packed)) is (gain == "none")


def test_calls_of_all_sizes(shop: SimpleNamespace) -> None:
    network = shop.student(shop.UNet())
    packed = binarize.pack(network, example_inputs=torch.zeros(1, 3, 8, 8))
    assert len(packed._programs) == 1
    for shape in [(1, 3, 8, 8), (3, 3, 8, 8), (1, 3, 9, 7), (1, 3, 1, 1), (1, 3, 32, 4)]:
        assert_alike(packed, network, torch.randn(shape))
    for side in range(4, 24):
        packed(torch.zeros(1, 3, side, side))
    assert len(packed._programs) == 16
    assert packed(torch.zeros(0, 3, 8, 8)).shape == (0, 4, 8, 8)
    assert packed.unfused is None


def test_the_size_that_was_not_used_for_longest_is_forgotten(shop: SimpleNamespace) -> None:
    packed = binarize.pack(shop.student(shop.UNet()))
    often = torch.zeros(1, 3, 4, 4)
    packed(often)
    (program,) = packed._programs.values()
    for width in range(5, 25):
        packed(torch.zeros(1, 3, 4, width))
        packed(often)
    assert len(packed._programs) == 16
    assert any(known is program for known in packed._programs.values())


def test_memory_layouts_and_autocast(shop: SimpleNamespace) -> None:
    network = shop.student(shop.UNet())
    packed = binarize.pack(network)
    x = torch.randn(2, 3, 8, 12)
    wide = torch.randn(2, 3, 8, 24)[..., ::2].copy_(x)
    assert_alike(packed, network, x)
    assert_alike(packed, network, x.contiguous(memory_format=torch.channels_last))
    assert_alike(packed, network, wide)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
        assert packed(x).dtype == torch.bfloat16
    assert packed(x).dtype == torch.float32
    packed.double()
    assert packed(x.double()).dtype == torch.float64
    torch.testing.assert_close(packed(x.double()).float(), network(x), atol=1e-4, rtol=1e-4)


def test_arguments_and_structures(shop: SimpleNamespace) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = BiConv2d(4, 4, 3, padding=1)

        def forward(self, batch: dict[str, Tensor], *, twice: bool = False) -> dict[str, Any]:
            y = self.unit(batch["image"])
            y = self.unit(y) if twice else y
            return {"maps": [y, (y.mean(),)], "twice": twice, "image": batch["image"], "none": None}

    network = shop.train_like(Net())
    packed = binarize.pack(network)
    batch = {"image": torch.randn(1, 4, 5, 6)}
    assert_alike(packed, network, batch)
    assert_alike(packed, network, batch, twice=True)
    assert len(packed._programs) == 2
    assert packed(batch)["image"] is batch["image"]
    with pytest.raises(TypeError, match="unexpected keyword"):
        packed(batch, thrice=True)
    assert packed.unfused is None


def test_shared_unit_and_changes_in_place(shop: SimpleNamespace) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = BiConv2d(4, 4, 3, padding=1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.unit(x)
            before = y * 2
            y.add_(1).mul_(x)
            z = self.unit(self.act(y))
            return z + before

    network = shop.train_like(Net())
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(1, 4, 5, 6))
    assert packed.unfused is None


class IntoBuffer(nn.Module):
    """Writes results into tensors that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = BiConv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.unit(x)
        size = y.abs()
        total = size + 1
        torch.copysign(size, x, out=size)
        torch.mul(size, 2, out=size)
        return size + total


def test_results_written_into_buffers(shop: SimpleNamespace) -> None:
    network = shop.train_like(IntoBuffer())
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(1, 4, 5, 6))
    assert packed.unfused is None


class Awkward(nn.Module):
    """Does what a graph of operators cannot say."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.unit = BiConv2d(4, 4, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))
        self.what = what

    def forward(self, x: Tensor) -> Any:
        y = self.unit(x)
        if self.what == "value":
            return y if float(x.sum()) > 0 else -y
        if self.what == "size":
            return y[y > 0]
        if self.what == "view":
            y[:, 0] += 1
            return y
        if self.what == "out view":
            torch.add(y[:, 0], 1, out=y[:, 0])
            return y
        if self.what == "input":
            return x.mul_(2) + y
        if self.what == "buffer":
            self.calls += 1
            return y + self.calls
        return SimpleNamespace(maps=y)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("value", "it reads values of tensors"),
        ("size", "the shape of a result depends on values"),
        ("view", "it changes a tensor that is read elsewhere"),
        ("out view", "it changes a tensor that is read elsewhere"),
        ("input", "it changes a tensor that is read elsewhere"),
        ("buffer", "it changes a tensor that is read elsewhere"),
        ("object", "a result is a SimpleNamespace, not made of tensors"),
    ],
)
def test_what_no_graph_can_say_is_run_as_it_is(
    shop: SimpleNamespace, what: str, reason: str
) -> None:
    network = shop.train_like(Awkward(what))
    packed = binarize.pack(network)
    for call, sign in enumerate((1, -1, -1)):
        x = sign * torch.rand(1, 4, 5, 5)
        with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wanted, result = network(x.clone()), packed(x.clone())
        # Speed is not lost in silence, and not with a word at every call.
        told = [str(w.message) for w in caught if w.category is SlowWarning]
        assert len(told) == (call == 0)
        assert all(reason in text for text in told)
        if what == "object":
            wanted, result = wanted.maps, result.maps
        torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)
    assert packed.unfused is not None
    assert reason in packed.unfused
    assert reason in repr(packed)


def test_recording_computes_no_values(
    shop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    run = native.unit
    monkeypatch.setattr(native, "unit", lambda *given: runs.append(1) or run(*given))
    packed = binarize.pack(shop.student(shop.UNet()))
    for calls in (1, 2):
        packed(torch.randn(1, 3, 8, 8))
        assert len(runs) == 4 * calls  # units


class Keeper(nn.Module):
    """Keeps what it made for a size, as position embeddings and attention masks are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = BiConv2d(4, 4, 3, padding=1)
        self.kept: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape not in self.kept:
            self.kept[x.shape] = torch.arange(float(x.shape[-1]))
        return self.unit(x) + self.kept[x.shape]


def test_what_modules_keep_has_values(shop: SimpleNamespace) -> None:
    network = shop.train_like(Keeper())
    packed = binarize.pack(network)
    for width in (5, 6, 5):
        assert_alike(packed, network, torch.randn(1, 4, 5, width))
    assert packed.unfused is None
    packed(torch.randn(1, 4, 5, 7))
    assert all(type(value) is Tensor for value in packed.network.kept.values())


def test_an_error_of_the_call_is_the_networks_own(shop: SimpleNamespace) -> None:
    packed = binarize.pack(shop.student(shop.UNet()))
    with pytest.raises(RuntimeError, match="channels"):
        packed(torch.zeros(1, 5, 8, 8))
    assert packed.unfused is None
    packed(torch.zeros(1, 3, 8, 8))
    assert len(packed._programs) == 1


def test_released_policy(shop: SimpleNamespace) -> None:
    network = shop.student(shop.UNet(), "bidense-released")
    packed = binarize.pack(network)
    assert_alike(packed, network, torch.randn(1, 3, 8, 8))
    assert packed.unfused is None


def test_no_gradients(shop: SimpleNamespace) -> None:
    packed = binarize.pack(shop.student(shop.UNet()))
    assert not any(p.requires_grad for p in packed.parameters())
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    assert not packed(x).requires_grad
    assert not packed(x).requires_grad
    with torch.inference_mode():
        packed(x)


def test_several_threads(shop: SimpleNamespace) -> None:
    network = shop.student(shop.UNet())
    packed = binarize.pack(network)
    inputs = [torch.randn(1, 3, 4 + 2 * (i % 3), 8) for i in range(12)]
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        results[i] = packed(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for i, x in enumerate(inputs):
            torch.testing.assert_close(results[i], network(x), atol=1e-4, rtol=1e-4)


def test_methods_of_the_network(shop: SimpleNamespace) -> None:
    network = shop.student(shop.UNet())
    packed = binarize.pack(network)
    assert packed.binarize_plan is network.binarize_plan or packed.binarize_plan == (
        network.binarize_plan
    )
    assert type(packed.network).__name__ == type(network).__name__


def test_signature(shop: SimpleNamespace) -> None:
    packed = binarize.pack(shop.student(shop.UNet()))
    assert str(inspect.signature(packed.forward)) == str(inspect.signature(shop.UNet().forward))
    assert isinstance(packed, binarize.PackedNetwork)
    x = torch.zeros(1, 3, 8, 8)
    assert torch.equal(packed(x=x), packed(x))


def test_an_activation_of_the_input_leaves_the_image_alone(shop: SimpleNamespace) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.unit = nn.Conv2d(3, 8, 3), BiConv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.unit(F.relu(self.conv(F.relu(x))))

    network, x = shop.train_like(Net()), torch.randn(2, 3, 8, 7)
    packed, before = binarize.pack(network), x.clone()
    assert_alike(packed, network, x)
    assert torch.equal(x, before)
    # The second one writes over what the convolution made.
    assert shop.operators(packed) == ["relu", "convolution", "relu_"]
