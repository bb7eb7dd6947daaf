"""A network with several heads: trained, distilled from one teacher or one per task, shown."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from binarize.cli.distill import distillation_losses
from binarize.cli.report_page import prediction_section
from binarize.cli.sources import Source, open_source
from binarize.errors import BinarizeError
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


def test_a_picture_of_each_head(run: Run, two_heads: Path, depth_run: Path, tmp_path: Path) -> None:
    file, photo = two_heads / "float.safetensors", tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (30, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    answer = run("predict", file, photo, "--output", tmp_path, "--side-by-side", "--quiet")
    assert answer.code == 0, answer.err
    source, teacher = open_source(str(file)), open_source(str(depth_run / "binary.safetensors"))
    shown = pictures(prediction_section({"float": source}, photo).content)
    assert list(shown) == ["input", "segmentation, float", "depth, float"]
    for head in ("segmentation", "depth"):
        with Image.open(tmp_path / f"photo_{head}.png") as written:
            assert same(shown[f"{head}, float"], written)
    with Image.open(tmp_path / "photo_side_by_side.png") as together:
        assert together.width > 3 * 44  # image, classes, depth and gaps
    # A teacher of one task is shown in its row only, depths in the same colours.
    section = prediction_section({"teacher": teacher, "float": source}, photo)
    both = pictures(section.content)
    assert sorted(both) == ["depth, float", "depth, teacher", "input", "segmentation, float"]
    assert same(both["segmentation, float"], shown["segmentation, float"])
    assert not same(both["depth, float"], shown["depth, float"])
    page = tmp_path / "page.html"
    words = ("--html", page, "--image", photo, "--teacher", depth_run / "binary.safetensors")
    answer = run("report", file, *words, "--quiet")
    assert answer.code == 0, answer.err
    found = pictures(page.read_text(encoding="utf-8"))
    assert [name for name in found if "teacher" in name] == ["depth, float (teacher)"]


@pytest.mark.parametrize("task", ["normals", "edges"])
def test_other_dense_tasks_have_a_picture(task: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (44, 30), (200, 100, 50)).save(photo)
    network = torch.nn.Conv2d(3, 3 if task == "normals" else 1, 1).eval()
    source = Source(network, None, False, {"task": task, "size": [24, 32]})
    shown = pictures(prediction_section({"float": source}, photo).content)
    assert list(shown) == ["input", "float"]
    assert shown["float"].size == (44, 30)
    classes = Source(network, None, False, {"task": "classification"})
    with pytest.raises(BinarizeError, match="the task 'classification' has no picture; omit"):
        prediction_section({"float": classes}, photo)


def pictures(page: str) -> dict[str, Image.Image]:
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)">', page)
    return {title: Image.open(io.BytesIO(base64.b64decode(data))) for data, title in found}


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.array(one.convert("RGB")), np.array(other.convert("RGB")))
