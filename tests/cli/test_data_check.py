"""binarize data check: all that is wrong with a data set, from one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROWS, COLUMNS = 12, 16


def save(path: Path, values: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def picture(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def labels(*values: int) -> np.ndarray:
    """Equal stripes of these labels."""
    return np.repeat(np.array(values, np.uint8), ROWS * COLUMNS // len(values)).reshape(
        ROWS, COLUMNS
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four images with masks of three classes."""
    for index in range(4):
        save(tmp_path / "images" / f"{index}.png", picture())
        save(tmp_path / "masks" / f"{index}.png", labels(0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    return tmp_path


def test_nothing_is_wrong(photos: Path, run) -> None:
    answer = run("data", "check", photos, "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.json["problems"] == {}
    assert answer.json["advice"] == "nothing is wrong: binarize train takes the same options"
    (train,) = answer.json["splits"]
    assert train["sizes"] == {"16x12": 4}
    assert train["files"] == {"image": {"PNG RGB 8 bits": 4}, "mask": {"PNG L 8 bits": 4}}
    assert train["classes"]["c"] == {"pixels": 4 * 48, "share": 0.25, "images": 4}
    assert train["ignored"] == 0.25
    assert train["depth"] is None
    same = run("data", "check", "--data", "folder", "--root", photos, "--json", "--quiet")
    assert same.json["splits"] == answer.json["splits"]


def test_everything_that_is_wrong_is_reported_at_once(photos: Path, run) -> None:
    (photos / "images" / "0.png").write_bytes(b"damaged")
    (photos / "masks" / "0.png").write_bytes(b"damaged too")
    save(photos / "masks" / "1.png", labels(0, 7))
    save(photos / "masks" / "2.png", np.zeros((6, 6), np.uint8))
    save(photos / "images" / "alone.jpg", picture())
    save(photos / "masks" / "lost.png", labels(0))
    save(photos / "masks" / "3.png", labels(0, 1))
    answer = run("data", "check", photos, "--json", "--quiet")
    assert answer.code == 1
    found = {kind: [] for kind in answer.json["problems"]}
    for problem in answer.json["splits"][0]["problems"]:
        found[problem["kind"]].append(problem["text"])
    assert answer.json["problems"] == {kind: len(texts) for kind, texts in found.items()}
    assert len(found["unreadable"]) == 2
    assert "0.png" in found["unreadable"][0]
    assert found["pair"][0].endswith("image alone.jpg has no mask; add alone.png there, or remove "
                                     "the image")  # fmt: skip
    assert found["pair"][1].endswith("mask lost.png has no image; add the image lost, or remove "
                                     "the mask")  # fmt: skip
    assert "its size (6, 6) is not the image's (12, 16)" in found["pair"][2]
    assert found["label"][0].startswith("label=7: ")
    assert found["class"] == ["no pixel is labelled 'c'"]
    assert answer.json["advice"] == (
        "to do: replace 2 unreadable files; complete or correct 3 pairs; correct the labels of 1 "
        "file, or the number of classes; add pixels of 1 class, or train with --allow-empty-classes"
    )


def test_what_people_see(photos: Path, run) -> None:
    exif = Image.Exif()
    exif[274] = 6
    save(photos / "images" / "0.jpg", picture(COLUMNS, ROWS), exif=exif)
    (photos / "images" / "0.png").unlink()
    Image.fromarray(picture()).convert("L").save(photos / "images" / "1.png")
    for index in range(4, 16):
        save(photos / "images" / f"{index}.png", picture())
    answer = run("data", "check", photos, "--quiet")
    assert answer.code == 1
    assert "train: 4 images" in answer.out
    assert "PNG RGB 8 bits (2)" in answer.out
    assert "tag 6 (1); images are turned upright when read" in answer.out
    assert "16x12 (4)" in answer.out  # upright
    assert "pair: ... and 4 more (--json lists all)" in answer.out
    assert answer.out.splitlines()[-1] == "to do: complete or correct 12 pairs"


@pytest.mark.parametrize(("values", "classes"), [((0, 255), 2), ((0, 1), 2), ((0, 1, 4, 255), 5)])
def test_the_number_of_classes_is_found(
    photos: Path, values: tuple[int, ...], classes: int, run
) -> None:
    (photos / "classes.txt").unlink()
    for index in range(4):
        save(photos / "masks" / f"{index}.png", labels(*values))
    answer = run("data", "check", photos, "--json", "--allow-empty-classes")
    assert answer.code == 0, answer.err
    assert f"note: {classes} classes, judged by the labels" in answer.err
    assert len(answer.json["splits"][0]["classes"]) == classes


def test_depth(tmp_path: Path, run) -> None:
    depth = np.zeros((ROWS, COLUMNS), np.uint16)
    depth[:6], depth[6] = 1500, 20_000
    for index in range(2):
        save(tmp_path / "images" / f"{index}.png", picture())
        save(tmp_path / "depth" / f"{index}.png", depth)
    words = ("data", "check", tmp_path, "--json", "--quiet")
    answer = run(*words, "--depth-scale", 0.001)
    assert answer.code == 0, answer.err
    assert answer.json["task"] == "depth"
    facts = answer.json["splits"][0]["depth"]
    assert [facts["nearest"], facts["farthest"]] == pytest.approx([1.5, 20])
    assert [facts["pixels"], facts["unknown"], facts["beyond"]] == [2 * 192, 2 * 80, 2 * 16]
    answer = run(*words, "--depth-scale", 1)
    assert answer.json["splits"][0]["problems"][0]["text"] == "no depth is from 0 to 10 m"
    answer = run(*words)
    assert answer.code == 1
    assert answer.json["splits"][0]["problems"][0]["text"].startswith("depth_scale=None: the depth")


def test_splits_and_images_alone(photos: Path, tmp_path: Path, run) -> None:
    save(photos / "val" / "images" / "x.png", picture())
    save(photos / "val" / "masks" / "x.png", labels(0))
    answer = run("data", "check", photos, "--json", "--quiet")
    # Only what is trained on needs every class.
    assert answer.code == 0
    assert [split["split"] for split in answer.json["splits"]] == ["train", "val"]
    alone = run("data", "check", photos / "images", "--json", "--quiet")
    assert alone.code == 0
    assert alone.json["splits"][0]["images"] == 4
    assert run("data", "check", photos, "--split", "val", "--json").json["splits"][0]["images"] == 1


def test_public_sets(tmp_path: Path, run) -> None:
    for index in range(2):
        save(tmp_path / "train" / "images" / f"{index}.jpg", picture())
        save(tmp_path / "train" / "labels" / f"{index}.png", labels(0, 11))
    answer = run("data", "check", "--data", "camvid", "--root", tmp_path, "--json", "--quiet")
    assert answer.code == 1
    train, val, test = answer.json["splits"]
    assert (train["images"], val["images"]) == (2, 0)
    assert answer.json["problems"] == {"class": 10, "other": 2}
    assert "no such folder" in val["problems"][0]["text"]


def test_mistakes(tmp_path: Path, run) -> None:
    assert run("data", "check").err == (
        "error: --data: give a folder, or a data set by name; FOLDER, or --data NAME\n"
    )
    answer = run("data", "check", tmp_path / "nowhere")
    assert answer.code == 1
    assert answer.err.endswith("no such folder; give the path of the data set\n")
    assert "usage: binarize data" in run("data").out
