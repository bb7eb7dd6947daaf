"""Adaptive sign and its convolution against a plain composition, and what they keep in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.nn import BiConv2d, BiConvTranspose2d, BiLinear, BinaryLayer
from binarize.ops.adaptive_sign import adaptive_convolution, adaptive_sign
from binarize.ops.convolution import Geometry
from binarize.ops.sign import scaled_sign, sign

# Sample size, channels, positions; dimensions of positions and of the scale's mean.
SHAPES: dict[str, tuple[tuple[int, ...], list[int], list[int]]] = {
    "layer": ((2, 3, 5, 4), [2, 3], [1, 2, 3]),
    "channel": ((2, 3, 5, 4), [2, 3], [2, 3]),
    "last": ((2, 4, 3), [1], [1, 2]),
    "no position": ((3, 4), [], []),
    "empty": ((0, 3, 5, 4), [2, 3], [1, 2, 3]),
}
GEOMETRIES = {
    "padded": (Geometry((1, 1), (1, 1), (1, 1), False, (0, 0), 1), (6, 4, 3, 3)),
    "strided, dilated, grouped": (
        Geometry((2, 1), (2, 1), (2, 1), False, (0, 0), 2),
        (6, 2, 3, 3),
    ),
    "transposed": (Geometry((2, 2), (1, 1), (1, 1), True, (1, 1), 2), (4, 3, 3, 3)),
}


def composed(x: Tensor, threshold: Tensor, exponent: Tensor, over: list[int]) -> Tensor:
    """The same by torch's own functions and a sign whose gradient is tested by itself."""
    shifted = x - threshold
    size = shifted.detach().abs()
    mean = size.mean(over, keepdim=True) if over else size
    return scaled_sign(shifted, torch.exp(exponent * (mean - 1)))


def terms(name: str, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Any]:
    shape, positions, over = SHAPES[name]
    means = [1 if d in positions else n for d, n in enumerate(shape)]
    scales = [1 if d in over or d == 0 else n for d, n in enumerate(shape)]
    x = torch.randn(shape, dtype=dtype)
    threshold = torch.randn(means, dtype=dtype) * 0.3
    exponent = torch.rand(scales, dtype=dtype) + 0.5
    if x.numel():
        # One value exactly on its threshold, one at the surrogate's edge.
        x.view(-1)[0] = threshold.view(-1)[0]
        x.view(-1)[1] = threshold.expand(shape).reshape(-1)[1] + 1
    leaves = [t.requires_grad_() for t in (x, threshold, exponent)]
    return leaves, {"positions": positions, "over": over}


def grads(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return list(torch.autograd.grad((y * weights).sum(), leaves))


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients(name: str) -> None:
    leaves, dims = terms(name)
    y = adaptive_sign(*leaves, **dims)
    expected = composed(*leaves, dims["over"])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grads(y, leaves), grads(expected, leaves))


@pytest.mark.parametrize("frozen", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolution(name: str, frozen: int | None) -> None:
    geometry, shape = GEOMETRIES[name]
    scale_dim = 1 if geometry.transposed else 0
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    threshold = torch.randn(2, 4, 1, 1, dtype=torch.float64) * 0.3
    exponent = torch.rand(1, dtype=torch.float64)
    weight = torch.randn(shape, dtype=torch.float64)
    weight.view(-1)[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
    scale = torch.rand([n if d == scale_dim else 1 for d, n in enumerate(shape)]).double() + 0.5
    if geometry.transposed:
        scale = scale.expand(shape[0], -1, -1, -1)
    leaves = [x, threshold, exponent, weight]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i != frozen)
    y = adaptive_convolution(*leaves, scale, geometry, positions=[2, 3], over=[1, 2, 3], whole=True)

    # The weight's surrogate is not multiplied by the scale.
    signs = sign(weight, "clip")
    used = scale * signs.detach() + (signs - signs.detach())
    binary = composed(x, threshold, exponent, [1, 2, 3])
    if geometry.transposed:
        stride, padding, dilation, _, output_padding, groups, _ = geometry
        expected = F.conv_transpose2d(
            binary, used, None, stride, padding, output_padding, groups, dilation
        )
    else:
        stride, padding, dilation, _, _, groups, _ = geometry
        expected = F.conv2d(binary, used, None, stride, padding, dilation, groups)
    torch.testing.assert_close(y, expected)
    free = [leaf for leaf in leaves if leaf.requires_grad]
    torch.testing.assert_close(grads(y, free), grads(expected, free))


def test_sums_are_whole_numbers() -> None:
    """What a layer that counts bits gets, to the last bit: the scales are put on afterwards."""
    x, weight = torch.randn(2, 96, 9, 7), torch.randn(5, 96, 3, 3)
    scale = torch.rand(5, 1, 1, 1) + 0.1
    geometry = Geometry((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    terms = (torch.zeros(2, 96, 1, 1), torch.zeros(1))
    y = adaptive_convolution(
        x, *terms, weight, scale, geometry, positions=[2, 3], over=[1, 2, 3], whole=True
    )
    counted = F.conv2d(sign(x.double()), sign(weight.double()), None, padding=1)
    assert torch.equal(y, counted.float() * scale.view(1, 5, 1, 1))


def kept_bytes(unit: BinaryLayer, x: Tensor) -> int:
    """Bytes that the graph keeps beside parameters, buffers and the input."""
    own = {t.untyped_storage().data_ptr() for t in (*unit.parameters(), *unit.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        unit(x)
    return sum(kept.values())


@pytest.mark.parametrize(
    "unit",
    [
        BiConv2d(32, 32, 3, padding=1),
        BiConv2d(32, 32, 3, pre_padding="same"),
        BiConvTranspose2d(32, 32, 3, padding=1),
        BiLinear(32, 32),
    ],
    ids=["plain", "SAME", "transposed", "linear"],
)
def test_a_unit_keeps_its_sum_only(unit: BinaryLayer) -> None:
    x = torch.randn(2, 32, 32, 32, requires_grad=True)
    one_map = x.numel() * 4
    assert one_map <= kept_bytes(unit, x) < 1.1 * one_map


@pytest.mark.parametrize("hooked", ["binarizer", "quantizer"])
def test_hooks_on_the_parts_are_called_and_change_nothing(hooked: str) -> None:
    unit = BiConv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, 6, 5, requires_grad=True)
    expected = unit(x)
    wanted = grads(expected, [x, *unit.parameters()])
    seen = []
    getattr(unit, hooked).register_forward_hook(lambda *_: seen.append(1))
    y = unit(x)
    assert seen == [1]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grads(y, [x, *unit.parameters()]), wanted)


def test_autocast_convolves_in_half_precision_whatever_the_input() -> None:
    unit = BiConv2d(4, 6, 3, padding=1)
    seen = []
    unit.norm.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0].dtype))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 4, 6, 5).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = unit(x)
        y.float().sum().backward()
        assert x.grad.dtype == dtype
        assert unit.weight.grad.dtype == torch.float32
    assert seen == [torch.bfloat16] * 2


def test_types_that_do_not_go_together_are_refused_as_torch_does() -> None:
    with pytest.raises(RuntimeError, match="type"):
        BiConv2d(4, 6, 3)(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16))


def test_the_backward_pass_can_run_twice() -> None:
    unit = BiConv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, 6, 5, requires_grad=True)
    y = unit(x).square().sum()
    leaves = [x, *unit.parameters()]
    first = torch.autograd.grad(y, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, leaves), first, atol=0, rtol=0)


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(1, 4, 6, 5, requires_grad=True)
    (gx,) = torch.autograd.grad(BiConv2d(4, 6, 3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gx.sum().backward()
