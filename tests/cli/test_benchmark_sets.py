"""The command line on public data sets, as tiny trees of their layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = ("--model", "demo:UNet", "--model-arg", "widths=[4,8]", "--quiet")


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    top = tmp_path / "cityscapes"
    labels = np.full((32, 64), 7, np.uint8)
    labels[16:] = 26
    for split in ("train", "val"):
        for index in range(4 if split == "train" else 1):
            stem = f"{split}/ulm/ulm_{index:06d}_000019"
            picture = np.random.default_rng(index).integers(0, 256, (32, 64, 3), dtype=np.uint8)
            save(top / "leftImg8bit" / f"{stem}_leftImg8bit.png", picture)
            save(top / "gtFine" / f"{stem}_gtFine_labelIds.png", labels)
    return top


def test_training_and_evaluation(cityscapes: Path, tmp_path: Path, run) -> None:
    data = ("--data", "cityscapes", "--root", cityscapes, "--allow-empty-classes")
    out = tmp_path / "out"
    answer = run(
        *("train", *data, *SMALL, "--size", "32x32", "--fit", "crop", "--epochs", 1),
        *("--batch-size", 2, "--zoom", 2, "--shrink", 0.5, "--rotate", 2, "--output", out),
        "--json",
    )
    assert answer.code == 0, answer.err
    assert set(answer.json) >= {"val"}
    assert "test" not in answer.json
    # The file knows how its images were cut.
    measured = run("eval", out / "binary.safetensors", *data, "--json", "--quiet")
    assert measured.code == 0, measured.err
    assert measured.json["split"] == "val"
    assert measured.json["size"] == "32x32"
    assert measured.json["metrics"]["mIoU"] == pytest.approx(answer.json["val"]["mIoU"], abs=1e-3)


def test_forty_classes_of_nyuv2(tmp_path: Path, run) -> None:
    top = tmp_path / "nyuv2"
    labels = np.full((480, 640), 39, np.uint8)
    labels[45:471, 41:601] = np.arange(560) // 14
    for stem in ("0001", "0002"):
        save(top / "images" / f"{stem}.jpg", np.full((480, 640, 3), 90, np.uint8))
        save(top / "depth" / f"{stem}.png", np.full((480, 640), 51, np.uint8))
        save(top / "labels" / f"{stem}.png", labels)
    (top / "train.txt").write_text("0001\n")
    (top / "test.txt").write_text("0002\n")
    data = ("--data", "nyuv2", "--root", top, "--task", "segmentation")
    words = ("train", *data, *SMALL, "--size", "80x32", "--epochs", 1, "--output", tmp_path / "out")
    words = (*words, "--policy", "none", "--augment", "bts")
    answer = run(*words, "--classes", 40, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["options"]["augment"] == "bts"
    assert len(answer.json["test"]["IoU"]) == 40
    assert answer.json["description"]["settings"]["classes"][-1] == "other prop"
    # The file knows its classes, and the check counts them.
    measured = run("eval", tmp_path / "out" / "float.safetensors", *data, "--json", "--quiet")
    assert measured.code == 0, measured.err
    assert measured.json["classes"][7] == "door"
    assert run("data", "check", *data, "--classes", 40, "--quiet").code == 0
    answer = run(*words, "--classes", 20, "--overwrite")
    assert answer.err == "error: classes=20: NYUv2 has 13 or 40 classes; use one of them\n"


def test_options_of_other_sets(cityscapes: Path, run) -> None:
    words = ("eval", "x.safetensors", "--data", "cityscapes", "--root", cityscapes)
    answer = run("train", *words[2:], *SMALL, "--output", cityscapes / "o", "--sbd", "x")
    assert answer.code == 1
    assert answer.err == "error: sbd='x': cityscapes has no such option; omit --sbd\n"


def test_what_does_not_fit_the_memory_stays_on_disk(
    cityscapes: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("binarize.processor.free_memory", lambda: 1000)
    data = ("--data", "cityscapes", "--root", cityscapes, "--allow-empty-classes")
    answer = run(
        *("train", *data, *SMALL[:-1], "--size", "32x32", "--epochs", 1, "--batch-size", 2),
        *("--output", tmp_path / "out"),
    )
    assert answer.code == 0, answer.err
    assert "note: 4 images need 0.0 GB of the 0.0 GB of free memory: they are read" in answer.err


def test_free_memory_may_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from binarize import processor

    found = processor.free_memory()
    assert found is None or found > 1e7
    monkeypatch.setattr(processor, "_listed", lambda *_: "")
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert processor.free_memory() is None


def test_predictions_keep_the_aspect_ratio_that_training_kept() -> None:
    from binarize.data.images import covering

    assert covering(60, 120, (32, 32)) == (32, 64)
    assert covering(60, 130, (32, 32)) == (32, 96)
    assert covering(100, 50, (32, 64)) == (128, 64)
    assert covering(60, 130, (32, 32), multiple=1) == (32, 69)
