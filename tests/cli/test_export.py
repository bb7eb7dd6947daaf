"""``binarize export``: an ONNX file that gives what the saved network gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import binarize
import binarize.runtime
from binarize.cli.networks import Recipe, build
from binarize.data import Scenes


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


@pytest.mark.filterwarnings("ignore")
def test_at_the_size_of_the_training(run, binary_run: Path, tmp_path: Path) -> None:
    file, path = binary_run / "binary.safetensors", tmp_path / "net.onnx"
    answer = run("export", file, "-o", path, "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.json == {
        "file": str(file),
        "output": str(path),
        "bytes": path.stat().st_size,
        "shape": [1, 3, 24, 32],
        "runtime": "standard",
    }
    image = Scenes(1, (24, 32), seed=3)[0]["image"][None]
    known = Recipe("demo:UNet", Scenes.num_classes, arguments={"widths": [8, 16]})
    network = binarize.load(file, build(known))
    made = session(path)
    (found,) = made.run(None, {made.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        wanted = network(image)
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_another_size(run, binary_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    answer = run("export", binary_run / "binary.safetensors", "-o", path, "--size", "40x16",
                 "--batch-size", 2)  # fmt: skip
    assert answer.code == 0, answer.err
    assert "takes 2×3×16×40" in answer.out
    assert session(path).get_inputs()[0].shape == [2, 3, 16, 40]


@pytest.mark.filterwarnings("ignore")
def test_any_size(run, binary_run: Path, tmp_path: Path, pooling_exports: None) -> None:
    path = tmp_path / "net.onnx"
    answer = run("export", binary_run / "binary.safetensors", "-o", path, "--dynamic")
    assert answer.code == 0, answer.err
    assert "takes N×3×H×W" in answer.out
    made = session(path)
    assert made.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in ((1, 3, 16, 40), (3, 3, 24, 32)):
        (found,) = made.run(None, {made.get_inputs()[0].name: torch.zeros(shape).numpy()})
        assert found.shape == (shape[0], Scenes.num_classes, *shape[2:])


@pytest.mark.filterwarnings("ignore")
def test_operators_of_this_package(
    run, binary_run: Path, tmp_path: Path, pooling_exports: None
) -> None:
    file, path = binary_run / "binary.safetensors", tmp_path / "net.onnx"
    answer = run("export", file, "-o", path, "--runtime", "binarize")
    assert answer.code == 0, answer.err
    assert "takes N×3×H×W" in answer.out
    assert "binarize.runtime.Session, which needs no torch" in answer.err
    made = binarize.runtime.Session(path)
    assert made.settings["task"] == "segmentation"
    assert made.settings["size"] == [24, 32]
    # The commands take it like any other file, and do what the session does.
    picture = tmp_path / "photo.png"
    # Of the network's own size: what resizing rounds otherwise may flip a sign.
    image = (Scenes(1, (24, 32), seed=3, normalize="none")[0]["image"] * 255).byte()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(picture)
    answer = run("predict", path, picture, "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    found = np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    assert (found == made.segment(picture)).mean() > 0.99
    answer = run("bench", path, "--rounds", "1", "--no-memory", "--json", "--quiet")
    assert answer.code == 0, answer.err


def test_mistakes(run, binary_run: Path, float_run: Path, tmp_path: Path) -> None:
    file, path = binary_run / "binary.safetensors", tmp_path / "net.onnx"
    cases = {
        "export a float network": (
            (float_run / "float.safetensors", "-o", path),
            "this is a float network, but only 1-bit networks can be exported",
        ),
        "no folder": ((file, "-o", tmp_path / "none" / "net.onnx"), "its folder does not exist"),
        "no batch": ((file, "-o", path, "--batch-size", 0), "batch-size=0: must be positive"),
        "no file": ((tmp_path / "no.safetensors", "-o", path), "no such file; check the path"),
        "no output": ((file,), "the following arguments are required: -o/--output"),
    }
    for name, (words, message) in cases.items():
        answer = run("export", *words, "--quiet")
        assert answer.code != 0, name
        assert message in answer.err, name
        assert len(answer.err.strip().splitlines()) <= 2, name
        assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []
