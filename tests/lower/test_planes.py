"""Networks whose layers have several planes: programs, free sizes, exports, and what they share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import SlowWarning
from binarize.nn import BiConv2d, BiConvTranspose2d, BiLinear, BinaryLayer, UnitSpec
from binarize.nn.packed import PackedUnit
from binarize.policy import load_policy


def layer(cls: Any, policy: str, *sizes: int, **options: Any) -> Any:
    return cls(*sizes, **options, unit=load_policy(policy).unit)


class Shared(nn.Module):
    """A block that runs at two sizes, groups, a way down and up, and a layer on vectors."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = layer(BiConv2d, policy, 8, 8, 3, padding=1, groups=2)
        self.down = layer(BiConv2d, policy, 8, 12, 3, stride=2, padding=1)
        self.up = layer(BiConvTranspose2d, policy, 12, 8, 2, 2)
        self.head = layer(BiLinear, policy, 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.stem(x))
        y = self.up(self.down(y))
        y = self.twice(y[:, :, ::2, ::2])
        return self.head(y.flatten(2).transpose(1, 2))


def trained(policy: str) -> nn.Module:
    torch.manual_seed(0)
    network = Shared(policy)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BinaryLayer):
                for value in (*module.binarizer.parameters(), *module.norm.parameters()):
                    value += 0.2 * torch.randn_like(value)
        for _ in range(3):
            network(torch.randn(2, 3, 12, 8))
    return network.eval()


def share_alike(result: Tensor, wanted: Tensor) -> float:
    """A value within rounding of a threshold may take the other sign."""
    assert result.shape == wanted.shape
    return float(((result - wanted).abs() < 1e-3 * wanted.abs().max()).float().mean())


@pytest.mark.parametrize("policy", ["adabin", "cbnn", "lqnet"])
def test_programs_for_all_sizes(policy: str) -> None:
    network = trained(policy)
    packed = binarize.pack(network)
    layers = [module for module in packed.network.children() if type(module) is not nn.Conv2d]
    assert all(isinstance(module, PackedUnit) for module in layers)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", SlowWarning)
        for samples, *size in ((2, 8, 8), (1, 8, 8), (2, 12, 6), (3, 6, 16), (2, 14, 10)):
            x = torch.randn(samples, 3, *size)
            assert share_alike(packed(x), network(x)) > 0.99
        assert len(packed.general) == 1
        assert packed(torch.randn(0, 3, 8, 8)).shape == network(torch.randn(0, 3, 8, 8)).shape


def test_half_precision() -> None:
    network = trained("lqnet")
    packed = binarize.pack(network).to(torch.bfloat16)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        y = packed(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert bool(y.isfinite().all())


class Mixed(nn.Module):
    """One layer of each kind of planes, or of the first ones."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        bits: Any = {"binarizer_options": {"bits": 2}, "weight_options": {"bits": 1}}
        parts: list[dict[str, Any]] = [
            {"binarizer": "adaptive-set", "weight": "adaptive-set"},
            {"binarizer": "sign", "weight": "binary-bases", "weight_options": {"bases": 2}},
            {"binarizer": "learned-levels", "weight": "learned-levels", **bits},
        ]
        self.layers = nn.Sequential(
            *(BiConv2d(4, 4, 3, padding=1, unit=UnitSpec(**part)) for part in parts[:count])
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


# What torch's exporter and the libraries below it warn about.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("runtime", ["standard", "binarize"])
def test_onnx(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Standard operators take the exporter long.
    network = Mixed(1 if runtime == "standard" else 3)
    with torch.no_grad():
        network.layers[0].binarizer.alpha.fill_(-0.75)
        network.layers[0].binarizer.beta.fill_(0.125)
        network(torch.randn(4, 4, 6, 6))
    packed = binarize.pack(network.eval())
    path = tmp_path / "net.onnx"
    x = torch.randn(2, 4, 6, 5)
    binarize.export_onnx(packed, path, x, runtime=runtime, dynamic=runtime == "binarize")
    if runtime == "standard":
        session = onnxruntime.InferenceSession(path)
        result = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    else:
        x = torch.randn(3, 4, 7, 9)
        result = binarize.runtime.Session(path)(x.numpy())
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(result), packed(x), atol=1e-5, rtol=1e-5)
