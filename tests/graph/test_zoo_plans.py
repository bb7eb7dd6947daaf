"""Plans for every architecture and encoder the pass promises, made without computing anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import binarize

ARCHITECTURES = [
    "Unet",
    "UnetPlusPlus",
    "FPN",
    "UPerNet",
    "DeepLabV3Plus",
    "Linknet",
    "PSPNet",
    "MAnet",
    "PAN",
]
ENCODERS = ["resnet18", "resnet34", "mobilenet_v2", "efficientnet-b0", "tu-convnext_tiny"]
TIMM = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "convnext_tiny",
    "mobilenetv2_100",
    "efficientnet_b0",
    "vgg11",
    "vgg16_bn",
    "densenet121",
    "regnety_008",
]
# Every architecture with two encoders, every encoder with several architectures.
PAIRS = [
    (arch, encoder)
    for number, arch in enumerate(ARCHITECTURES)
    for encoder in (ENCODERS[0], ENCODERS[1 + number % (len(ENCODERS) - 1)])
]
NETWORKS = [
    *(f"smp/{arch}/{encoder}" for arch, encoder in PAIRS),
    *(f"timm/{name}" for name in TIMM),
    *(f"features/{name}" for name in TIMM),
]
# What a default policy may keep, and the words its reason is known by.
REASONS = {"image", "prediction", "1x1 feature map"}


def positions(model: nn.Module, x: torch.Tensor, lab: SimpleNamespace) -> dict[str, int]:
    """Positions of the feature map that each layer reads, in order of execution."""
    seen: dict[str, int] = {}

    def note(name: str):
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            channel = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
            size = args[0].shape[1:].numel() // args[0].shape[channel]
            seen[name] = max(seen.get(name, 0), size)

        return hook

    handles = [
        layer.register_forward_pre_hook(note(name)) for name, layer in lab.layers(model).items()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_plan(name: str, lab: SimpleNamespace) -> None:
    model = lab.outline(name).eval()
    x = torch.zeros(1, 3, 128, 128, device="meta")
    read = positions(model, x, lab)
    plan = binarize.plan(model, example_inputs=x)
    decided = {decision.site: decision for decision in plan.layers}
    assert set(decided) == set(lab.layers(model))
    order = [decision.site for decision in plan.layers]
    assert order[0] == next(iter(read))
    # Layers that never run come last.
    assert set(order[len(read) :]) == set(decided) - set(read)

    kept = {site: d.reason for site, d in decided.items() if d.action == "keep"}
    assert all(any(words in reason for words in REASONS) for reason in kept.values()), kept
    assert "image" in kept.pop(order[0])
    if not name.startswith("features"):
        last = next(site for site in reversed(list(read)))
        assert "prediction" in kept.pop(last)
    # What else is kept works on one position: gates, global pooling.
    assert all(read.get(site) == 1 for site in kept), kept
    for site, decision in decided.items():
        if decision.action == "binarize" and site in read:
            assert read[site] > 1, site

    total = sum(layer.weight.numel() for layer in lab.layers(model).values())
    gone = sum(d.weights for d in plan.layers if d.action in ("bypass", "remove"))
    binary = sum(d.weights for d in plan.layers if d.action == "binarize")
    assert plan.binary_share == pytest.approx(binary / (total - gone))
    # No block keeps its addition where all its layers carry the signal: see the growth tests.
    assert all(d.reason and d.rule for d in plan.decisions)


def test_convnext_is_nearly_all_binary(lab: SimpleNamespace) -> None:
    import timm

    model = timm.create_model("convnext_tiny")
    student = binarize.convert(model, example_inputs=torch.zeros(1, 3, 64, 64))
    binary = sum(
        m.weight.numel() for m in student.modules() if isinstance(m, binarize.nn.BinaryLayer)
    )
    assert binary / sum(p.numel() for p in model.parameters()) >= 0.95


@pytest.mark.parametrize("name", ["smp/Unet/resnet18", "timm/resnet18", "timm/convnext_tiny"])
def test_without_example_inputs(name: str, lab: SimpleNamespace) -> None:
    model = lab.build(name)
    assert binarize.plan(model) == binarize.plan(model, example_inputs=torch.zeros(1, 3, 224, 224))


def test_a_film_is_guessed_too() -> None:
    class Film(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv3d(3, 8, 3, 2, 1), nn.Conv3d(8, 8, 3, 2, 1)
            self.head = nn.Linear(8 * 4 * 56 * 56, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.stem(x)).flatten(1))

    with torch.device("meta"):
        plan = binarize.plan(Film())
    assert plan.example == ((1, 3, 16, 224, 224),)


def test_colours_are_guessed_behind_a_stem_that_folds_positions() -> None:
    with torch.device("meta"):
        model = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
        )
    assert binarize.plan(model).example == ((1, 3, 256, 256),)


def test_shortcuts_are_treated_by_what_they_carry(lab: SimpleNamespace) -> None:
    def additions(name: str) -> dict[str, str]:
        x = torch.zeros(1, 3, 128, 128, device="meta")
        plan = binarize.plan(lab.outline(name), example_inputs=x)
        return {d.scope: d.action for d in plan.additions}

    resnet = additions("timm/resnet18")
    assert len(resnet) == 8
    assert set(resnet.values()) == {"drop"}
    # A LayerNorm inside the branch breaks its path: the block's own shortcut stays.
    convnext = additions("timm/convnext_tiny")
    assert len(convnext) == 18
    assert set(convnext.values()) == {"keep"}
    # A top-down addition merges two feature maps; it is not a shortcut.
    fpn = additions("smp/FPN/resnet18")
    dropped = [scope for scope, action in fpn.items() if action == "drop"]
    assert not any(scope.startswith("decoder") for scope in dropped)
    assert len(dropped) == 8


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/resnet50", "smp/Unet/resnet34"])
def test_projection_shortcuts_need_no_weights(name: str, lab: SimpleNamespace) -> None:
    model = lab.outline(name)
    student = binarize.convert(model, example_inputs=torch.zeros(1, 3, 64, 64, device="meta"))
    projections = [n for n in lab.layers(model) if ".downsample.0" in n]
    assert projections
    assert not any(".downsample." in key for key in student.state_dict())
