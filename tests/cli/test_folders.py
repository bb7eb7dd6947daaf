"""From a folder of images and masks to masks of new images, by the command line alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NET = ("--model", "demo:UNet", "--model-arg", "widths=[8,16]", "--policy", "none", "--quiet")


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright block, and where it is."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 90, (24, 32, 3), dtype=np.uint8)
    mask = np.zeros((24, 32), np.uint8)
    top, left = random.integers(2, 10, 2)
    mask[top : top + 10, left : left + 14] = 1
    image[mask == 1] += 160
    return image, mask


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images without splits, their masks 0 and 255."""
    root = tmp_path / "data"
    for index in range(8):
        image, mask = scene(index)
        write(root / "images" / f"{index}.png", image)
        write(root / "masks" / f"{index}.png", mask * 255)
    return root


def train(run, root: Path, output: Path, *words: object):
    return run("train", *NET, "--data", "folder", "--root", root, "--size", "32x24",
               "--batch-size", 4, "--epochs", 15, "--lr", 0.02, "--output", output,
               *words)  # fmt: skip


def test_one_class(run, photos: Path, tmp_path: Path) -> None:
    (photos / "classes.txt").write_text("block\n")
    answer = train(run, photos, tmp_path / "run")
    assert answer.code == 0, answer.err
    file = tmp_path / "run" / "float.safetensors"
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["description"]["settings"]["classes"] == ["block"]
    assert record["description"]["settings"]["mask_values"] == [0, 255]
    answer = run("predict", file, photos / "images", "--output", tmp_path / "out", "--quiet")
    assert answer.code == 0, answer.err
    wanted = scene(0)[1]
    assert (pixels(tmp_path / "out" / "0.png") == wanted).mean() > 0.9
    assert pixels(tmp_path / "out" / "legend.png").shape[0] > 36  # background and block
    answer = run("eval", file, "--data", "folder", "--root", photos)
    assert answer.code == 0, answer.err
    assert "all images are used" in answer.err
    assert "IoU background" in answer.out
    assert "IoU block" in answer.out
    answer = run("eval", file, "--data", "folder", "--root", photos, "--json", "--quiet")
    assert answer.json["split"] == "all"
    assert answer.json["metrics"]["IoU"][1] > 0.7
    answer = run("eval", file, "--data", "folder", "--root", photos, "--split", "test")
    assert answer.code == 1
    assert "has no folder test" in answer.err


def test_what_is_found_and_missing_is_reported(run, photos: Path, tmp_path: Path) -> None:
    words = ("--data", "folder", "--root", photos, "--size", "32x24", "--epochs", 1)
    answer = run("train", *NET[:-1], *words, "--classes", 2, "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "masks hold two values: 0 is class 0, 255 is class 1" in answer.err
    assert "without val/ or test/ in the data set, there is no validation" in answer.err
    answer = run("train", *NET, *words, "--classes", 3, "--output", tmp_path / "three")
    assert answer.code == 1
    assert "no pixel is labelled 'class 1', nor 'class 2'" in answer.err
    assert "--mask-values" in answer.err


def test_several_labels(run, photos: Path, tmp_path: Path) -> None:
    for index in range(8):
        mask = scene(index)[1]
        (photos / "masks" / f"{index}.png").unlink()
        write(photos / "masks" / "block" / f"{index}.png", mask * 255)
        write(photos / "masks" / "the rest" / f"{index}.png", 255 - mask * 255)
    (photos / "classes.txt").write_text("block\nthe rest\n")
    answer = train(run, photos, tmp_path / "run", "--task", "multilabel")
    assert answer.code == 0, answer.err
    file = tmp_path / "run" / "float.safetensors"
    answer = run("predict", file, photos / "images" / "0.png", "--output", tmp_path / "out",
                 "--json", "--quiet")  # fmt: skip
    assert answer.code == 0, answer.err
    wanted = scene(0)[1]
    assert (pixels(tmp_path / "out" / "0_block.png") == wanted).mean() > 0.9
    assert (pixels(tmp_path / "out" / "0_the_rest.png") == 1 - wanted).mean() > 0.9
    assert pixels(tmp_path / "out" / "0.png").shape == (24, 32, 3)


def test_depth_in_millimetres(run, photos: Path, tmp_path: Path) -> None:
    for index in range(8):
        mask = scene(index)[1].astype(np.uint16)
        write(photos / "depth" / f"{index}.png", np.where(mask, 1500, 4000).astype(np.uint16))
    words = ("--task", "depth", "--max-depth", 5)
    answer = train(run, photos, tmp_path / "no", *words)
    assert answer.code == 1
    assert "give metres per unit, e.g. 0.001 for millimetres (--depth-scale)" in answer.err
    answer = train(run, photos, tmp_path / "no", *words, "--depth-scale", 1)
    assert answer.code == 1
    assert "no depth is from 0 to 5 m" in answer.err
    answer = train(run, photos, tmp_path / "run", *words, "--depth-scale", 0.001)
    assert answer.code == 0, answer.err
    answer = run("predict", tmp_path / "run" / "float.safetensors", photos / "images" / "0.png",
                 "--output", tmp_path / "out", "--raw", "--quiet")  # fmt: skip
    assert answer.code == 0, answer.err
    mask, depth = scene(0)[1] == 1, pixels(tmp_path / "out" / "0_mm.png")
    assert np.median(depth[mask]) < 2300 < np.median(depth[~mask])


def test_the_layout_is_in_the_help(run) -> None:
    for command in ("train", "eval"):
        text = run(command, "--help").out
        for word in ("images/ and masks/", "train/, val/ and test/", "classes.txt", "labels/"):
            assert word in " ".join(text.split()), word
