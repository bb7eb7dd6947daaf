"""A unit is an ordinary module: state, copies, precision, memory formats, compilers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.nn import (
    BiConv1d,
    BiConv2d,
    BiConvTranspose2d,
    BiLinear,
    BinaryLayer,
    ShiftedPReLU,
    UnitSpec,
)

RELEASED = UnitSpec(
    binarizer_options={"scale": "channel"},
    bypass="interleaved",
    transposed_scale="input-channel",
)
# Dynamo instantiates autograd functions by itself, which torch warns about.
dynamo = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

Maker = Callable[[], BinaryLayer]
UNITS: dict[str, tuple[Maker, tuple[int, ...]]] = {
    "dense": (lambda: BiConv2d(4, 6, 3, padding=1), (2, 4, 8, 10)),
    "released": (lambda: BiConv2d(4, 6, 3, padding=1, unit=RELEASED), (2, 4, 8, 10)),
    "strided": (lambda: BiConv2d(4, 6, 3, 2, 1), (2, 4, 9, 10)),
    "depthwise": (lambda: BiConv2d(4, 4, 7, padding=3, groups=4), (2, 4, 8, 10)),
    "reflect": (lambda: BiConv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 8, 10)),
    "same with stride": (lambda: BiConv2d(4, 6, 3, 2, pre_padding="same"), (2, 4, 9, 10)),
    "transposed": (lambda: BiConvTranspose2d(4, 6, 4, 2, 1), (2, 4, 8, 10)),
    "transposed, released": (
        lambda: BiConvTranspose2d(4, 6, 4, 2, 1, unit=RELEASED),
        (2, 4, 8, 10),
    ),
    "1-D": (lambda: BiConv1d(4, 9, 3), (2, 4, 12)),
    "linear": (lambda: BiLinear(4, 10), (2, 8, 10, 4)),
}


def make(name: str) -> tuple[BinaryLayer, Tensor]:
    maker, size = UNITS[name]
    unit = maker()
    with torch.no_grad():
        for parameter in unit.binarizer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        unit.norm.running_mean.normal_()
        unit.norm.running_var.uniform_(0.5, 1.5)
    return unit.eval(), torch.randn(size)


@pytest.mark.parametrize("name", UNITS)
def test_state_dict_round_trip(name: str) -> None:
    unit, x = make(name)
    twin = UNITS[name][0]().eval()
    assert not torch.equal(twin(x), unit(x))
    twin.load_state_dict(unit.state_dict())
    assert torch.equal(twin(x), unit(x))


@pytest.mark.parametrize("name", UNITS)
def test_copies(name: str) -> None:
    unit, x = make(name)
    expected = unit(x)
    buffer = io.BytesIO()
    torch.save(unit, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(unit),
        pickle.loads(pickle.dumps(unit)),
        torch.load(buffer, weights_only=False),
    ]
    for twin in copies:
        assert torch.equal(twin(x), expected)
        assert twin.spec == unit.spec
        with torch.no_grad():
            twin.weight.neg_()
        assert torch.equal(unit(x), expected)


@pytest.mark.parametrize("name", UNITS)
def test_training_steps_change_the_output_and_stay_finite(name: str) -> None:
    unit, x = make(name)
    unit.train()
    optimizer = torch.optim.AdamW(unit.parameters(), lr=0.05)
    target = torch.randn_like(unit(x))
    losses = []
    for _ in range(30):
        loss = nn.functional.mse_loss(unit(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in unit.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", UNITS)
def test_half_precision_inference(name: str, dtype: torch.dtype) -> None:
    unit, x = make(name)
    full = unit(x)
    half = copy.deepcopy(unit).to(dtype)
    y = half(x.to(dtype))
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    # A value near a threshold may change its sign, so most outputs, not all, must agree.
    close = (y.float() - full).abs() < 0.1 * full.abs().max()
    assert close.float().mean() > 0.8


@pytest.mark.parametrize("name", UNITS)
def test_autocast(name: str) -> None:
    unit, x = make(name)
    full = unit(x)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = unit(x)
        loss = y.float().square().mean()
    loss.backward()
    torch.testing.assert_close(y.float(), full, atol=0.05 * full.abs().max().item(), rtol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in unit.parameters())


@pytest.mark.parametrize(
    "name", [n for n, (_, size) in UNITS.items() if n != "linear" and len(size) == 4]
)
def test_channels_last_memory_gives_equal_values(name: str) -> None:
    unit, x = make(name)
    expected = unit(x)
    y = unit.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected)


@dynamo
@pytest.mark.parametrize("name", UNITS)
def test_compiles_as_one_graph_with_gradients(name: str) -> None:
    unit, x = make(name)
    unit.train()
    twin = copy.deepcopy(unit)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), unit(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (key, ours), theirs in zip(twin.named_parameters(), unit.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key, atol=1e-4, rtol=1e-4)


# Not "same with stride": its padding depends on the size, and float layers do not export either.
EXPORTED = ["dense", "released", "strided", "depthwise", "reflect", "transposed", "linear"]


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_with_dynamic_shapes(name: str, request: pytest.FixtureRequest) -> None:
    unit, x = make(name)
    if name == "strided":
        request.getfixturevalue("pooling_exports")
    batch = torch.export.Dim("batch", min=1, max=64)
    height, width = (torch.export.Dim(n, min=4, max=512) for n in ("height", "width"))
    dims = (1, 2) if name == "linear" else (2, 3)
    shapes = ({0: batch, dims[0]: height, dims[1]: width},)
    program = torch.export.export(unit, (x,), dynamic_shapes=shapes).module()
    torch.testing.assert_close(program(x), unit(x))
    other = torch.randn(3, *(13, 11, 4) if name == "linear" else (4, 13, 11))
    torch.testing.assert_close(program(other), unit(other))


@pytest.mark.parametrize("name", UNITS)
def test_moves_to_meta_and_back_to_a_device(name: str) -> None:
    unit, x = make(name)
    shape = unit(x).shape
    assert unit.to("meta")(x.to("meta")).shape == shape


@pytest.mark.parametrize("name", UNITS)
def test_made_on_meta(name: str) -> None:
    with torch.device("meta"):
        unit = UNITS[name][0]()
    assert all(t.device.type == "meta" for t in [*unit.parameters(), *unit.buffers()])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", UNITS)
def test_integer_input_is_refused_in_one_line(name: str, dtype: torch.dtype) -> None:
    unit, x = make(name)
    with pytest.raises(binarize.BinarizeError) as raised:
        unit((x * 10).to(dtype))
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"input={dtype}: ")
    assert "floating" in message
    assert "float()" in message.split(";")[1]


@pytest.mark.parametrize(
    ("field", "value", "offered"),
    [
        ("binarizer", "dbb", "dab"),
        ("weight", "scaled_sign", "scaled-sign"),
        ("transposed_scale", "output", "output-channel"),
        ("bypass", "contigous", "contiguous"),
        ("norm", "layer", "batch"),
        ("activation", "prelu", "shifted-prelu"),
    ],
)
def test_unknown_parts_are_refused_with_the_known_ones(
    field: str, value: str, offered: str
) -> None:
    with pytest.raises(binarize.BinarizeError) as raised:
        BiConv2d(3, 4, 3, unit=UnitSpec(**{field: value}))
    message = str(raised.value)
    assert repr(value) in message
    assert field in message
    assert offered in message
    assert "\n" not in message


def test_a_unit_without_bypass_by_policy() -> None:
    unit = BiConv2d(4, 4, 3, padding=1, unit=UnitSpec(bypass=None)).eval()
    assert unit.bypass is None
    with torch.no_grad():
        unit.norm.weight.zero_()
    assert torch.count_nonzero(unit(torch.randn(1, 4, 5, 5))) == 0


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("out_shift", [True, False])
def test_shifted_prelu_is_its_formula(out_shift: bool, channel_dim: int) -> None:
    act = ShiftedPReLU(3, out_shift=out_shift, channel_dim=channel_dim).double()
    names = dict(act.named_parameters())
    assert len(names) == (3 if out_shift else 2)
    assert all(p.numel() == 3 for p in names.values())
    with torch.no_grad():
        for parameter in names.values():
            parameter.copy_(torch.randn(3))
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    given = x if channel_dim == 1 else x.movedim(1, -1)
    column = (1, 3, 1, 1)
    moved = x + act.shift.view(column)
    expected = torch.where(moved > 0, moved, moved * act.slope.view(column))
    if out_shift:
        expected = expected + act.out_shift.view(column)
    y = act(given)
    torch.testing.assert_close(y if channel_dim == 1 else y.movedim(-1, 1), expected)


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("positions", [(), (5,), (3, 4)])
def test_shifted_prelu_on_any_rank_and_empty(positions: tuple[int, ...], channel_dim: int) -> None:
    act = ShiftedPReLU(3, channel_dim=channel_dim)
    for samples in (0, 2):
        x = torch.randn(samples, 3, *positions)
        x = x if channel_dim == 1 else x.movedim(1, -1)
        assert act(x).shape == x.shape
    torch.testing.assert_close(act(torch.full_like(x, -4.0)), torch.full_like(x, -1.0))
    torch.testing.assert_close(act(torch.full_like(x, 4.0)), torch.full_like(x, 4.0))


@pytest.mark.parametrize("out_shift", [True, False])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_an_activation_may_be_scaled_in_place(channel_dim: int, out_shift: bool) -> None:
    act = binarize.nn.ShiftedPReLU(5, channel_dim=channel_dim, out_shift=out_shift)
    x = torch.randn(2, 5, 5, 5, requires_grad=True)
    expected = 1.5 * act(x)
    got = act(x).mul_(1.5)
    assert torch.equal(got, expected)
    weight = torch.randn_like(got)
    (a,) = torch.autograd.grad((got * weight).sum(), x)
    (b,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(a, b)
