"""Small networks whose converted forward pass is written out by hand from the specification."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer, ShiftedPReLU
from binarize.ops import channel_adaptive_bypass

X = torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(5))


def settle(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after a training, all different."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            if module.track_running_stats:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        if getattr(module, "bias", None) is not None and not isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return model


def signs(x: Tensor) -> Tensor:
    """An untrained binarizer (k = 1, b = a = 0): the sign against the channel's mean.

    What equals the mean up to rounding is +1.
    """
    mean = x.mean((2, 3), keepdim=True, dtype=torch.float64).to(x.dtype)
    return torch.where(x >= mean - mean.abs() * 2.0**-18, 1.0, -1.0)


def binary(weight: Tensor, out_dim: int = 0) -> Tensor:
    over = [d for d in range(4) if d != out_dim]
    return torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean(over, keepdim=True)


def prelu(x: Tensor) -> Tensor:
    """An untrained shifted PReLU."""
    return torch.where(x > 0, x, 0.25 * x)


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def sandwich(*middle: nn.Module, out: int = 8) -> nn.Sequential:
    """A stem and a prediction, kept as they are, round the layers under test."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*middle), nn.Conv2d(out, 2, 1)
    )


def convert(model: nn.Module, **how: object) -> nn.Module:
    return binarize.convert(model, example_inputs=X, **how)


