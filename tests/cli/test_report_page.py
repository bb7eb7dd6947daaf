"""What ``binarize report --html`` shows beside the report."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import binarize
from binarize.cli.report_page import latency_section, prediction_section, result_sections
from binarize.cli.sources import open_source
from binarize.errors import FileError
from binarize.inspection import Inspection
from binarize.latency.numbers import LayerLatency, Machine, Profile

PROFILE = Profile(
    *("UNet", "bidense", "1×3×24×32", Machine("a processor", "avx2", 1, "2.9", "0.1"), 3),
    layers=(
        LayerLatency("stem", "Conv2d", (8, 3, 3, 3), "keep", {"keep": 1.25}, {"keep": 0.1}),
        LayerLatency(
            *("down.0.conv1", "Conv2d", (8, 8, 3, 3), "binarize"),
            {"binarize": 0.5, "keep": 2.5},
            {"binarize": 0.1, "keep": 0.1},
        ),
    ),
    rest=0.1,
    whole={"policy": 1.85, "keep": 3.85},
)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (30, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inspection, Path]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    made = binarize.inspect(
        binarize.convert(net, example_inputs=torch.zeros(1, 3, 8, 9)),
        [torch.randn(2, 3, 8, 9) for _ in range(2)],
    )
    folder = tmp_path_factory.mktemp("inspected")
    made.save(folder)
    return made, folder


def images(page: str) -> dict[str, Image.Image]:
    """All images of a page by their title."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)">', page)
    return {title: Image.open(io.BytesIO(base64.b64decode(data))) for data, title in found}


def test_the_page_with_everything(
    run, binary_run: Path, float_run: Path, photo: Path, inspected, tmp_path: Path
) -> None:
    PROFILE.save(tmp_path / "profile.json")
    page_file = tmp_path / "page.html"
    answer = run(
        *("report", binary_run / "binary.safetensors", "--html", page_file, "--image", photo),
        *("--teacher", float_run / "float.safetensors", "--inspected", inspected[1]),
        *("--profile", tmp_path / "profile.json", "--quiet"),
    )
    assert answer.code == 0, answer.err
    page = page_file.read_text(encoding="utf-8")
    ids = re.findall(r'<section id="([^"]*)"', page)
    assert ids == [
        *("totals", "accuracy", "latency", "predictions", "sizes", "network", "layers"),
        *("inspection-layers", "inspection-histograms", "inspection-entropy"),
        *("inspection-parameters", "inspection-maps", "policy"),
    ]
    told = json.loads((binary_run / "metrics.json").read_text())
    assert f"{told['test']['mIoU']:.4f}" in page
    shown = images(page)
    assert [shown[name].size for name in ("input", "float (teacher)", "1-bit")] == [(44, 30)] * 3
    assert np.array_equal(np.array(shown["input"]), np.array(Image.open(photo)))
    everything = re.findall(r' id="([^"]*)"', page)
    assert len(everything) == len(set(everything))
    assert not re.search(r"https?:|@import", page)


def test_predictions_are_those_of_binarize_predict(
    run, binary_run: Path, photo: Path, tmp_path: Path
) -> None:
    file = binary_run / "binary.safetensors"
    assert run("predict", file, photo, "--output", tmp_path, "--quiet").code == 0
    section = prediction_section({"1-bit": open_source(str(file))}, photo)
    with Image.open(tmp_path / "photo.png") as expected:
        assert np.array_equal(
            np.array(images(section.content)["1-bit"].convert("RGB")),
            np.array(expected.convert("RGB")),
        )


def test_depths_share_their_colours(depth_run: Path, photo: Path) -> None:
    source = open_source(str(depth_run / "binary.safetensors"))
    twice = torch.nn.Sequential(source.network, _Farther()).eval()
    section = prediction_section({"a": source, "b": replace(source, network=twice)}, photo)
    near, far = (np.array(images(section.content)[name]).mean() for name in "ab")
    assert near > far  # brighter


