"""Operations against torch's own counter and against the supplement's Table 4."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

import binarize


def counted_by_torch(network: nn.Module, *inputs: Tensor) -> float:
    """Multiply-accumulates as torch counts them, from the operators that really run."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(*inputs)
    return counter.get_total_flops() / 2


class Called(nn.Module):
    """A function of the input as a network, with parameters that belong to no layer."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, weight in weights.items():
            setattr(self, name, nn.Parameter(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 3), (2, 3, 9, 12)),
        (nn.Conv2d(6, 9, (3, 5), stride=(2, 3), padding=1, groups=3), (1, 6, 11, 17)),
        (nn.Conv2d(4, 4, 3, dilation=2, padding="same", groups=4), (1, 4, 7, 7)),
        (nn.Conv2d(3, 5, 1), (3, 6, 7)),  # without a batch
        (nn.Conv1d(2, 3, 4, stride=3), (2, 2, 20)),
        (nn.Conv3d(1, 2, 3, padding=1), (1, 1, 4, 5, 6)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2), (2, 6, 5, 8)),
        (nn.ConvTranspose1d(3, 5, 4, stride=4), (1, 3, 7)),
        (nn.Linear(5, 7), (5,)),
        (nn.Linear(5, 7), (2, 3, 4, 5)),
        (nn.Conv2d(3, 8, 3), (0, 3, 9, 12)),  # an empty batch
    ],
)
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    network = nn.Sequential(layer)

    ops = binarize.report(network, torch.zeros(shape)).ops

    assert ops == counted_by_torch(network, torch.zeros(shape))
    assert (ops == 0) == (0 in shape)


def test_padding_counts_as_it_is_computed() -> None:
    # Every output position takes every weight, also those that meet the padding.
    report = binarize.report(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), torch.zeros(1, 1, 2, 2))

    assert report.ops == 4 * 9


@pytest.mark.parametrize(
    "network",
    [
        Called(lambda m, x: F.conv2d(x, m.w, padding=1), w=torch.zeros(5, 3, 3, 3)),
        Called(lambda m, x: F.conv_transpose2d(x, m.w, stride=2), w=torch.zeros(3, 4, 2, 2)),
        Called(lambda m, x: F.linear(x, m.w), w=torch.zeros(6, 8)),
        Called(lambda m, x: x @ m.w, w=torch.zeros(8, 6)),
        Called(lambda m, x: torch.matmul(x, x.transpose(2, 3))),
        Called(lambda m, x: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2))),
    ],
)
def test_products_in_a_forward(network: nn.Module) -> None:
    image = torch.zeros(2, 3, 6, 8)

    report = binarize.report(network, image)

    assert report.ops == counted_by_torch(network, image) > 0
    (row,) = (row for row in report.layers if row.part == "operation")
    assert row.ops == report.ops
    assert row.calls == 1


@pytest.mark.parametrize(
    "network",
    [
        Called(lambda m, x: torch.einsum("nchw,nchv->nwv", x, x)),
        Called(lambda m, x: torch.tensordot(x, x, 4)),
        Called(lambda m, x: F.bilinear(x, x, m.w), w=torch.zeros(2, 8, 8)),
        nn.Sequential(nn.Flatten(2), nn.LSTM(48, 4)),
    ],
    ids=["einsum", "tensordot", "bilinear", "lstm"],
)
def test_what_cannot_be_counted_is_unknown(network: nn.Module) -> None:
    report = binarize.report(network, torch.zeros(2, 3, 6, 8))

    assert report.ops is None
    assert report.float_ops is None
    assert report.binary_ops == 0
    assert report.reference_ops is None
    assert report.params == sum(p.numel() for p in network.parameters())


# Transformers, by the supplement's Table 4


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "by-hand"])
def test_attention(fused: bool) -> None:
    block = timm.models.vision_transformer.Attention(12, num_heads=3)
    block.fused_attn = fused
    n, d = 10, 12

    report = binarize.report(block, torch.zeros(2, n, d))

    assert report.ops == 2 * (4 * n * d * d + 2 * n * n * d)


def test_a_mask_costs_attention_nothing() -> None:
    n, others, d = 10, 6, 12

    class Masked(nn.Module):
        def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q, k, k, mask)

    inputs = torch.zeros(2, n, d), torch.zeros(2, others, d), torch.zeros(n, others)
    report = binarize.report(Masked(), inputs)

    assert report.ops == 2 * 2 * n * others * d


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_torch(batch_first: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    batch, n, d = 2, 10, 12
    shape = (batch, n, d) if batch_first else (n, batch, d)

    report = binarize.report(Network(), torch.zeros(shape))

    assert report.ops == batch * (4 * n * d * d + 2 * n * n * d)
    assert report.params == 4 * d * d + 4 * d


def test_attention_between_two_sequences() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)

        def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.attention(x, key, value)[0]

    inputs = torch.zeros(1, 5, 8), torch.zeros(1, 7, 6), torch.zeros(1, 7, 4)

    report = binarize.report(Network(), inputs)

    assert report.ops == 5 * 8 * 8 * 2 + 7 * 8 * (6 + 4) + 2 * 5 * 7 * 8


def test_transformer_block() -> None:
    block = timm.models.vision_transformer.Block(12, num_heads=3, mlp_ratio=4)
    n, d = 10, 12

    report = binarize.report(block, torch.zeros(1, n, d))

    norms, mlp = 2 * n * d, 2 * n * d * 4 * d
    assert report.ops == 4 * n * d * d + 2 * n * n * d + mlp + norms


def block(tokens: int, width: int, seen: int) -> int:
    """Operations of a transformer block whose tokens attend to ``seen`` others each."""
    attention = 4 * tokens * width * width + 2 * tokens * seen * width
    return attention + 2 * tokens * width * 4 * width + 2 * tokens * width


def test_vision_transformer() -> None:
    d, patches = 24, 16
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=d, depth=3, num_heads=3, num_classes=5
    )
    n = patches + 1  # and the class token

    report = binarize.report(network, torch.zeros(1, 3, 32, 32))

    assert report.ops == patches * 3 * 8 * 8 * d + 3 * block(n, d, n) + n * d + 5 * d


def test_swin_transformer() -> None:
    d, side, window = 16, 16, 4
    network = timm.models.swin_transformer.SwinTransformer(
        img_size=4 * side, embed_dim=d, depths=(2, 2), num_heads=(2, 4), window_size=window,
        num_classes=5,
    )  # fmt: skip
    n, seen = side * side, window * window

    report = binarize.report(network, torch.zeros(1, 3, 4 * side, 4 * side))

    patches = n * 3 * 4 * 4 * d + n * d
    first, second = 2 * block(n, d, seen), 2 * block(n // 4, 2 * d, seen)
    merging = d * side * side + 2 * d * d * side * side
    assert report.ops == patches + first + merging + second + n // 4 * 2 * d + 5 * 2 * d


def test_patch_merging() -> None:
    swin = timm.models.swin_transformer
    height, width, d = 8, 6, 4

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.merge = swin.PatchMerging(d)
            self.attend = timm.models.vision_transformer.Attention(2 * d, num_heads=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(self.merge(x).flatten(1, 2))

    report = binarize.report(Network(), torch.zeros(1, height, width, d))

    n = height * width // 4
    attention = 4 * n * (2 * d) ** 2 + 2 * n * n * 2 * d
    assert report.ops - attention == d * height * width + 2 * d * d * height * width


def test_layer_norm_counts_only_beside_attention() -> None:
    norm, layer = nn.LayerNorm(8), nn.Linear(8, 8)

    report = binarize.report(nn.Sequential(norm, layer), torch.zeros(1, 5, 8))

    assert report.ops == 5 * 8 * 8


def test_batch_norm_and_activations_count_nothing() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.PReLU(3), nn.GELU(), nn.AvgPool2d(2))

    assert binarize.report(network, torch.zeros(1, 3, 8, 8)).ops == 0


def test_deformable_convolution() -> None:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Conv2d(4, 2 * 9 * 2, 3, padding=1)
            self.deform = DeformConv2d(4, 6, 3, padding=1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.deform(x, self.offset(x))

    report = binarize.report(Deformed(), torch.zeros(2, 4, 5, 7))
    positions = 2 * 5 * 7
    assert report.ops == positions * (4 * 36 * 9 + 6 * 2 * 9) == report.least_ops


def test_one_unknown_row_leaves_a_lower_bound() -> None:
    network = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "mix": nn.Bilinear(4, 4, 2)})

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = network

        def forward(self, x: Tensor) -> Tensor:
            y = self.parts["conv"](x).permute(0, 2, 3, 1)
            return self.parts["mix"](y, y)

    report = binarize.report(Mixed(), torch.zeros(1, 3, 5, 5))
    assert report.ops is None
    assert report.least_ops == report.to_dict()["least_ops"] == 25 * 12
    assert sum(row.ops is None for row in report.layers) == 1
    assert ">= 300" in str(report)
