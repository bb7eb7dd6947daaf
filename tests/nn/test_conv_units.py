"""Convolution units against ``norm(conv(DAB(x), scale * sign(W))) + bypass(x)`` spelled out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.nn import (
    BiConv1d,
    BiConv2d,
    BiConv3d,
    BiConvTranspose1d,
    BiConvTranspose2d,
    BiConvTranspose3d,
    BinaryLayer,
    UnitSpec,
)
from binarize.ops import channel_adaptive_bypass

# torch's own remark on padding="same" with even kernels, for float layers as well.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

CONVOLUTIONS = {
    "dense": (BiConv2d, (4, 6, 3), {"padding": 1}, (7, 9)),
    "pointwise": (BiConv2d, (4, 6, 1), {}, (5, 5)),
    "groups": (BiConv2d, (4, 6, 3), {"padding": 1, "groups": 2}, (7, 9)),
    "depthwise": (BiConv2d, (4, 4, 7), {"padding": 3, "groups": 4}, (7, 9)),
    "depthwise multiplier": (BiConv2d, (4, 8, 3), {"padding": 1, "groups": 4}, (7, 9)),
    "dilation": (BiConv2d, (4, 6, 3), {"padding": 2, "dilation": 2}, (7, 9)),
    "dilation and groups": (
        BiConv2d,
        (4, 6, 3),
        {"padding": 4, "dilation": 4, "groups": 2},
        (9, 8),
    ),
    "kernel 2": (BiConv2d, (4, 6, 2), {}, (7, 9)),
    "kernel 4, stride 2": (BiConv2d, (4, 6, 4), {"stride": 2, "padding": 1}, (8, 9)),
    "patches": (BiConv2d, (4, 6, 2), {"stride": 2}, (7, 9)),
    "stride 2": (BiConv2d, (4, 6, 3), {"stride": 2, "padding": 1}, (7, 9)),
    "stride 2, kernel 1": (BiConv2d, (4, 6, 1), {"stride": 2}, (7, 9)),
    "stride (2, 1)": (BiConv2d, (4, 6, 3), {"stride": (2, 1), "padding": 1}, (7, 9)),
    "stride 3": (BiConv2d, (4, 6, 3), {"stride": 3, "padding": 1}, (11, 8)),
    "unpadded": (BiConv2d, (4, 6, 3), {}, (7, 9)),
    "unpadded, stride 2": (BiConv2d, (4, 6, 3), {"stride": 2}, (7, 9)),
    "kernel (1, 3)": (BiConv2d, (4, 6, (1, 3)), {"padding": (0, 1)}, (7, 9)),
    "kernel (3, 1), half padded": (BiConv2d, (4, 6, 3), {"padding": (1, 0)}, (7, 9)),
    "padded more": (BiConv2d, (4, 6, 3), {"padding": 3}, (7, 9)),
    "same": (BiConv2d, (4, 6, 3), {"padding": "same"}, (7, 9)),
    "same, even": (BiConv2d, (4, 6, 4), {"padding": "same"}, (7, 9)),
    "same, even, dilated": (BiConv2d, (4, 6, 2), {"padding": "same", "dilation": 3}, (7, 9)),
    "valid": (BiConv2d, (4, 6, 3), {"padding": "valid"}, (7, 9)),
    "reflect": (BiConv2d, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (7, 9)),
    "circular": (BiConv2d, (4, 6, 3), {"padding": 1, "padding_mode": "circular"}, (7, 9)),
    "replicate": (BiConv2d, (4, 6, 5), {"padding": 2, "padding_mode": "replicate"}, (7, 9)),
    "reflect, stride": (
        BiConv2d,
        (4, 6, 3),
        {"padding": 1, "padding_mode": "reflect", "stride": 2},
        (7, 9),
    ),
    "reflect, same, even": (
        BiConv2d,
        (4, 6, 4),
        {"padding": "same", "padding_mode": "reflect"},
        (7, 9),
    ),
    "fewer channels": (BiConv2d, (7, 3, 3), {"padding": 1}, (5, 5)),
    "one remaining channel": (BiConv2d, (4, 9, 3), {"padding": 1}, (5, 5)),
    "to one channel": (BiConv2d, (4, 1, 3), {"padding": 1}, (5, 5)),
    "from one channel": (BiConv2d, (1, 5, 3), {"padding": 1}, (5, 5)),
    "1-D": (BiConv1d, (4, 6, 3), {"padding": 1}, (9,)),
    "1-D, stride": (BiConv1d, (4, 6, 5), {"stride": 3, "padding": 2, "groups": 2}, (11,)),
    "3-D": (BiConv3d, (4, 6, 3), {"padding": 1}, (4, 5, 6)),
    "3-D, stride": (BiConv3d, (4, 6, 3), {"stride": (1, 2, 2), "padding": 1}, (4, 5, 6)),
}
TRANSPOSED = {
    "doubling": (BiConvTranspose2d, (4, 6, 2, 2), {}, (5, 4)),
    "kernel 4": (BiConvTranspose2d, (4, 6, 4, 2), {"padding": 1}, (5, 4)),
    "output padding": (
        BiConvTranspose2d,
        (4, 6, 3, 2),
        {"padding": 1, "output_padding": 1},
        (5, 4),
    ),
    "groups": (BiConvTranspose2d, (4, 6, 4, 2), {"padding": 1, "groups": 2}, (5, 4)),
    "depthwise": (BiConvTranspose2d, (4, 4, 4, 2), {"padding": 1, "groups": 4}, (5, 4)),
    "dilation": (BiConvTranspose2d, (4, 6, 3, 2), {"padding": 2, "dilation": 2}, (5, 4)),
    "stride 1": (BiConvTranspose2d, (4, 6, 3, 1), {"padding": 1}, (5, 4)),
    "stride 1, unpadded": (BiConvTranspose2d, (4, 6, 3, 1), {}, (5, 4)),
    "asymmetric": (
        BiConvTranspose2d,
        (4, 6, (3, 2), (2, 3)),
        {"padding": (1, 0), "output_padding": (0, 1)},
        (5, 4),
    ),
    "fewer channels": (BiConvTranspose2d, (7, 3, 2, 2), {}, (3, 3)),
    "1-D": (BiConvTranspose1d, (4, 6, 4, 2), {"padding": 1}, (5,)),
    "3-D": (BiConvTranspose3d, (4, 6, 2, 2), {}, (2, 3, 2)),
}
CASES = {**CONVOLUTIONS, **{f"transposed, {name}": case for name, case in TRANSPOSED.items()}}
SPECS = {
    "paper": UnitSpec(),
    "released": UnitSpec(
        binarizer_options={"scale": "channel"},
        bypass="interleaved",
        transposed_scale="input-channel",
    ),
}


def binarized(x: Tensor, unit: BinaryLayer) -> Tensor:
    positions = tuple(range(2, x.dim()))
    column = (1, -1) + (1,) * len(positions)
    dab = unit.binarizer
    beta = dab.k.view(column) * x.mean(positions, keepdim=True) + dab.b.view(column)
    shifted = x - (beta - beta.abs() / 2**18)  # ties are +1
    over = tuple(range(1, x.dim())) if dab.a.numel() == 1 else positions
    size = shifted.abs().mean(over, keepdim=True)
    a = dab.a.view(()) if dab.a.numel() == 1 else dab.a.view(column)
    return torch.exp(a * (size - 1)) * torch.where(shifted >= 0, 1.0, -1.0).to(x.dtype)


def float_output(x: Tensor, unit: BinaryLayer, kind: type, args: Any, kwargs: Any) -> Tensor:
    """The same-named torch layer, run with the binary weight on the binarized feature map."""
    name = kind.__name__.removeprefix("Bi")
    layer = getattr(nn, name)(*args, **kwargs, bias=False).double()
    signs, scale = unit.binary_weight()
    with torch.no_grad():
        layer.weight.copy_(signs.double() * scale.double())
    return layer(binarized(x, unit))


def carried(x: Tensor, unit: BinaryLayer) -> Tensor:
    """What the bypass adds; a transposed layer first resizes the feature map."""
    if "Transpose" in type(unit).__name__:
        with torch.no_grad():
            size = unit(x).shape[2:]
        x = F.interpolate(x, size=size, mode="nearest")
    return unit.bypass(x)


def randomise(unit: BinaryLayer) -> None:
    with torch.no_grad():
        for parameter in [*unit.binarizer.parameters(), *unit.norm.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.5)
        unit.norm.running_mean.copy_(torch.randn_like(unit.norm.running_mean))
        unit.norm.running_var.copy_(torch.rand_like(unit.norm.running_var) + 0.5)


def make(name: str, spec: str = "paper", **more: Any) -> tuple[BinaryLayer, Tensor, Any]:
    kind, args, kwargs, size = CASES[name]
    unit = kind(*args, **kwargs, unit=SPECS[spec], **more).double()
    randomise(unit)
    x = torch.randn(2, args[0], *size, dtype=torch.float64)
    return unit, x, (kind, args, kwargs)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", CASES)
def test_evaluation_mode(name: str, spec: str) -> None:
    unit, x, how = make(name, spec)
    unit.eval()
    norm = unit.norm
    before = float_output(x, unit, *how)
    column = (1, -1) + (1,) * (x.dim() - 2)
    expected = (before - norm.running_mean.view(column)) / torch.sqrt(
        norm.running_var.view(column) + norm.eps
    ) * norm.weight.view(column) + norm.bias.view(column)
    y = unit(x)
    assert y.shape == expected.shape
    path = carried(x, unit)
    assert path.shape == y.shape
    torch.testing.assert_close(y, expected + path)
    # The path itself: resampling and channel fusion commute, and where sizes agree the
    # bypass is the fusion alone.
    if y.shape[2:] == x.shape[2:]:
        torch.testing.assert_close(
            path, channel_adaptive_bypass(x, y.shape[1], grouping=SPECS[spec].bypass)
        )


@pytest.mark.parametrize("name", CASES)
def test_training_mode_normalises_with_the_batch(name: str) -> None:
    unit, x, how = make(name)
    unit.train()
    before = float_output(x, unit, *how)
    over = (0, *range(2, x.dim()))
    expected = F.batch_norm(
        before, None, None, unit.norm.weight, unit.norm.bias, training=True, eps=unit.norm.eps
    )
    y = unit(x)
    torch.testing.assert_close(y, expected + carried(x, unit))
    assert before.mean(over).shape == unit.norm.running_mean.shape


@pytest.mark.parametrize("name", CASES)
def test_without_bypass(name: str) -> None:
    unit, x, how = make(name, bypass=False)
    unit.eval()
    assert unit.bypass is None
    norm = unit.norm
    expected = F.batch_norm(
        float_output(x, unit, *how),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        eps=norm.eps,
    )
    torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_and_the_input_get_a_finite_gradient(name: str) -> None:
    unit, x, _ = make(name)
    x.requires_grad_()
    (unit(x) ** 2).sum().backward()
    for key, parameter in [*unit.named_parameters(), ("input", x)]:
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["dense", "groups", "stride 2", "transposed, groups"])
def test_weight_and_input_gradients_of_the_whole_unit(name: str, spec: str) -> None:
    """Chain rule by hand: autograd on the formula with surrogates put in as linear terms."""
    unit, x, (kind, args, kwargs) = make(name, spec)
    unit.eval()
    gy = torch.randn_like(unit(x))
    ours = x.clone().requires_grad_()
    unit(ours).backward(gy)

    theirs = x.clone().requires_grad_()
    weight = unit.weight.detach().clone().requires_grad_()
    hard = binarized(x, unit).detach()
    positions = tuple(range(2, x.dim()))
    dab = unit.binarizer
    beta = dab.k.view(1, -1, 1, 1) * x.mean(positions, keepdim=True) + dab.b.view(1, -1, 1, 1)
    shifted = (x - (beta - beta.abs() / 2**18)).detach()
    slope = hard.abs() * torch.where(shifted.abs() < 1, 2 - 2 * shifted.abs(), 0.0)
    soft = hard + slope * (theirs - x)
    signs, scale = (part.detach().double() for part in unit.binary_weight())
    clip = (unit.weight.abs() <= 1).double().detach()
    soft_weight = signs * scale + clip * (weight - weight.detach())
    run = F.conv_transpose2d if kind is BiConvTranspose2d else F.conv2d
    given = {"stride": args[3]} if len(args) > 3 else {}
    before = run(soft, soft_weight, **given, **kwargs)
    norm = unit.norm
    after = F.batch_norm(
        before,
        norm.running_mean,
        norm.running_var,
        norm.weight.detach(),
        norm.bias.detach(),
        eps=norm.eps,
    )
    (after + carried(theirs, unit)).backward(gy)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(unit.weight.grad, weight.grad)


def test_zero_padding_is_zero_in_the_binarized_map() -> None:
    unit = BiConv2d(1, 1, 3, padding=1, bypass=False).eval()
    with torch.no_grad():
        unit.weight.fill_(1.0)
    y = unit(torch.ones(1, 1, 3, 3)).squeeze() * (1 + unit.norm.eps) ** 0.5
    torch.testing.assert_close(y, torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]]))


@pytest.mark.parametrize("padding", [(1, 0, 2, 1), (0, 1, 0, 1)])
def test_asymmetric_padding_goes_round_the_binarized_map(padding: tuple[int, ...]) -> None:
    unit = BiConv2d(4, 6, 3, stride=2, pre_padding=padding, bypass=False).double().eval()
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    signs, scale = unit.binary_weight()
    expected = F.conv2d(F.pad(binarized(x, unit), padding), (signs * scale).double(), stride=2)
    torch.testing.assert_close(unit(x) * (1 + unit.norm.eps) ** 0.5, expected)


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (6, 5), (1, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (2, 2), (3, 1), (4, 3), (1, 2)])
def test_same_padding_with_a_stride(size: tuple[int, int], kernel: int, stride: int) -> None:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel after the feature map."""
    unit = BiConv2d(4, 6, kernel, stride=stride, pre_padding="same", bypass=False)
    unit = unit.double().eval()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    total = [max((-(-s // stride) - 1) * stride + kernel - s, 0) for s in size]
    padding = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    signs, scale = unit.binary_weight()
    expected = F.conv2d(F.pad(binarized(x, unit), padding), (signs * scale).double(), stride=stride)
    y = unit(x)
    assert y.shape[2:] == tuple(-(-s // stride) for s in size)
    torch.testing.assert_close(y * (1 + unit.norm.eps) ** 0.5, expected)

    carrying = BiConv2d(4, 4, kernel, stride=stride, pre_padding="same").double().eval()
    with torch.no_grad():
        carrying.norm.weight.zero_()
    path = carrying(x)
    assert path.shape == (2, 4, *y.shape[2:])
    if stride == 1:
        torch.testing.assert_close(path, x)
    ones = torch.ones_like(x)
    torch.testing.assert_close(carrying(ones), torch.ones_like(path))


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (5, 6), (1, 1)])
def test_strided_bypass_is_average_pooling(size: tuple[int, int]) -> None:
    unit = BiConv2d(3, 3, 3, 2, 1).double().eval()
    with torch.no_grad():
        unit.norm.weight.zero_()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    y = unit(x)
    if all(length % 2 == 0 for length in size):
        torch.testing.assert_close(y, F.avg_pool2d(x, 2))
    constant = torch.full_like(x, -1.3)
    torch.testing.assert_close(unit(constant), torch.full_like(y, -1.3))


def test_transposed_bypass_is_nearest_neighbour() -> None:
    unit = BiConvTranspose2d(3, 3, 2, 2).eval()
    with torch.no_grad():
        unit.norm.weight.zero_()
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(unit(x), F.interpolate(x, scale_factor=2, mode="nearest"))


def test_unpadded_bypass_is_the_middle() -> None:
    unit = BiConv2d(3, 3, 5).eval()
    with torch.no_grad():
        unit.norm.weight.zero_()
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(unit(x), x[:, :, 2:-2, 2:-2])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_empty_batch(name: str, training: bool) -> None:
    kind, args, kwargs, size = CASES[name]
    x = torch.zeros(0, args[0], *size)
    floating = nn.Sequential(
        getattr(nn, kind.__name__.removeprefix("Bi"))(*args, **kwargs),
        {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(size)](args[1]),
    ).train(training)
    unit = kind(*args, **kwargs).train(training)
    assert unit(x).shape == floating(x).shape


@pytest.mark.parametrize("length", [3, 4, 5, 6, 7, 13])
@pytest.mark.parametrize("name", ["stride 2", "stride 3", "patches", "transposed, doubling"])
def test_any_size_the_float_layer_accepts(name: str, length: int) -> None:
    kind, args, kwargs, _ = CASES[name]
    x = torch.randn(1, args[0], length, length + 2)
    floating = getattr(nn, kind.__name__.removeprefix("Bi"))(*args, **kwargs)
    assert kind(*args, **kwargs)(x).shape == floating(x).shape


EXACT = {
    ("dense", "paper"): True,
    ("groups", "paper"): True,
    ("transposed, doubling", "paper"): True,
    ("dense", "released"): False,
    ("depthwise", "released"): True,
}


@pytest.mark.parametrize(("name", "spec"), EXACT)
def test_where_counting_bits_is_exact_it_says_so(name: str, spec: str) -> None:
    unit, x, _ = make(name, spec)
    assert unit.popcount_exact is EXACT[name, spec]


@pytest.mark.parametrize("name", ["dense", "groups", "stride 2", "transposed, groups"])
def test_layer_wise_scales_leave_the_sum(name: str) -> None:
    """One factor per sample and one per output channel, times a sum of plus and minus ones."""
    unit, x, (kind, args, kwargs) = make(name)
    assert unit.popcount_exact
    full = float_output(x, unit, kind, args, kwargs).detach()
    plain = getattr(nn, kind.__name__.removeprefix("Bi"))(*args, **kwargs, bias=False).double()
    with torch.no_grad():
        plain.weight.copy_(unit.binary_weight()[0])
        counts = plain(torch.sign(binarized(x, unit)))
    assert torch.equal(counts, counts.round())
    alpha = binarized(x, unit).abs().flatten(1)[:, 0].detach()
    _, compact = unit.packed_weight()
    torch.testing.assert_close(
        counts * alpha.view(-1, 1, 1, 1) * compact.double().view(1, -1, 1, 1), full
    )