class _Farther(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.5  # a network of depth returns its logarithm, or something that grows with it


def test_latency(tmp_path: Path) -> None:
    content = latency_section(PROFILE).content
    assert "1.85 ms by policy &#x27;bidense&#x27;, 3.85 ms in float, for 1×3×24×32" in content
    assert "a processor, avx2 kernels, 1 thread(s), medians of 3 rounds" in content
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", content)
    assert cells == [
        *("stem", "Conv2d", "float", "", "1.250"),
        *("down.0.conv1", "Conv2d", "1 bit", "0.500", "2.500"),
    ]


def test_accuracy_is_only_that_of_the_file_itself(tmp_path: Path) -> None:
    file = tmp_path / "binary.safetensors"
    assert result_sections(file) == []
    record = {"files": {"model": file.name}, "val": {"mIoU": 0.51234, "IoU": [0.1], "x": None}}
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    (section,) = result_sections(file)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", section.content) == ["mIoU", "0.5123", "x", "–"]
    assert result_sections(tmp_path / "other.safetensors") == []
    for broken in ("{", "[]", '{"files": 3}'):
        (tmp_path / "metrics.json").write_text(broken)
        assert result_sections(file) == []


def test_inspections_are_read_as_they_were(inspected, tmp_path: Path) -> None:
    made, folder = inspected
    for path in (folder, folder / "inspection.json"):
        found = Inspection.load(path)
        assert found.to_dict() == made.to_dict()
        for mine, theirs in zip(found.maps, made.maps, strict=True):
            assert torch.allclose(mine.before, theirs.before, atol=1e-6)
            assert torch.equal(mine.after.sign(), theirs.after.sign())
        assert [len(t) for t in found._page().split("data:image/png")] == [
            len(t) for t in made._page().split("data:image/png")
        ]
    with pytest.raises(FileError, match=r"inspection='.*': is not a readable inspection"):
        Inspection.load(tmp_path)
    (tmp_path / "inspection.json").write_text((folder / "inspection.json").read_text())
    with pytest.raises(FileError, match=r"feature_maps\.csv"):
        Inspection.load(tmp_path)
    (tmp_path / "feature_maps.csv").write_text("batch,sample,position,before,after\n0,0,0:0,1,1\n")
    with pytest.raises(FileError, match="give the folder that binarize inspect wrote"):
        Inspection.load(tmp_path)
    empty = replace(made, layers=(), maps=())
    empty.save(tmp_path / "empty")
    assert Inspection.load(tmp_path / "empty").to_dict() == empty.to_dict()
    odd = replace(made.layers[0], parameters={"k": (math.nan, 1.0)})
    replace(made, layers=(odd,)).save(tmp_path / "odd")
    assert math.isnan(Inspection.load(tmp_path / "odd").layers[0].parameters["k"][0])


def test_mistakes(run, binary_run: Path, float_run: Path, photo: Path, tmp_path: Path) -> None:
    file, page = binary_run / "binary.safetensors", tmp_path / "page.html"
    for words, told in (
        (["--image", photo], f"image='{photo}': is for the page; give --html FILE too"),
        (["--inspected", tmp_path], "is for the page; give --html FILE too"),
        (["--profile", photo], "is for the page; give --html FILE too"),
        (["--html", page, "--teacher", file], "needs an image; give --image FILE too"),
        (["--html", page, "--image", "missing.png"], "missing.png"),
        (["--html", page, "--inspected", tmp_path], "is not a readable inspection"),
        (["--html", page, "--profile", photo], "is not a readable profile"),
    ):
        answer = run("report", file, *words, "--quiet")
        assert answer.code == 1
        (line,) = answer.err.splitlines()
        assert told in line
    answer = run(
        *("report", "demo:UNet", "--model-arg", "widths=[8,16]", "--size", "32x24", "--quiet"),
        *("--html", page, "--image", photo),
    )
    assert "the network's file does not record its task" in answer.err
    assert not page.exists()
