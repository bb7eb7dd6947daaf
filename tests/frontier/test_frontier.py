"""``binarize.frontier``: from a network and loaders of one's own to networks side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes
from binarize.errors import BinarizeError
from binarize.frontier.build import POINTS
from binarize.policy import load_policy


class Network(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.after = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.after(self.body(x))))


@pytest.fixture(scope="module")
def loaders() -> dict[str, Any]:
    def loader(seed: int, batch: int) -> Any:
        return DataLoader(Scenes(6, (24, 32), seed, task="segmentation"), batch)

    return {
        "train_loader": loader(0, 3),
        "val_loader": loader(1, 4),
        "test_loader": loader(2, 6),
    }


OPTIONS: dict[str, Any] = {"rounds": 2, "engines": False, "epochs": 1, "progress": False}


def test_points_rivals_and_again(loaders: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network, narrow = Network().eval(), Network(4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    options = {**OPTIONS, "points": ["bidense", "99%,1s"], "rivals": {"narrow": narrow}}
    made = binarize.frontier(network, output_dir=tmp_path, **loaders, **options)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    kinds = {point.name: point.kind for point in made.points if "bf16" not in point.name}
    assert kinds == {
        "float": "float",
        "bidense": "binarized",
        "99%,1s": "binarized",
        "narrow": "rival",
    }
    assert all(set(point.metrics) == {"val", "test"} for point in made.points)
    assert all(len(point.seconds) == 2 for point in made.points)
    assert made.inputs == "1×3×24×32"
    for point in made.points:
        if point.file:
            assert (tmp_path / point.file).stat().st_size == point.bytes
    # The file is the network whose metric stands there.
    student = binarize.load(tmp_path / "bidense" / "binary.safetensors", model=Network())
    measured = binarize.Trainer(student, progress=False).evaluate(loaders["test_loader"])
    (bidense,) = (point for point in made.points if point.name == "bidense")
    assert bidense.metrics["test"] == pytest.approx(measured["mIoU"])
    assert binarize.Frontier.load(tmp_path / "frontier.json") == made

    # What is there counts; what is missing is made again.
    (tmp_path / "bidense" / "binary.safetensors").unlink()
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    options["rivals"] = {"narrow": Network(4)}  # a new process has new weights
    again = binarize.frontier(network, output_dir=tmp_path, **loaders, **options)
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert [p.metrics for p in again.points] == [p.metrics for p in made.points]


def test_another_networks_folder_is_refused(loaders: Any, tmp_path: Path) -> None:
    options = {**OPTIONS, "points": ["bidense"]}
    network = Network().eval()
    binarize.frontier(network, output_dir=tmp_path, **loaders, **options)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    with torch.no_grad():
        network.head.weight[0, 0] += 1
    for other in ({}, {"policy": "bireal"}):
        with pytest.raises(BinarizeError, match="holds the frontier of another network or policy"):
            binarize.frontier(network, output_dir=tmp_path, **loaders, **options, **other)
        with torch.no_grad():
            network.head.weight[0, 0] -= 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"points": ["3 apples"]}, "is not a size, number of operations, latency"),
        ({"points": ["1B"]}, "budget='1B': the minimum of policy 'deploy' is"),
        ({"policy": "depoly"}, "did you mean 'deploy'"),
        ({"rounds": 0}, "rounds=0: must be at least 1; correct it"),
        ({"sensitivity_images": 0}, "sensitivity_images=0: must be at least 1; correct it"),
        ({"teacher": None}, "teacher=None: frontier gives it itself; leave it out"),
        (
            {"points": ["5%"], "rivals": {"5_": Network(4)}},
            "points='5%': another network has the folder '5', too; choose another name",
        ),
        ({"task": "depht"}, "did you mean 'depth'"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    loaders: Any, tmp_path: Path, wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises(BinarizeError) as raised:
        binarize.frontier(Network().eval(), output_dir=tmp_path, **loaders, **{**OPTIONS, **wrong})
    assert text in str(raised.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_command_line_names_the_same_points(capsys: pytest.CaptureFixture[str]) -> None:
    from binarize.cli import main

    with pytest.raises(SystemExit):
        main(["frontier", "--help"])
    assert f"(default {', '.join(POINTS)})" in " ".join(capsys.readouterr().out.split())


def test_the_rule_files_hold_what_the_budget_chose(loaders: Any, tmp_path: Path) -> None:
    options = {**OPTIONS, "points": ["99%"]}
    made = binarize.frontier(Network().eval(), output_dir=tmp_path, **loaders, **options)
    (point,) = (p for p in made.points if p.kind == "binarized")
    assert point.bytes <= 0.99 * made.points[0].bytes
    student = binarize.load(tmp_path / "99" / "binary.safetensors", model=Network())
    plan = student.binarize_plan
    assert plan.policy.rules == load_policy(tmp_path / "99.toml").rules
    assert json.loads((tmp_path / "sensitivity.json").read_text())["sites"]
