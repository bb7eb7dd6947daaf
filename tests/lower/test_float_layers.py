"""Float layers of packed networks: where they run, and that they compute the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.kernels import memory
from binarize.lower import float_layers
from binarize.nn import BiConv2d


class Net(nn.Module):
    """A pointwise float convolution before a unit, and one after an upsampling at the end."""

    def __init__(self, kernel: int = 1, **options: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.unit = BiConv2d(8, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 5, kernel, **options)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.unit(self.first(x)), scale_factor=2.0, mode="bilinear")
        return self.last(y)


IMAGE = torch.randn(2, 3, 12, 14).contiguous(memory_format=torch.channels_last)


def operators(shop: SimpleNamespace, network: nn.Module, image: Tensor = IMAGE) -> list[str]:
    """What the program calls besides binary layers, once it returns the network's result."""
    packed = binarize.pack(network)
    with torch.no_grad():
        wanted = network(image)
        for found in (packed(image), packed(image)):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
            assert found.stride() == wanted.stride()
    assert packed.unfused is None
    found_operators: list[str] = shop.operators(packed)
    return found_operators


def test_only_layers_without_a_later_unit_change_their_rounding(shop: SimpleNamespace) -> None:
    network = shop.train_like(Net())
    assert operators(shop, network) == ["convolution", "upsample_bilinear2d", "conv1x1"]


@pytest.mark.parametrize(
    "options", [{"kernel": 3, "padding": 1}, {"stride": 2}, {"padding": 1}, {"groups": 1}]
)
def test_other_convolutions_stay(shop: SimpleNamespace, options: dict[str, int]) -> None:
    network = shop.train_like(Net(**options))
    # The last case is a layer that would not stay, but its feature map is too small.
    image = IMAGE if "groups" not in options else IMAGE[..., :5, :6]
    assert operators(shop, network, image)[-1] == "convolution"


def test_maps_in_torchs_own_layout_stay() -> None:
    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.unit(x[:, :3].repeat(1, 3, 1, 1)[:, :8]).contiguous())

    packed = binarize.pack(Plain().eval())
    packed(torch.randn(2, 3, 16, 16))
    (program,) = packed.programs.values()
    assert float_layers.conv1x1 not in {n.target for n in program.module.graph.nodes}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("available", [True, False])
def test_large_results_are_made_in_bands(
    monkeypatch: pytest.MonkeyPatch, bias: bool, available: bool
) -> None:
    conv = nn.Conv2d(12, 5, 1, bias=bias).to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 12, 9, 20).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    with torch.no_grad():
        whole = float_layers.conv1x1(x, conv.weight, conv.bias)
        torch.testing.assert_close(whole, conv(x))
        monkeypatch.setattr(memory, "LARGE", 1)
        monkeypatch.setattr(float_layers, "_BAND", 4 * 20 * 5 * 4)  # four rows
        banded = float_layers.conv1x1(x, conv.weight, conv.bias)
    assert banded.stride() == whole.stride() == conv(x).stride()
    torch.testing.assert_close(banded, whole)


def test_large_results_have_memory_given(
    shop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = shop.train_like(Net())
    plain = binarize.pack(network)(IMAGE)
    monkeypatch.setattr(memory, "LARGE", 4 * 2 * 12 * 24 * 28)  # upsampled feature map
    packed = binarize.pack(network)
    assert torch.equal(packed(IMAGE), plain)
    assert shop.operators(packed) == "convolution empty upsample_bilinear2d conv1x1".split()
    monkeypatch.undo()
    # Such a program is whole in a file, too.
    binarize.save(packed, tmp_path / "net.safetensors")
    loaded = binarize.load(tmp_path / "net.safetensors")
    assert torch.equal(loaded(IMAGE), plain)
