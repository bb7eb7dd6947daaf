"""Every flipped bit is found, and the header tells what a network needs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

import binarize
from binarize.errors import BinarizeError, FileError

DESCRIPTION = {
    "settings": {"task": "segmentation", "size": [24, 32], "normalize": "none",
                 "classes": ["a", "ö"], "palette": [[1, 2, 3], [4, 5, 6]]},
    "recipe": None,
}  # fmt: skip


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    image = torch.randn(1, 3, 8, 8)
    student = binarize.convert(network(), example_inputs=image).eval()
    paths = {"network": tmp_path / "n.safetensors", "programs": tmp_path / "p.safetensors"}
    binarize.save(student, paths["network"], description=DESCRIPTION)
    packed = binarize.pack(student, example_inputs=image)
    binarize.save(packed, paths["programs"], description=DESCRIPTION)
    return paths


def load(path: Path) -> nn.Module:
    return binarize.load(path, network())


@pytest.mark.parametrize("kind", ["network", "programs"])
def test_flipped_bits_are_found(files: dict[str, Path], kind: str) -> None:
    whole = files[kind].read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    places = [draw.randrange(header, len(whole)) for _ in range(60)]
    places += [header, len(whole) - 1, *(draw.randrange(header) for _ in range(60))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        files[kind].write_bytes(damaged)
        if place >= header:
            with pytest.raises(FileError, match="its checksum is wrong: the file is damaged"):
                load(files[kind])
            continue
        # In the header a flip may hit the very name of the checksum: what is read is whole then.
        try:
            load(files[kind])
        except BinarizeError:
            continue
        assert b'"checksum":"' not in damaged


@pytest.mark.parametrize("kind", ["network", "programs"])
def test_the_header_tells_what_was_written(files: dict[str, Path], kind: str) -> None:
    loaded = load(files[kind])
    assert loaded.binarize_description == DESCRIPTION
    if kind == "network":
        again = files[kind].with_name("again.safetensors")
        binarize.save(loaded, again)
        assert again.read_bytes() == files[kind].read_bytes()
        assert binarize.report(loaded).file_bytes == files[kind].stat().st_size
        packed = binarize.load(files[kind], network(), packed=True)
        packed(torch.randn(1, 3, 8, 8))
        binarize.save(packed, again)
        assert binarize.load(again).binarize_description == DESCRIPTION


def test_files_without_a_description_have_none(tmp_path: Path) -> None:
    student = binarize.convert(network(), example_inputs=torch.zeros(1, 3, 8, 8)).eval()
    binarize.save(student, tmp_path / "n.safetensors")
    assert not hasattr(load(tmp_path / "n.safetensors"), "binarize_description")
