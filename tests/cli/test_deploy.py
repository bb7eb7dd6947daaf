"""From a trained file to what is deployed: packed programs and ONNX are files like others."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import binarize
from binarize.cli.sources import open_file
from binarize.data import Scenes

DATA = ("--data", "scenes", "--count", 20, "--split", "test")


@pytest.fixture(scope="module")
def lonely(binary_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file alone: without metrics.json beside it."""
    file = tmp_path_factory.mktemp("lonely") / "net.bin"
    file.write_bytes((binary_run / "binary.safetensors").read_bytes())
    return file


@pytest.fixture(scope="module")
def deployed(lonely: Path) -> dict[str, Path]:
    """Packed programs, of one image and of three, and ONNX files, of one size and of all."""
    from binarize.cli import main

    made = {name: lonely.parent / f"x.{name}" for name in ("programs", "three", "onnx", "free")}
    for name, words in {
        "programs": ("pack",),
        "three": ("pack", "--batch-size", "3"),
        "onnx": ("export",),
        "free": ("export", "--dynamic"),
    }.items():
        words = (words[0], str(lonely), "-o", str(made[name]), *words[1:], "--quiet")
        assert main(words) == 0
    return made


def test_the_file_alone_is_enough(run, lonely: Path, tmp_path: Path) -> None:
    settings = open_file(str(lonely)).settings
    assert settings["classes"] == list(Scenes.classes)
    assert settings["size"] == [24, 32]
    assert settings["palette"]
    assert run("eval", lonely, *DATA, "--quiet").code == 0
    assert run("report", lonely, "--quiet").code == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["programs", "three", "onnx", "free"])
def test_all_commands_take_them(
    run, lonely: Path, deployed: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    file = deployed[kind]
    scene = Scenes(1, (40, 64), seed=9)
    image = scene.denormalize(scene[0]["image"]).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "photo.png")
    pictures = []
    for source, output in ((lonely, "a"), (file, "b")):
        answer = run("predict", source, tmp_path / "photo.png", "--output", tmp_path / output)
        assert answer.code == 0, answer.err
        assert (tmp_path / output / "legend.png").is_file()
        with Image.open(tmp_path / output / "photo.png") as picture:
            pictures.append((np.array(picture), picture.getpalette()))
    assert (pictures[0][0] == pictures[1][0]).mean() > 0.99
    assert pictures[0][1] == pictures[1][1]
    metrics = []
    for source in (lonely, file):
        answer = run("eval", source, *DATA, "--json", "--quiet")
        assert answer.code == 0, answer.err
        assert answer.json["images"] == 5  # no multiple of three
        metrics.append(answer.json["metrics"])
    assert metrics[0]["mIoU"] == pytest.approx(metrics[1]["mIoU"], abs=0.02)
    answer = run("bench", file, "--rounds", 2, "--no-memory", "--json", "--quiet")
    assert answer.code == 0, answer.err
    (version,) = answer.json["versions"]
    assert version["name"] == ("onnx" if kind in ("onnx", "free") else "packed")
    assert version["file_bytes"] == file.stat().st_size
    answer = run("report", file, "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.json["file_bytes"] == file.stat().st_size
    assert answer.json["inputs"]
    assert str(file.stat().st_size) in run("report", file).out.replace(",", "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "called"), [("programs", "packed programs"), ("free", "ONNX")])
def test_what_needs_layers_says_so(
    run, deployed: dict[str, Path], tmp_path: Path, kind: str, called: str
) -> None:
    file, output = deployed[kind], tmp_path / "output"
    for argument, words in (
        ("model", ("inspect", file, *DATA)),
        ("model", ("convert", file)),
        ("file", ("sensitivity", file, *DATA[:-2], "--limit", 2, "--recalibrate", 1)),
        ("model", ("train", "--model", file, *DATA[:-2], "--size", "32x24", "--batch-size", 4)),
    ):
        answer = run(*words, "--output", output, "--quiet")
        assert answer.code == 1
        what = f"this is an? (file of )?{called}( file)?, which can be run, but has no layers"
        says = (
            rf"error: {argument}='{file}': {what} to look into or to change; give the file that .*"
        )
        assert re.fullmatch(says, answer.err.strip()), answer.err
    assert not output.is_file()


def test_programs_need_no_library(deployed: dict[str, Path]) -> None:
    code = (
        "import sys, torch, binarize\n"
        f"network = binarize.load({str(deployed['programs'])!r})\n"
        "assert network(torch.rand(1, 3, 24, 32)).shape == (1, 6, 24, 32)\n"
        "assert network.binarize_description['settings']['classes'][0] == 'floor'\n"
        "assert 'timm' not in sys.modules and 'segmentation_models_pytorch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")
def test_onnx_has_names_and_loads_without_a_word(deployed: dict[str, Path], capfd) -> None:
    made = onnxruntime.InferenceSession(deployed["onnx"])
    assert [value.name for value in made.get_outputs()] == ["output"]
    told = json.loads(made.get_modelmeta().custom_metadata_map["binarize_network"])
    assert told["settings"]["classes"] == list(Scenes.classes)
    made.run(None, {made.get_inputs()[0].name: np.zeros((1, 3, 24, 32), np.float32)})
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore")
def test_names_of_several_outputs(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(),
                torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(),
            )  # fmt: skip
            self.head = torch.nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.body(x)
            return {"masks": self.head(x), "features": x}

    image = torch.randn(1, 3, 8, 8)
    student = binarize.convert(Two(), example_inputs=image).eval()
    binarize.export_onnx(student, tmp_path / "a.onnx", image)
    made = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [value.name for value in made.get_outputs()] == ["masks", "features"]


def test_what_cannot_be_packed(
    run, lonely: Path, float_run: Path, deployed: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "x.packed"
    for words, says in (
        ((float_run / "float.safetensors", "-o", file), "this is a float network"),
        ((deployed["programs"], "-o", file), "is packed already"),
        ((lonely, "-o", lonely), "is the input file"),
        ((lonely, "-o", tmp_path), "is a folder"),
        ((lonely, "-o", tmp_path / "none" / "x"), "its folder does not exist"),
        ((lonely, "-o", file, "--batch-size", 0), "batch-size=0: must be positive"),
        ((lonely, "-o", file, "--size", "0x0"), "must be positive"),
    ):
        answer = run("pack", *words)
        assert answer.code == 1, words
        assert says in answer.err, words
    assert not list(tmp_path.iterdir())
    answer = run("predict", deployed["programs"], tmp_path, "--output", tmp_path)
    assert answer.code == 1


@pytest.mark.filterwarnings("ignore")
def test_export_says_that_it_is_slower(run, lonely: Path, tmp_path: Path) -> None:
    answer = run("export", lonely, "-o", tmp_path / "a.onnx")
    assert (
        "but slower than the float network; for speed, use --runtime binarize or binarize pack"
        in answer.err
    )


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
@pytest.mark.filterwarnings("ignore")
def test_files_follow_the_umask(run, lonely: Path, float_run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "photo.png")
        run("pack", lonely, "-o", tmp_path / "a.packed")
        run("export", lonely, "-o", tmp_path / "a.onnx")
        run("convert", "demo:UNet", "--classes", 2, "-o", tmp_path / "a.st")
        run("predict", lonely, tmp_path / "photo.png", "--output", tmp_path / "out")
        run("train", "--model", "demo:UNet", "--model-arg", "widths=[8,16]", "--policy", "none",
            "--data", "scenes", "--count", 4, "--size", "32x24", "--epochs", 1, "--batch-size", 2,
            "--output", tmp_path / "run", "--quiet")  # fmt: skip
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
