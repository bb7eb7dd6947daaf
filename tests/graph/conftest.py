"""Networks to convert, and what the tests of the pass ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
# The 7x7 layer of timm's vgg has 100 million weights; a narrow one is as good a test.
NARROW = {"vgg11": {"mlp_ratio": 0.05}, "vgg16_bn": {"mlp_ratio": 0.05}}


def build(name: str) -> nn.Module:
    """``smp/Unet/resnet18``, ``timm/resnet18`` or ``features/resnet18``, random weights."""
    kind, _, rest = name.partition("/")
    torch.manual_seed(0)
    if kind == "smp":
        arch, encoder = rest.split("/")
        return getattr(smp, arch)(encoder, encoder_weights=None, classes=5)
    if kind == "timm":
        return timm.create_model(rest, num_classes=10, **NARROW.get(rest, {}))
    return timm.create_model(rest, features_only=True)


def outline(name: str) -> nn.Module:
    """The network of that name without storage."""
    try:
        with torch.device("meta"):
            return build(name)
    except NotImplementedError:
        # A constructor that computes with tensors (timm's RegNet: torch.unique) in an older torch.
        return build(name).to("meta")


def example(name: str, samples: int = 2) -> Tensor:
    side = 128 if name.startswith(("smp/PAN", "smp/DeepLab")) else 64
    torch.manual_seed(1)
    return torch.randn(samples, 3, side, side)


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


def shapes(output: Any) -> Any:
    """The structure of an output, with shapes in the place of tensors."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        return {key: shapes(value) for key, value in output.items()}
    return [type(output).__name__, *map(shapes, output)]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All there is to see of a model: tree, attributes, hooks, modes, tensors."""
    return {
        "tree": [
            (name, id(module), type(module), sorted(vars(module)), module.training)
            for name, module in model.named_modules(remove_duplicate=False)
        ],
        "hooks": sum(
            len(value or ())
            for module in model.modules()
            for key, value in vars(module).items()
            if key.endswith("_hooks")
        ),
        "parameters": [
            (name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()
        ],
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "mode": [module.training for module in model.modules()],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    first, second = one["state"], other["state"]
    return (
        all(one[key] == other[key] for key in ("tree", "hooks", "parameters", "mode"))
        and first.keys() == second.keys()
        and all(
            value.dtype == second[key].dtype and _same_values(value, second[key])
            for key, value in first.items()
        )
    )


def _same_values(one: Tensor, other: Tensor) -> bool:
    if one.device.type == "meta":
        return one.shape == other.shape
    return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by their first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The helpers of this file, for the tests in this folder."""
    return SimpleNamespace(
        build=build,
        outline=outline,
        example=example,
        flat=flat,
        shapes=shapes,
        snapshot=snapshot,
        same=same,
        layers=layers,
    )


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small feature maps gain nothing from threads, and the tests share their machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Refusal = Callable[[BaseException], str]


@pytest.fixture(scope="session")
def told() -> Refusal:
    """Check that an error is one line of argument, value, rule and remedy; return it."""

    def check(error: BaseException) -> str:
        message = str(error)
        assert "\n" not in message
        argument, rest = message.split("=", 1)
        assert argument.replace("_", "").isalnum(), message
        rule, remedy = rest.split(": ", 1)[1].rsplit("; ", 1)
        assert rule.strip(), message
        assert remedy.strip(), message
        return message

    return check
