"""Train from a teacher in other ways than by its logits on labelled images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

NET = ("--model", "demo:UNet", "--model-arg", "widths=[8,16]", "--classes", 6)
FAST = ("--size", "32x24", "--batch-size", 4, "--epochs", 1, "--recalibrate", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        values = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(folder / f"{index}.png")
    return folder


def _history(folder: Path) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["history"]


def test_a_folder_of_photos_and_a_teacher(
    run, photos: Path, float_run: Path, tmp_path: Path
) -> None:
    words = ("train", *NET, "--data", "folder", "--root", photos, *FAST, "--output", tmp_path / "a")
    answer = run(*words, "--teacher", float_run / "float.safetensors")
    assert answer.code == 0, answer.err
    assert "4 images without labels" in answer.err
    (first,) = _history(tmp_path / "a")
    assert first["loss"] == first["distillation"] > 0
    answer = run(*words[:-1], tmp_path / "b")
    assert answer.code == 1
    assert "images" in answer.err


def test_photos_beside_labelled_images(run, photos: Path, float_run: Path, tmp_path: Path) -> None:
    words = ("train", *NET, "--data", "scenes", "--count", 4, *FAST, "--unlabelled", photos)
    answer = run(*words, "--teacher", float_run / "float.safetensors", "--output", tmp_path / "a")
    assert answer.code == 0, answer.err
    (first,) = _history(tmp_path / "a")
    assert first["loss"] > first["distillation"] > 0
    answer = run(*words, "--output", tmp_path / "b")
    assert answer.code == 1
    assert "unlabelled" in answer.err
    assert "needs a teacher" in answer.err


def test_feature_maps_by_option_and_by_recipe(run, float_run: Path, tmp_path: Path) -> None:
    words = ("train", *NET, "--data", "scenes", "--count", 4, *FAST)
    words = (*words, "--teacher", float_run / "float.safetensors")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'name = "mine"\npurpose = "p"\n[distillation.features]\nfeatures = 0.5\nattention = 2.0\n'
    )
    losses = {}
    for name, more in {
        "plain": (),
        "options": ("--distill", "features=0.5", "--distill", "attention=2"),
        "recipe": ("--recipe", recipe),
    }.items():
        answer = run(*words, *more, "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        losses[name] = _history(tmp_path / name)[0]["distillation"]
    assert losses["options"] == losses["recipe"] > losses["plain"]
    answer = run(*words, "--distill", "layers=nowhere", "--output", tmp_path / "none")
    assert answer.code == 1
    assert "nowhere" in answer.err
    answer = run(*words, "--distill", "feature=1", "--output", tmp_path / "none")
    assert answer.code == 1
    assert "features" in answer.err
    recipe.write_text('name = "mine"\npurpose = "p"\n[distillation.features]\nfeatures = -1\n')
    answer = run("recipes", "validate", recipe)
    assert answer.code != 0
    assert "distillation.features" in answer.out + answer.err


def test_schedules_by_option(run, tmp_path: Path) -> None:
    words = ("train", *NET, "--data", "scenes", "--count", 4, *FAST[:-4], "--epochs", 2)
    more = ("--two-steps", 0.5, "--lr-factor", "thresholds=0.5", "--flips", "--save-every", "10min")
    answer = run(*words, *more, "--keep-checkpoints", 2, "--output", tmp_path / "a")
    assert answer.code == 0, answer.err
    first, second = _history(tmp_path / "a")
    assert first["float_weights"]
    assert "float_weights" not in second
    assert set(second["flips"])
    assert {file.name for file in (tmp_path / "a").glob("epoch-*.pt")} == {
        "epoch-0001.pt",
        "epoch-0002.pt",
    }
    answer = run(*words, "--bop", "rate=0.01", "--flips", "--output", tmp_path / "bop")
    assert answer.code == 0, answer.err
    for wrong in (
        *(("--lr-factor", "latents=1"), ("--two-steps", 2), ("--save-every", "soon")),
        *(("--progressive",), ("--bop", "speed=1"), ("--bop", "threshold=-1")),
    ):
        answer = run(*words, *wrong, "--output", tmp_path / "b")
        assert answer.code == 1
        named = {"--bop": wrong[-1].partition("=")[0]} if wrong[0] == "--bop" else {}
        assert named.get(wrong[0], wrong[0][2:].partition("-")[0]) in answer.err
