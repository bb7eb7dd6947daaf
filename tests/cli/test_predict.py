"""Predict: what the pictures hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from binarize.cli.sources import open_file
from binarize.data import Scenes
from binarize.data.rendering import edge_image, normal_image


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures of other sizes than the training's."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scenes = Scenes(2, (40, 64), seed=9)
    for i in range(2):
        image = scenes.denormalize(scenes[i]["image"]).permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / f"photo{i}.png")
    return folder


def test_masks_hold_class_indices_and_look_like_the_palette(
    run, binary_run: Path, photos: Path, tmp_path: Path
) -> None:
    file = binary_run / "binary.safetensors"
    answer = run("predict", file, photos, "--output", tmp_path / "out", "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.json["task"] == "segmentation"
    first = answer.json["results"][0]
    with Image.open(first["result"]) as mask:
        assert (mask.mode, mask.size) == ("P", (64, 40))
        indices, shown = np.array(mask), np.array(mask.convert("RGB"))
    assert {str(i) for i in np.unique(indices)} == set(first["pixels"])
    settings = open_file(str(file)).settings
    colors = np.array(settings["palette"])
    assert (shown == colors[indices]).all()
    assert (tmp_path / "out" / "legend.png").is_file()


def test_masks_are_the_network_s_answer(run, float_run: Path, photos: Path, tmp_path: Path) -> None:
    source = open_file(str(float_run / "float.safetensors"))
    run("predict", float_run / "float.safetensors", photos / "photo0.png", "--size", "64x40",
        "--output", tmp_path / "out")  # fmt: skip
    scene = Scenes(2, (40, 64), seed=9)[0]["image"]
    with torch.no_grad():
        expected = source.network(scene[None]).argmax(1)[0].numpy()
    got = pixels(tmp_path / "out" / "photo0.png")
    # The picture went through 8 bits once more, which may turn a pixel between two classes.
    assert (got == expected).mean() > 0.99


def test_depth_comes_in_colours_and_in_millimetres(
    run, depth_run: Path, photos: Path, tmp_path: Path
) -> None:
    answer = run("predict", depth_run / "binary.safetensors", photos, "--output", tmp_path / "out",
                 "--raw", "--json", "--quiet")  # fmt: skip
    assert answer.code == 0, answer.err
    for result in answer.json["results"]:
        near, far = result["metres"]
        assert 0 < near <= far <= 10
        raw = pixels(result["raw"])
        assert raw.dtype == np.uint16
        assert abs(int(raw.min()) - near * 1000) <= 1
        assert pixels(result["result"]).shape == (40, 64, 3)


def test_side_by_side_shows_the_picture_too(
    run, float_run: Path, photos: Path, tmp_path: Path
) -> None:
    answer = run("predict", float_run / "float.safetensors", photos, "--side-by-side", "--output",
                 tmp_path / "out")  # fmt: skip
    assert answer.code == 0, answer.err
    assert pixels(tmp_path / "out" / "photo1.png").shape == (40, 64)
    shown = pixels(tmp_path / "out" / "photo1_side_by_side.png")
    assert shown.shape == (40, 64 + 4 + 64, 3)
    assert (shown[:, :64] == pixels(photos / "photo1.png")).all()
    assert "2 results in" in answer.out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("way", ["same", "spelling", "symlink", "folder link", "hard link"])
def test_images_are_never_replaced(
    run, float_run: Path, photos: Path, tmp_path: Path, way: str
) -> None:
    output = tmp_path / "out"
    if way in ("symlink", "hard link"):
        output.mkdir()
        link = output / "photo1.png"
        (link.symlink_to if way == "symlink" else link.hardlink_to)(photos / "photo1.png")
    elif way == "folder link":
        output.symlink_to(photos)
    else:
        output = photos if way == "same" else photos / ".." / "photos"
    before = contents(tmp_path)
    answer = run("predict", float_run / "float.safetensors", photos, "--output", output)
    assert answer.code == 1
    assert answer.out == ""
    assert "would overwrite" in answer.err
    assert "choose another folder" in answer.err
    assert contents(tmp_path) == before


def test_results_do_not_replace_each_other(
    run, depth_run: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "photo0.png").rename(photos / "photo1_MM.png")
    words = ("predict", depth_run / "binary.safetensors", photos, "--output", tmp_path / "out")
    answer = run(*words, "--raw")
    assert answer.code == 1
    assert "has the same name as" in answer.err
    assert not (tmp_path / "out").exists()
    assert run(*words).code == 0


def test_the_legend_is_no_image_s_result(
    run, float_run: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "photo0.png").rename(photos / "legend.png")
    answer = run("predict", float_run / "float.safetensors", photos, "--output", tmp_path / "out")
    assert answer.code == 1
    assert "the name of the legend" in answer.err
    assert not (tmp_path / "out").exists()


def test_damaged_images_are_skipped_and_reported(
    run, float_run: Path, photos: Path, tmp_path: Path
) -> None:
    whole = (photos / "photo0.png").read_bytes()
    (photos / "broken.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    words = ("predict", float_run / "float.safetensors", photos, "--output", tmp_path / "a/b")
    answer = run(*words, "--json", "--quiet")
    assert answer.code == 1
    assert [Path(r["image"]).stem for r in answer.json["results"]] == ["photo0", "photo1"]
    assert [Path(s["image"]).name for s in answer.json["skipped"]] == ["broken.png", "empty.jpg"]
    assert answer.err.count("error: skipped: file=") == 2
    written = {path.name for path in (tmp_path / "a/b").iterdir()}
    assert written == {"photo0.png", "photo1.png", "legend.png"}


def test_nothing_empty_is_left_behind(run, float_run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    answer = run("predict", float_run / "float.safetensors", photos / "broken.png", "--output",
                 tmp_path / "a/b")  # fmt: skip
    assert answer.code == 1
    assert "cannot be read as an image" in answer.err
    assert not (tmp_path / "a").exists()
    (tmp_path / "out").mkdir()  # was there before: it stays
    run("predict", float_run / "float.safetensors", photos / "broken.png", "--output",
        tmp_path / "out")  # fmt: skip
    assert (tmp_path / "out").is_dir()


def test_images_are_known_by_their_content(
    run, float_run: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "photo0.png").rename(photos / "photo0.upload")
    answer = run("predict", float_run / "float.safetensors", photos / "photo0.upload", "--output",
                 tmp_path / "out")  # fmt: skip
    assert answer.code == 0, answer.err
    assert pixels(tmp_path / "out" / "photo0.png").shape == (40, 64)


SEVERAL = """
import torch
from torch import nn


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        widths = {"segmentation": 6, "depth": 1, "normals": 3, "edges": 1}
        self.heads = nn.ModuleDict({k: nn.Conv2d(8, c, 1) for k, c in widths.items()})

    def forward(self, x):
        x = self.body(self.stem(x))
        return {name: head(x) for name, head in self.heads.items()}