def count(model: nn.Module, kind: type) -> int:
    # A replaced activation is an instance of the one before, for forwards that ask.
    unit = (ShiftedPReLU,)
    return sum(
        isinstance(module, kind) and (kind in unit or not isinstance(module, unit))
        for module in model.modules()
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_an_existing_norm_is_adopted_and_the_bias_folded_in(bias: bool, relu: bool) -> None:
    model = settle(
        sandwich(
            nn.Conv2d(8, 8, 3, padding=1, bias=bias),
            nn.BatchNorm2d(8, eps=1e-3, momentum=0.07),
            *([nn.ReLU()] if relu else []),
        )
    ).eval()
    conv, norm = model[1][0], model[1][1]
    student = convert(model)
    h = model[0](X)
    shifted = F.conv2d(signs(h), binary(conv.weight), conv.bias, padding=1)
    expected = batch_norm(shifted, norm) + h
    expected = model[2](prelu(expected) if relu else expected)
    torch.testing.assert_close(student(X), expected)

    unit = student[1][0]
    assert isinstance(unit, BinaryLayer)
    assert count(student, nn.modules.batchnorm._BatchNorm) == 1
    assert (unit.norm.eps, unit.norm.momentum) == (1e-3, 0.07)
    assert torch.equal(unit.norm.weight, norm.weight)
    assert count(student, nn.ReLU) == 0
    assert count(student, ShiftedPReLU) == int(relu)

    # In training mode the batch's own mean takes the bias away, as in the float network.
    student.train()
    expected = F.batch_norm(
        shifted, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
    )
    expected = expected + h
    expected = model[2](prelu(expected) if relu else expected)
    torch.testing.assert_close(student(X), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_affine_or_statistics(affine: bool) -> None:
    model = settle(
        sandwich(
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8, affine=affine, track_running_stats=affine),
        )
    ).eval()
    student = convert(model)
    h, conv, norm = model[0](X), model[1][0], model[1][1]
    raw = F.conv2d(signs(h), binary(conv.weight), conv.bias, padding=1)
    torch.testing.assert_close(student(X), model[2](norm(raw) + h), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_without_norm_gets_one_with_its_bias(bias: bool) -> None:
    model = settle(sandwich(nn.Conv2d(8, 8, 3, padding=1, bias=bias))).eval()
    student = convert(model)
    conv, unit = model[1][0], student[1][0]
    assert isinstance(unit.norm, nn.BatchNorm2d)
    expected_bias = conv.bias if bias else torch.zeros(8)
    assert torch.equal(unit.norm.bias, expected_bias)
    assert torch.equal(unit.norm.weight, torch.ones(8))
    h = model[0](X)
    raw = F.conv2d(signs(h), binary(conv.weight), padding=1)
    expected = raw / (1 + unit.norm.eps) ** 0.5 + expected_bias.view(1, -1, 1, 1) + h
    torch.testing.assert_close(student(X), model[2](expected))


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("norm", [ChannelsFirstNorm(8), nn.GroupNorm(2, 8)])
def test_other_norms_stay(norm: nn.Module) -> None:
    model = settle(sandwich(nn.Conv2d(8, 8, 3, padding=1), norm)).eval()
    student = convert(model)
    assert type(student[1][1]) is type(norm)
    unit = student[1][0]
    h = model[0](X)
    raw = F.conv2d(signs(h), binary(model[1][0].weight), padding=1)
    inner = batch_norm(raw, unit.norm) + h
    torch.testing.assert_close(student(X), model[2](norm(inner)))


def test_a_norm_with_another_reader_is_not_adopted() -> None:
    """Only the norm that reads this layer alone can become a part of it."""

    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.head = nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.stem(x))
            return self.head(torch.cat([self.norm(y), y], dim=1))

    model = settle(TwoReaders()).eval()
    student = convert(model)
    h = model.stem(X)
    unit = student.conv
    y = batch_norm(F.conv2d(signs(h), binary(model.conv.weight), padding=1), unit.norm) + h
    torch.testing.assert_close(student(X), model.head(torch.cat([model.norm(y), y], dim=1)))


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = None
        if stride > 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.shortcut is None else self.shortcut(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


def unit(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    raw = F.conv2d(
        signs(x), binary(conv.weight), stride=conv.stride, padding=conv.padding, groups=conv.groups
    )
    carried = F.adaptive_avg_pool2d(x, raw.shape[2:])
    return batch_norm(raw, norm) + channel_adaptive_bypass(carried, raw.shape[1])


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (16, 2), (12, 1), (20, 2)])
def test_a_residual_block_keeps_one_path(channels: int, stride: int) -> None:
    """conv1 -> conv2 -> (+ identity) becomes two units, each with its own bypass."""
    block = Block(8, channels, stride)
    model = settle(sandwich(block, out=channels)).eval()
    student = convert(model)
    h = prelu(unit(model[0](X), block.conv1, block.bn1))
    h = prelu(unit(h, block.conv2, block.bn2))
    torch.testing.assert_close(student(X), model[2](h))
    assert not any("shortcut" in key for key in student.state_dict())
    actions = [d.action for d in student.binarize_plan.additions]
    assert actions == ["drop"]


def test_resnet18_is_a_chain_of_units(lab: SimpleNamespace) -> None:
    model = settle(lab.build("timm/resnet18")).eval()
    x = torch.randn(2, 3, 64, 64)
    student = binarize.convert(model, example_inputs=x)
    h = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            h = prelu(unit(h, block.conv1, block.bn1))
            h = prelu(unit(h, block.conv2, block.bn2))
    # Far down a chain of signs, rounding may turn one over: nearly all outputs agree.
    torch.testing.assert_close(student(x), model.fc(model.global_pool(h)), atol=1e-2, rtol=1e-2)


class NormedBranch(nn.Module):
    """ConvNeXt's block: a norm inside the branch, a scale at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm = ChannelsFirstNorm(8)
        self.wide = nn.Conv2d(8, 32, 1)
        self.act = nn.GELU()
        self.narrow = nn.Conv2d(32, 8, 1)
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.act(self.wide(self.norm(self.depthwise(x)))))
        return x + y * self.gamma


def test_a_shortcut_round_a_norm_stays() -> None:
    model = settle(sandwich(NormedBranch())).eval()
    student = convert(model)
    assert [d.action for d in student.binarize_plan.additions] == ["keep"]
    with torch.no_grad():
        student[1][0].gamma.zero_()
    torch.testing.assert_close(student(X), model[2](model[0](X)))
    assert count(student, nn.GELU) == 0
    assert count(student, ChannelsFirstNorm) == 1


class TopDown(nn.Module):
    """A small feature pyramid: lateral layers, nearest upsampling, an addition of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, 2, 1)
        self.fine = nn.Conv2d(8, 8, 1)
        self.coarse = nn.Conv2d(16, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        coarse = self.coarse(self.down(fine))
        merged = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest") + self.fine(fine)
        return self.head(merged)


def test_a_merge_of_two_maps_stays() -> None:
    model = settle(TopDown()).eval()
    student = convert(model)
    h = model.stem(X)

    def plain(x: Tensor, conv: nn.Conv2d, layer: BinaryLayer) -> Tensor:
        return unit(x, conv, layer.norm)

    coarse = plain(plain(h, model.down, student.down), model.coarse, student.coarse)
    up = F.interpolate(coarse, size=h.shape[-2:], mode="nearest")
    expected = model.head(up + plain(h, model.fine, student.fine))
    torch.testing.assert_close(student(X), expected)


class SharedHead(nn.Module):
    """One convolution and one norm, called on three feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 1)
        self.alias = self.head

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.stem(x)
        maps = [h, F.max_pool2d(h, 2), F.max_pool2d(h, 4)]
        return [self.out(self.head(level)) for level in maps]


def test_a_shared_layer_stays_one_layer() -> None:
    model = settle(SharedHead()).eval()
    student = convert(model)
    assert isinstance(student.head, BinaryLayer)
    assert student.alias is student.head
    assert len([d for d in student.binarize_plan.layers if d.action == "binarize"]) == 1
    assert count(student, BinaryLayer) == 1
    h = model.stem(X)
    for level, got in zip([h, F.max_pool2d(h, 2), F.max_pool2d(h, 4)], student(X), strict=True):
        expected = model.out(unit(level, model.head, student.head.norm))
        torch.testing.assert_close(got, expected)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


def test_stem_gates_and_prediction_are_kept() -> None:
    model = settle(sandwich(Gate())).eval()
    student = convert(model)
    plan = {d.site: d for d in student.binarize_plan.layers}
    assert {site for site, d in plan.items() if d.action == "binarize"} == {"1.0.conv"}
    assert {site for site, d in plan.items() if "gate" in d.roles} == {"1.0.reduce", "1.0.expand"}
    assert "image" in plan["0"].reason
    assert "prediction" in plan["2"].reason
    assert "1x1 feature map" in plan["1.0.reduce"].reason
    # The gate's own activation has no binary layer before it.
    h = unit(model[0](X), model[1][0].conv, student[1][0].conv.norm)
    gate = model[1][0].expand(F.relu(model[1][0].reduce(h.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(student(X), model[2](h * gate.sigmoid()))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Hardswish()],
)
def test_activations_become_shifted_prelu(activation: nn.Module) -> None:
    model = settle(sandwich(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), activation)).eval()
    student = convert(model)
    assert count(student, type(activation)) == 0
    conv, norm = model[1][0], model[1][1]
    raw = F.conv2d(signs(model[0](X)), binary(conv.weight), conv.bias, padding=1)
    expected = prelu(batch_norm(raw, norm) + model[0](X))
    torch.testing.assert_close(student(X), model[2](expected))
    (act,) = [m for m in student.modules() if isinstance(m, ShiftedPReLU)]
    assert act.out_shift is not None
    released = convert(model, policy="bidense-released")
    assert all(m.out_shift is None for m in released.modules() if isinstance(m, ShiftedPReLU))


def test_the_released_policy_leaves_the_activation_before_the_prediction() -> None:
    model = sandwich(
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    )
    assert count(convert(model), nn.ReLU) == 0
    student = convert(model, policy="bidense-released")
    assert (count(student, nn.ReLU), count(student, ShiftedPReLU)) == (1, 1)
    assert isinstance(student[1][3], nn.ReLU)


class PerPixelMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return self.fc2(self.act(self.fc1(x))).permute(0, 3, 1, 2)


def test_per_pixel_linear_layers_are_pointwise_convolutions() -> None:
    model = settle(sandwich(PerPixelMlp())).eval()
    student = convert(model)
    mlp, ours = model[1][0], student[1][0]
    assert isinstance(ours.fc1, binarize.nn.BiLinear)
    assert torch.equal(ours.fc1.norm.bias, mlp.fc1.bias)

    def linear(x: Tensor, layer: nn.Linear, norm: nn.Module) -> Tensor:
        raw = F.conv2d(signs(x), binary(layer.weight[:, :, None, None]))
        return batch_norm(raw, norm) + channel_adaptive_bypass(x, raw.shape[1])

    h = prelu(linear(model[0](X), mlp.fc1, ours.fc1.norm))
    torch.testing.assert_close(student(X), model[2](linear(h, mlp.fc2, ours.fc2.norm)))


def test_transposed_layers_carry_by_nearest_neighbour() -> None:
    model = settle(sandwich(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8))).eval()
    student = convert(model)
    conv, norm = model[1][0], model[1][1]
    h = model[0](X)
    raw = F.conv_transpose2d(signs(h), binary(conv.weight, 1), conv.bias, stride=2)
    expected = batch_norm(raw, norm) + F.interpolate(h, scale_factor=2, mode="nearest")
    torch.testing.assert_close(student(X), model[2](expected))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding="same", dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=4),
        nn.Conv2d(8, 8, 4, stride=2, padding=1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 2, padding=1),
    ],
)
def test_kinds_of_convolutions_keep_their_geometry(layer: nn.Conv2d) -> None:
    model = settle(sandwich(layer)).eval()
    student = convert(model)
    assert isinstance(student[1][0], BinaryLayer)
    with torch.no_grad():
        # Without the bypass the converted layer is the float layer on signs.
        student[1][0].bypass = None
        twin = model[1][0]
        expected_weight = binary(twin.weight)
        bias = twin.bias.clone()
        twin.weight.copy_(expected_weight)
        twin.bias.zero_()
        raw = twin(signs(model[0](X)))
    expected = raw / (1 + student[1][0].norm.eps) ** 0.5 + bias.view(1, -1, 1, 1)
    torch.testing.assert_close(student(X), model[2](expected))
