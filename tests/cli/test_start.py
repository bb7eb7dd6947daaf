"""What a training starts from: norms that came folded in the weights, and what is done to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from binarize.cli.app import build_parser
from binarize.cli.networks import Recipe, build
from binarize.cli.output import Output
from binarize.cli.start import make_student

CLASSES = 6
BATCHES = [{"image": torch.randn(4, 3, 24, 32, generator=torch.Generator().manual_seed(0))}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights as a file for inference has them: norms of weight 1, mean 0, variance 1."""
    network = build(Recipe("demo:UNet", CLASSES, arguments={"widths": [8, 16]}))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    save_file(network.state_dict(), tmp_path / "folded.safetensors")
    return tmp_path / "folded.safetensors"


def start(file: Path, *words: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network that `binarize train --init FILE` starts from, and what is recorded of it."""
    line = ["train", "--model", "demo:UNet", "--model-arg", "widths=[8,16]", "--data", "scenes",
            "--init", str(file), "--output", str(file.parent), *words]  # fmt: skip
    args = build_parser().parse_args(line)
    network, _, told = make_student(args, CLASSES, BATCHES, Output(quiet=True))
    return network, told


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_folded_norms_have_their_scale_back(file: Path) -> None:
    network, told = start(file, "--policy", "none")
    given = load_file(file)
    norms = [name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert told["norms_unfolded"] == len(norms) > 0
    state = network.state_dict()
    assert not any(torch.equal(state[f"{n}.running_var"], given[f"{n}.running_var"]) for n in norms)


def test_folded_norms_are_kept_on_request(file: Path) -> None:
    network, told = start(file, "--policy", "none", "--keep-folded")
    assert "norms_unfolded" not in told
    assert equal(network.state_dict(), load_file(file))
    plain, _ = start(file, "--policy", "none")
    # Either way the network computes the same before it is trained.
    image = BATCHES[0]["image"]
    assert not equal(network.state_dict(), plain.state_dict())
    torch.testing.assert_close(network.eval()(image), plain.eval()(image), atol=1e-4, rtol=1e-4)


def test_kept_norms_go_into_the_binary_network(file: Path) -> None:
    student, told = start(file, "--keep-folded", "--recalibrate", "0")
    assert "norms_unfolded" not in told
    network = build(Recipe("demo:UNet", CLASSES, arguments={"widths": [8, 16]}))
    network.load_state_dict(load_file(file))

    def norms(model: nn.Module) -> list[tuple[list[float], list[float]]]:
        found = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        return sorted((m.weight.tolist(), m.bias.tolist()) for m in found)

    assert norms(student) == norms(network)