def make():
    return Heads()
"""


def test_a_network_for_several_tasks_writes_a_result_for_each(
    run, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(SEVERAL)
    names = ["segmentation", "depth", "normals", "edges"]
    trained = run(
        *("train", "--data", "scenes", "--count", 4, "--size", "32x24", "--batch-size", 2),
        *("--epochs", 1, "--task", "+".join(names), "--model", f"{tmp_path / 'nets.py'}:make"),
        *("--output", tmp_path / "run", "--quiet"),
    )
    assert trained.code == 0, trained.err
    answer = run(
        *("predict", tmp_path / "run" / "binary.safetensors", photos, "--output", tmp_path / "out"),
        *("--side-by-side", "--raw", "--json", "--quiet"),
    )
    assert answer.code == 0, answer.err
    assert answer.json["task"] == "+".join(names)
    first = answer.json["results"][0]
    shapes = {name: pixels(first[f"result_{name}"]).shape for name in names}
    assert shapes == {
        "segmentation": (40, 64), "depth": (40, 64, 3), "normals": (40, 64, 3), "edges": (40, 64)
    }  # fmt: skip
    assert sum(first["pixels_segmentation"].values()) == 40 * 64
    low, high = first["metres_depth"]
    raw = pixels(first["raw_depth"])
    assert (raw.min(), raw.max()) == pytest.approx((1000 * low, 1000 * high), abs=1)
    assert first["pixels_edges"] == int((pixels(first["result_edges"]) >= 128).sum())
    # Unit vectors, in colours around the middle.
    vectors = pixels(first["result_normals"]) / 127.5 - 1
    assert np.linalg.norm(vectors, axis=-1) == pytest.approx(np.ones((40, 64)), abs=0.02)
    assert pixels(first["side_by_side"]).shape == (40, 5 * 64 + 4 * 4, 3)
    assert (tmp_path / "out" / "legend.png").is_file()


def test_what_has_no_picture(run, float_run: Path, photos: Path, tmp_path: Path) -> None:
    file = float_run / "float.safetensors"
    answer = run("predict", file, photos, "--output", tmp_path / "out", "--task", "classification")
    assert answer.code == 1
    assert "task='classification': it has no picture; give a network for" in answer.err
    assert not (tmp_path / "out").exists()


def test_colours_of_normals_and_greys_of_edges() -> None:
    axes = {(1, 0, 0): (255, 128, 128), (0, -1, 0): (128, 255, 128), (0, 0, -1): (128, 128, 255),
            (-1, 0, 0): (0, 128, 128), (0, 0, 0): (0, 0, 0)}  # fmt: skip
    normals = torch.tensor(list(axes), dtype=torch.float32).T.reshape(3, 1, -1)
    assert [tuple(color) for color in np.array(normal_image(normals))[0]] == list(axes.values())
    edges = torch.tensor([[[0.0, 0.5, 1.0]]])
    assert np.array(edge_image(edges)).tolist() == [[0, 128, 255]]
