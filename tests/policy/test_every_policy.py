"""Each bundled policy converts, learns, and survives its file: one network of all kinds of layers.

Three policies that differ most do so on four real networks, too.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock

import binarize
from binarize.nn import BinaryLayer
from binarize.nn.folding import obstacle_to_counting
from binarize.nn.treated import TreatedLayer
from binarize.policy import load_policy, policies, validate

NAMES = sorted(policies())
NOT_COUNTED = {
    "the kernels do not support the scale of its activations",  # XNOR-Net's, one per sample
    # The released code's; the former in a depthwise layer.
    "its activations have a scale per channel",
    "the scale of its activations, one per channel, is inside the channel sum",
}


class Everything(nn.Module):
    """A residual, an inverted residual and a ConvNeXt block, and a decoder that concatenates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        down = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.residual = BasicBlock(8, 12, 2, down)
        self.inverted = nn.Sequential(
            InvertedResidual(12, 12, 1, 2), InvertedResidual(12, 16, 2, 2)
        )
        self.convnext = timm.models.convnext.ConvNeXtBlock(16)
        self.join = nn.Sequential(nn.Conv2d(28, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.residual(self.stem(x))
        deep = self.convnext(self.inverted(skip))
        deep = nn.functional.interpolate(deep, size=skip.shape[2:])
        return self.head(self.up(self.join(torch.cat([deep, skip], 1))))


def network(kind: str) -> nn.Module:
    """Few channels: what a policy does to a network does not depend on their number."""
    torch.manual_seed(0)
    if kind == "everything":
        return Everything()
    if kind == "resnet18":
        block: Any = timm.models.resnet.BasicBlock
        # Branches that end in a norm with gain 0 would get no gradient at the first step.
        return timm.models.resnet.ResNet(
            block,
            [2, 2, 2, 2],
            num_classes=3,
            stem_width=8,
            channels=(8, 12, 16, 24),
            zero_init_last=False,
        )
    if kind == "mobilenetv2":
        return torchvision.models.MobileNetV2(
            num_classes=3,
            width_mult=0.25,
            inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]],
        )
    if kind == "convnext":
        return timm.create_model(
            "convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 12, 16, 24)
        )
    return smp.Unet(
        "tu-test_resnet",
        encoder_weights=None,
        encoder_depth=3,
        decoder_channels=(16, 12, 8),
        classes=3,
    )


def total(output: Tensor) -> Tensor:
    return output.float().square().mean()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "everything") for name in NAMES),
        *itertools.product(
            ("bidense", "deploy", "groupnet"), ("resnet18", "mobilenetv2", "convnext", "unet")
        ),
    ],
)
def test_a_policy_on_a_network(name: str, kind: str, tmp_path: Path) -> None:
    teacher = network(kind)
    # Not so small that the last norms see two values, which pass no gradient on.
    image = torch.randn(2, 3, 48, 48)
    student = binarize.convert(teacher, policy=name, example_inputs=image)
    layers = [module for module in student.modules() if isinstance(module, BinaryLayer)]
    assert layers
    student.train()
    total(student(image)).backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), key
    assert any(bool(layer.weight.grad.abs().sum() > 0) for layer in layers)
    # Learned numbers away from their starting values, where signs and factors are 1 or 0, and
    # many values lie at a threshold.
    with torch.no_grad():
        for layer in layers:
            for parameter in (*layer.binarizer.parameters(), *layer.norm.parameters()):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    student.eval()
    with torch.no_grad():
        expected = student(image)
    assert bool(expected.isfinite().all())
    obstacles = {obstacle_to_counting(layer) for layer in layers}
    assert obstacles <= {None, *NOT_COUNTED}
    if name not in ("xnor", "bidense-mad-scale", "bidense-released"):
        assert obstacles == {None}
    with torch.no_grad():
        packed = binarize.pack(student)(image)
    # A value that lies within rounding of a threshold may take the other sign.
    assert ((packed - expected).abs() < 1e-3 * expected.abs().max()).float().mean() > 0.99
    if kind not in ("everything", "unet"):
        return
    path = tmp_path / "student.safetensors"
    binarize.save(student, path)
    assert path.stat().st_size == binarize.report(student).file_bytes
    loaded = binarize.load(path, model=teacher)
    with torch.no_grad():
        assert torch.equal(loaded(image), expected)
    latent = {f"{k}.weight" for k, m in student.named_modules() if isinstance(m, TreatedLayer)}
    state = student.state_dict()
    for key, value in loaded.state_dict().items():
        assert key in latent or torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_says_where_it_comes_from(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert policy.summary
    assert policy.source
    assert all(rule.reason for rule in policy.rules)
    assert validate(name) == []


def test_the_baselines_of_the_paper_are_there() -> None:
    wanted = (
        "bnn xnor dorefa bireal irnet reactnet adabin bisrnet bit lqnet lqnet-1bit groupnet cbnn"
    )
    ablations = "no-dab no-cfb no-threshold bias-threshold mean-threshold no-scale mad-scale"
    assert set(wanted.split()) <= set(NAMES)
    assert {f"bidense-{word}" for word in (*ablations.split(), "learned-scale")} <= set(NAMES)
    assert {"conservative", "dense-prediction"} <= set(NAMES)


def test_an_ablation_differs_from_the_whole_in_its_part_only() -> None:
    whole = load_policy("bidense")
    for name in NAMES:
        if name.startswith("bidense-") and name != "bidense-released":
            policy = load_policy(name)
            assert policy.rules == whole.rules
            differing = {
                key for key, value in vars(policy.unit).items() if value != vars(whole.unit)[key]
            }
            assert differing in ({"bypass"}, {"binarizer", "binarizer_options"})


@pytest.mark.parametrize("name", NAMES)
def test_no_first_binarized_map_is_all_positive(name: str) -> None:
    """A sign at zero behind a ReLU says +1 everywhere, also behind that of a float stem."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )
    student = binarize.convert(teacher, policy=name, example_inputs=torch.zeros(1, 3, 16, 16))
    seen: list[Tensor] = []
    binarizers = [m.binarizer for m in student.modules() if isinstance(m, BinaryLayer)]
    binarizers[0].register_forward_hook(lambda module, args, result: seen.append(result))
    student(torch.randn(4, 3, 16, 16))
    share = (seen[0] > 0).float().mean()
    assert 0.05 < share < 0.95


def test_conservative_keeps_what_it_says() -> None:
    teacher = network("unet")
    plan = binarize.plan(teacher, policy="conservative", example_inputs=torch.zeros(1, 3, 32, 32))
    decisions = {d.site: d for d in plan.layers}
    convolutions: dict[str, Any] = {
        path: module for path, module in teacher.named_modules() if isinstance(module, nn.Conv2d)
    }
    for path, convolution in convolutions.items():
        decision = decisions[path]
        if decision.action == "binarize":
            assert convolution.groups != convolution.in_channels or convolution.groups == 1, path
            assert max(convolution.stride) == 1, path
            assert not path.startswith("decoder.blocks.2"), path
    assert {d.action for path, d in decisions.items() if path.startswith("decoder.blocks.1")} == {
        "binarize"
    }
    last = [d for path, d in decisions.items() if path.startswith("decoder.blocks.2")]
    assert last
    assert all("after the last upsampling" in d.reason for d in last)
