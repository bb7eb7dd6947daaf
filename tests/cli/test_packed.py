"""--packed: the commands that run a saved network compute with bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binarize.data import Scenes


def test_predict_eval_and_report(run, binary_run: Path, tmp_path: Path) -> None:
    scenes = Scenes(1, (40, 64), seed=9)
    image = scenes.denormalize(scenes[0]["image"]).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "photo.png")
    file = binary_run / "binary.safetensors"
    results = []
    for options in ([], ["--packed"]):
        output = tmp_path / f"out{len(options)}"
        answer = run("predict", file, tmp_path / "photo.png", "--output", output, *options)
        assert answer.code == 0, answer.err
        with Image.open(output / "photo.png") as picture:
            results.append(np.array(picture))
    assert (results[0] == results[1]).mean() > 0.99
    values = []
    for options in ([], ["--packed"]):
        answer = run("eval", file, "--data", "scenes", "--json", "--quiet", *options)
        assert answer.code == 0, answer.err
        values.append(answer.json["metrics"]["mIoU"])
    assert values[0] == pytest.approx(values[1], abs=0.01)
    answer = run("report", file, "--packed", "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert {row["path"] for row in answer.json["layers"]} == {"popcount", "float"}


def test_float_networks_are_refused(run, float_run: Path, tmp_path: Path) -> None:
    answer = run("report", float_run / "float.safetensors", "--packed")
    assert answer.code != 0
    assert "this is a float network, but only 1-bit networks can be packed" in answer.err
    answer = run("report", "smp:Unet:resnet18", "--packed")
    assert "this is a float network, but only 1-bit networks can be packed" in answer.err
