"""Train and eval: what they write, that it agrees, and that a resumed run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from binarize.cli.networks import Recipe, build
from binarize.file import load
from binarize.train import checkpoint

NET = ("--model", "demo:UNet", "--model-arg", "widths=[8,16]")
SCENES = ("--data", "scenes", "--count", "8", "--size", "32x24", "--batch-size", "4")


def record(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_a_float_run_leaves_network_numbers_and_checkpoints(float_run: Path) -> None:
    names = {path.name for path in float_run.iterdir()}
    assert names == {
        *("float.safetensors", "metrics.json", "last.pt", "best.pt", "history.json", "curves.png")
    }
    told = record(float_run)
    assert told["command"][0] == "binarize"
    assert [entry["epoch"] for entry in told["history"]] == [1, 2]
    assert 0 <= told["test"]["mIoU"] <= 1
    assert 0 <= told["val"]["pixAcc"] <= 1
    assert len(told["test"]["IoU"]) == 6
    assert told["bytes"] == (float_run / "float.safetensors").stat().st_size
    assert told["description"]["settings"]["size"] == [24, 32]
    assert told["options"]["epochs"] == 2


def test_the_binary_run_learnt_from_the_float_one(binary_run: Path) -> None:
    told = record(binary_run)
    assert told["history"][0]["distillation"] > 0
    assert told["binary_share"] > 0.8
    assert told["files"]["model"] == "binary.safetensors"
    assert told["bytes"] < 40_000


@pytest.mark.parametrize("kind", ["float", "binary", "depth"])
def test_eval_gives_the_numbers_of_the_training(
    kind: str, run, float_run: Path, binary_run: Path, depth_run: Path
) -> None:
    folder = {"float": float_run, "binary": binary_run, "depth": depth_run}[kind]
    told = record(folder)
    answer = run("eval", folder / told["files"]["model"], "--data", "scenes", "--count", 8,
                 "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json["size"] == "32x24"
    assert answer.json["binary"] == (kind != "float")
    assert answer.json["task"] == ("depth" if kind == "depth" else "segmentation")
    for name in ("δ1", "AbsRel", "RMSE") if kind == "depth" else ("mIoU", "pixAcc"):
        assert answer.json["metrics"][name] == pytest.approx(told["test"][name], abs=1e-6)
        assert name in answer.err


def test_eval_prints_a_table_without_json(run, float_run: Path) -> None:
    answer = run("eval", float_run / "float.safetensors", "--data", "scenes", "--count", 8)
    assert answer.code == 0
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[0] == ["metric", "test"]
    assert lines[1][0] == "mIoU"


def test_resume_goes_on_as_if_nothing_had_happened(run, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ("train", *NET, *SCENES, "--policy", "none", "--epochs", 2, "--json")
    expected = run(*words, "--output", whole).json

    kept = checkpoint.write_checkpoint

    def stop(path: Path, state: dict) -> None:
        kept(path, state)
        if path.name == "last.pt":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", stop)
        stopped = run(*words, "--output", parts)
    assert stopped.code == 130
    assert f"--resume continues from {parts}/last.pt" in " ".join(stopped.err.split())
    assert not (parts / "float.safetensors").exists()
    resumed = run(*words, "--output", parts, "--resume")
    assert resumed.code == 0
    assert "epoch 1/2" not in resumed.err
    assert resumed.json["test"] == expected["test"]
    ours, theirs = (folder / "float.safetensors" for folder in (parts, whole))
    resumed_tensors = load_file(ours)
    for name, value in load_file(theirs).items():
        assert torch.equal(resumed_tensors[name], value), name


def test_an_interruption_that_clean_up_hides_before_the_first_checkpoint(
    run, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("half closed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", stop)
        stopped = run(
            "train", *NET, *SCENES, "--policy", "none", "--epochs", 2, "--output", tmp_path
        )
    assert stopped.code == 130
    assert stopped.err.splitlines()[-2:] == [
        "stopped before the first checkpoint; there is nothing to resume",
        "interrupted",
    ]


def test_a_folder_that_holds_a_run(run, tmp_path: Path) -> None:
    words = ("train", *NET, *SCENES, "--policy", "none", "--epochs", 1, "--output", tmp_path)
    assert run(*words).code == 0
    kept = {file: file.read_bytes() for file in tmp_path.iterdir()}
    refused = run(*words, "--lr", 0.1)
    assert refused.code == 1
    assert refused.err.splitlines() == [
        f"error: output='{tmp_path}': already holds a run (last.pt); give --resume to continue "
        "it, --overwrite to start over, or another folder"
    ]
    changed = run(*words, "--lr", 0.1, "--resume")
    assert changed.code == 1
    assert "was made with lr=" in changed.err
    assert "this run has 0.1; use the same lr" in changed.err
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == kept
    both = run(*words, "--resume", "--overwrite")
    assert (both.code, "omit one of them" in both.err) == (1, True)
    again = run(*words, "--lr", 0.1, "--overwrite")
    assert again.code == 0, again.err
    assert "IoU floor" in again.out  # each class by its name
    assert (tmp_path / "last.pt").read_bytes() != kept[tmp_path / "last.pt"]


def test_train_json_is_the_record(run, tmp_path: Path) -> None:
    answer = run("train", *NET, *SCENES, "--epochs", 1, "--output", tmp_path, "--json",
                 "--balance", 0.5, "--keep", "up.*")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json == record(tmp_path)
    assert "epoch 1/1" in answer.err
    assert answer.json["binary_share"] < 0.6


def test_a_saved_binary_network_can_be_trained_further(
    run, binary_run: Path, tmp_path: Path
) -> None:
    answer = run("train", "--model", binary_run / "binary.safetensors", *SCENES, "--epochs", 1,
                 "--output", tmp_path, "--json", "--quiet")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json["files"]["model"] == "binary.safetensors"
    assert answer.err == ""


def test_a_network_from_a_file_of_ones_own(run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),\n"
        "        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),\n"
        "        nn.Conv2d(width, num_classes, 1))\n"
    )
    spec = f"{tmp_path / 'nets.py'}:make"
    answer = run("train", "--model", spec, "--model-arg", "width=6", *SCENES, "--epochs", 1,
                 "--output", tmp_path / "out", "--json", "--quiet")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json["description"]["recipe"]["arguments"] == {"width": 6}
    file = tmp_path / "out" / "binary.safetensors"
    assert run("report", file, "--json", "--quiet").json["file_bytes"] == file.stat().st_size
    # Away from its record the file knows its network, as long as that is where it was.
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    assert run("report", alone).code == 0
    (tmp_path / "nets.py").rename(tmp_path / "elsewhere.py")
    answer = run("report", alone)
    assert answer.code == 1
    assert "--model" in answer.err
    spec = f"{tmp_path / 'elsewhere.py'}:make"
    again = run("report", alone, "--model", spec, "--model-arg", "width=6", "--classes", 6,
                "--json", "--quiet")  # fmt: skip
    assert again.code == 0, again.err


def test_a_folder_of_images_and_masks(run, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (tmp_path / split / part).mkdir(parents=True)
        for i in range(4):
            image = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            mask = (image[..., 0] > 127).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    answer = run("train", *NET, "--data", "folder", "--root", tmp_path, "--classes", 2, "--size",
                 "32x24", "--batch-size", 2, "--epochs", 1, "--output", tmp_path / "out",
                 "--json", "--quiet")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "val" in answer.json
    assert "test" not in answer.json


def test_only_the_first_process_speaks_and_writes(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")  # as `accelerate launch` tells the second process
    answer = run("train", *NET, *SCENES, "--epochs", 1, "--output", tmp_path, "--json")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert not (tmp_path / "metrics.json").exists()
    assert not list(tmp_path.glob("*.safetensors"))


def test_loading_gives_what_was_trained(binary_run: Path) -> None:
    recipe = Recipe(**record(binary_run)["description"]["recipe"])
    student = load(binary_run / "binary.safetensors", model=build(recipe))
    assert student(torch.zeros(1, 3, 24, 32)).shape == (1, 6, 24, 32)
