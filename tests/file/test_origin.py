"""What a network says of its origin builds that network, or nothing is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from binarize.graph.origin import build_origin, find_origin

NAMED: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("test_resnet", num_classes=4, in_chans=2),
    "timm-no-classifier": lambda: timm.create_model("test_efficientnet", num_classes=0),
    "timm-features": lambda: timm.create_model("test_resnet", features_only=True, in_chans=5),
    "timm-own-features": lambda: timm.create_model(
        "test_efficientnet", features_only=True, out_indices=(1, 2)
    ),
    "smp": lambda: smp.FPN("resnet18", encoder_weights=None, classes=4, in_channels=1),
    "smp-not-on-meta": lambda: smp.Segformer("mit_b0", encoder_weights=None),
}

CHANGED: dict[str, Callable[[], nn.Module]] = {
    # The tensors are the same, but not what is done with them.
    "stride": lambda: timm.create_model("test_resnet", output_stride=8),
    "activation": lambda: timm.create_model("test_resnet", act_layer="silu"),
    "by-hand": lambda: _padded(smp.FPN("resnet18", encoder_weights=None)),
    "user": lambda: nn.Sequential(nn.Conv2d(3, 4, 1)),
}


def _padded(network: nn.Module) -> nn.Module:
    network.encoder.layer1[0].conv1.padding_mode = "reflect"
    return network


@pytest.mark.parametrize("name", NAMED)
def test_named_networks_are_built_alike(name: str) -> None:
    network = NAMED[name]()

    origin = find_origin(network)

    assert origin is not None
    twin = build_origin(origin)
    assert str(twin) == str(network)
    twin.load_state_dict(network.state_dict())


@pytest.mark.parametrize("name", CHANGED)
def test_networks_that_a_name_does_not_tell(name: str) -> None:
    assert find_origin(CHANGED[name]()) is None


def test_looking_leaves_the_random_numbers_alone() -> None:
    network = NAMED["smp-not-on-meta"]()
    state = torch.get_rng_state()

    find_origin(network)

    assert torch.equal(torch.get_rng_state(), state)
