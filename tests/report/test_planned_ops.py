"""Operations counted from a plan are those of the converted network's report."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import binarize
from binarize.graph import Traced
from binarize.graph.flow import all_layers
from binarize.policy import load_policy, with_overrides
from binarize.report.counts import planned_ops


class Many(nn.Module):
    """Projection shortcuts, groups, a transposed and a shared convolution, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        down = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.stem, self.block = nn.Conv2d(3, 8, 3), BasicBlock(8, 12, 2, down)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(12, 12, 5, padding=2, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 3, 2)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.stem(x)))
        x = torch.relu(self.up(torch.relu(self.depthwise(self.grouped(x)))))
        x = torch.relu(self.shared(torch.relu(self.shared(x))))
        return self.head(x.mean((2, 3)))


def vit() -> nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )


NETWORKS = {"many": (Many, (2, 3, 21, 18)), "attention": (vit, (1, 3, 32, 32))}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("policy", ["bidense", "deploy", "groupnet", "lqnet", "bnn"])
def test_without_converting(kind: str, policy: str) -> None:
    make, shape = NETWORKS[kind]
    network, image = make().eval(), torch.randn(shape)
    traced, base = Traced(network, image), load_policy(policy)
    overrides = {"blocks.0.mlp.fc1": "binarize"} if kind == "attention" else None
    chosen = with_overrides(base, overrides, all_layers(network))
    plan = traced.plan(base, chosen)
    student = binarize.convert(network, policy, example_inputs=image, overrides=overrides)
    assert planned_ops(traced.trace, plan) == pytest.approx(binarize.report(student, image).ops)
    # Nothing is left of a plan in the next one, nor of a conversion.
    for _ in range(2):
        again = traced.plan(base, chosen)
        assert again.to_dict() == plan.to_dict()
        made = traced.convert(again)
        assert [type(m).__name__ for m in made.modules()] == [
            type(m).__name__ for m in student.modules()
        ]
        torch.manual_seed(1)
        with torch.no_grad():
            torch.testing.assert_close(made.eval()(image), student.eval()(image))


def test_unknown_operations() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
            )
            self.rnn, self.head = nn.LSTM(8, 4, batch_first=True), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers(x)
            rows = self.rnn(x.flatten(2).transpose(1, 2))[0]
            return self.head(rows.transpose(1, 2).unflatten(2, x.shape[2:]))

    traced = Traced(Net().eval(), torch.randn(1, 3, 9, 9))
    assert planned_ops(traced.trace, traced.plan(load_policy("bidense"))) is None
