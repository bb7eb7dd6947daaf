"""Packed networks in files: loaded without the network, for the sizes they were called with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import binarize
from binarize.errors import FileError, ModelError
from binarize.file import programs
from binarize.lower import PackedPrograms
from binarize.nn import BiConv2d


class Net(nn.Module):
    """With structured arguments and results, and a float layer in front."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = BiConv2d(8, 12, 3, stride=2, padding=1)
        self.up = BiConv2d(20, 5, 3, padding=1)

    def forward(self, batch: dict[str, Tensor], *, twice: bool = False) -> dict[str, Any]:
        first = F.relu(self.norm(self.stem(batch["image"])))
        deep = F.interpolate(self.down(first), size=first.shape[2:])
        y = self.up(torch.cat([first, deep], 1))
        return {"maps": [2 * y if twice else y], "twice": twice, "type": y.dtype}


def images(*sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    return [{"image": torch.randn(size)} for size in sizes]


def packed() -> binarize.PackedNetwork:
    return binarize.pack(Net().eval())


def test_all_sizes_that_it_was_called_with(tmp_path: Path) -> None:
    network, path = packed(), tmp_path / "net.safetensors"
    small, large, other = images((1, 3, 8, 12), (2, 3, 6, 6), (1, 3, 10, 10))
    wanted = [network(small), network(large), network(large, twice=True)]
    binarize.save(network, path)
    loaded = binarize.load(path)
    assert isinstance(loaded, PackedPrograms)
    assert not loaded.training
    found = [loaded(small), loaded(large), loaded(large, twice=True)]
    for one, two in zip(wanted, found, strict=True):
        assert torch.equal(one["maps"][0], two["maps"][0])
        assert (one["twice"], one["type"]) == (two["twice"], two["type"])
    last = {"image": small["image"].contiguous(memory_format=torch.channels_last)}
    assert torch.equal(loaded(last)["maps"][0], wanted[0]["maps"][0])
    assert torch.equal(loaded(other)["maps"][0], network.network(other)["maps"][0])
    with pytest.raises(ModelError) as caught:
        loaded({"image": other["image"].double()})
    assert str(caught.value) == (
        "input='1x3x10x10 float64': this file holds programs for 1x3x8x12 float32; "
        "2x3x6x6 float32; 1x3xHxW float32; Nx3xHxW float32; "
        "pack the network, call it with such an input, and save it again"
    )
    with pytest.raises(ModelError, match="it is for inference"):
        loaded.train()
    binarize.save(network, tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_one_program_serves_every_memory_order(tmp_path: Path) -> None:
    network, path = packed(), tmp_path / "net.safetensors"
    (image,) = images((1, 3, 8, 12))
    wanted = network(image)["maps"][0]
    binarize.save(network, path)
    loaded = binarize.load(path)
    assert isinstance(loaded, PackedPrograms)
    alone = PackedPrograms(loaded.programs)  # as of a network that has no general program
    last = image["image"].contiguous(memory_format=torch.channels_last)
    window = torch.zeros(1, 3, 8, 20)[..., 4:16].copy_(image["image"])
    for given in (last, window):
        assert torch.equal(alone({"image": given})["maps"][0], wanted)


def test_constants_are_stored_once(tmp_path: Path) -> None:
    network = packed()
    for count in (1, 2):
        network(images((count, 3, 8, 8))[0])
        binarize.save(network, tmp_path / f"{count}.safetensors")
    with safe_open(tmp_path / "1.safetensors", "pt") as one:
        tensors = len(one.keys())
    with safe_open(tmp_path / "2.safetensors", "pt") as two:
        # The norm's two numbers are worked out for each size, and there is an empty tensor.
        assert tensors <= len(two.keys()) <= tensors + 3


def test_another_process_needs_neither_class_nor_library(tmp_path: Path) -> None:
    network = packed()
    batch = images((1, 3, 8, 8))[0]
    torch.save((batch, network(batch)["maps"][0]), tmp_path / "example.pt")
    binarize.save(network, tmp_path / "net.safetensors")
    code = (
        "import sys, torch, binarize; network = binarize.load('net.safetensors'); "
        "batch, wanted = torch.load('example.pt'); "
        "assert torch.equal(network(batch)['maps'][0], wanted); "
        "print(sorted({'timm', 'torchvision', 'segmentation_models_pytorch'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


def test_what_has_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        binarize.save(packed(), tmp_path / "net.safetensors")
    assert str(caught.value) == (
        "model='Net': it has no program yet, because it was not called; "
        "give inputs: binarize.pack(model, example_inputs=...)"
    )
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    network, path = packed(), tmp_path / "net.safetensors"
    network(images((1, 3, 8, 8))[0])
    binarize.save(network, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def load_with(**changed: str) -> None:
        edited = {**metadata, **changed}
        edited.pop("checksum", None)  # what is tested is what comes after it
        save_file(tensors, tmp_path / "bad.safetensors", edited)
        binarize.load(tmp_path / "bad.safetensors")

    with pytest.raises(FileError, match="its format version 7 is newer than 2"):
        load_with(format_version="7")
    with pytest.raises(FileError, match="its weights have layout 9, but this release's"):
        load_with(weight_layout="9")
    newer = ("weight_layout", "checksum")
    earlier = {key: value for key, value in metadata.items() if key not in newer}
    save_file(tensors, tmp_path / "earlier.safetensors", earlier)
    binarize.load(tmp_path / "earlier.safetensors")
    with pytest.raises(FileError, match="its programs are damaged"):
        load_with(programs="AAAA")
    told = programs.decode(metadata["programs"])
    # A file can name operators, not other code.
    for node in told["programs"][0]["nodes"]:
        if node[0] == "call_function":
            node[2] = "os.system"
    with pytest.raises(FileError, match="its programs are damaged"):
        load_with(programs=programs.encode(told))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FileError):
        binarize.load(path)
