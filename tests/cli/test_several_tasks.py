"""A network with several heads: trained, distilled from one teacher or one per task, shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from binarize.cli.distill import distillation_losses
from tests.cli.conftest import SCENES, Run, call

NETS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()),
        )
        self.labels, self.depth = nn.Conv2d(width, 6, 1), nn.Conv2d(width, 1, 1)

    def forward(self, x):
        x = self.body(x)
        return {"segmentation": self.labels(x), "depth": self.depth(x)}
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("nets") / "nets.py"
    file.write_text(NETS)
    return file


@pytest.fixture(scope="module")
def words(nets: Path) -> tuple[Any, ...]:
    model = ("--model", f"{nets}:Net", "--task", "segmentation+depth")
    return ("train", *model, *SCENES, "--epochs", 1, "--recalibrate", 1, "--quiet")


@pytest.fixture(scope="module")
def two_heads(words: tuple[Any, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_heads")
    assert call(*words, "--policy", "none", "--output", folder) == 0
    return folder


def distillation(folder: Path) -> float:
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    value: float = record["history"][0]["distillation"]
    return value


def test_teachers_of_each_task_or_of_all(
    run: Run, words: Any, two_heads: Path, float_run: Path, depth_run: Path, tmp_path: Path
) -> None:
    whole, labels = two_heads / "float.safetensors", float_run / "float.safetensors"
    depth = depth_run / "binary.safetensors"

    def train(name: str, *more: object) -> float:
        answer = run(*words, *more, "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        return distillation(tmp_path / name)

    both = train("whole", "--teacher", whole)
    assert (
        train("head", "--teacher", f"segmentation={whole}", "--teacher", f"depth={whole}") == both
    )
    own = ("--teacher", f"segmentation={labels}", "--teacher", f"depth={depth}")
    alone = train("own", *own)
    only = train("only", "--teacher", f"depth={depth}")
    assert alone > only > 0
    weight = ("--distill", "segmentation.weight=0", "--distill", "segmentation.channel_weight=0")
    assert train("weighed", *own, *weight) == pytest.approx(only, rel=1e-5)
    assert train("features", *own, "--distill", "features=1") > alone


def test_settings_of_the_losses() -> None:
    recipe = {"segmentation": {"weight": 1.0}, "depth": {"tolerance": 0.5}}
    both, features = distillation_losses(
        "segmentation+depth", [("weight", 3), ("depth.scales", 2)], recipe
    )
    assert features is None
    assert (both["segmentation"].weight, both["depth"].weight) == (3, 3)
    assert (both["depth"].scales, both["depth"].tolerance) == (2, 0.5)
    one, features = distillation_losses("depth+edges", [("tolerance", 2), ("attention", 1)], {})
    assert list(one) == ["depth"]  # the other's are the recipe's
    assert features.attention == 1
    assert distillation_losses("depth+edges", [], recipe) == (None, None)
    assert distillation_losses("depth", [("depth.scales", 2)], recipe)[0].scales == 2


def test_resumed_with_the_same_teachers(
    run: Run, words: Any, float_run: Path, depth_run: Path, tmp_path: Path
) -> None:
    own = ("--teacher", f"segmentation={float_run / 'float.safetensors'}")
    depth = ("--teacher", f"depth={depth_run / 'binary.safetensors'}")
    folder = tmp_path / "run"
    assert run(*words, *own, *depth, "--output", folder).code == 0
    assert run(*words, *own, *depth, "--output", folder, "--resume").code == 0
    answer = run(*words, *own, "--output", folder, "--resume")
    assert answer.code == 1
    assert "was made with distillation.heads=['segmentation', 'depth']" in answer.err


def test_teachers_and_settings_that_cannot_be(
    run: Run, words: Any, two_heads: Path, tmp_path: Path
) -> None:
    file = two_heads / "float.safetensors"

    def error(*more: object) -> str:
        answer = run(*words, *more, "--output", tmp_path / "x")
        assert answer.code == 1
        return answer.err.strip()

    assert error("--teacher", file, "--teacher", f"depth={file}") == (
        f"error: teacher='{file}': names no task, as others do; give TASK=FILE for each, or for "
        "none of them; tasks are segmentation, depth"
    )
    assert error("--teacher", file, "--distill", "depth.temperature=2").startswith(
        "error: distill='depth.temperature': segmentation+depth has no such setting; did you mean "
    )
    assert "'tolerance'" in error("--teacher", file, "--distill", "tolerances=1")
    depth = ("--teacher", f"depth={file}", "--distill", "segmentation.weight=2")
    assert error(*depth) == (
        "error: distillation='segmentation': has no teacher; give it one besides those of depth"
    )
