"""Networks of three dimensions, of one, and of several inputs; files of any ending."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

NETS = """
import torch
from torch import nn

def net(kind, channels):
    return nn.Sequential(kind(channels, 8, 3, padding=1), nn.ReLU(), kind(8, 8, 3, padding=1),
                         nn.ReLU(), kind(8, 2, 1))

def image():
    return net(nn.Conv2d, 3)

def volume():
    return net(nn.Conv3d, 1)
"""
TWO = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(16, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, left, right, *, scale=None):
        x = torch.relu(self.b(torch.cat([self.a(left), self.a(right)], 1)))
        return self.head(torch.relu(self.c(x)))

def make():
    return Two()
"""
EXAMPLES = {
    "tuple": "def example_inputs(size=(16, 24)):\n"
             "    return tuple(torch.randn(1, 3, *size) for _ in 'lr')\n",
    "mapping": "def example_inputs():\n"
               "    return {n: torch.randn(1, 3, 16, 24) for n in ('left', 'right')}\n",
    "value": "example_inputs = torch.zeros(1, 3, 16, 24), torch.ones(1, 3, 16, 24)\n",
}  # fmt: skip
BENCH = ("--rounds", 2, "--no-memory", "--versions", "float,bf16,packed", "--json", "--quiet")


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


@pytest.mark.parametrize("ending", ["safetensors", "st", "bin", "weights"])
def test_files_of_any_ending(run, nets: Path, ending: str) -> None:
    file, model = nets / f"net.{ending}", f"{nets}/nets.py:image"
    assert run("convert", model, "-o", file, "--quiet").code == 0
    (nets / "nets.py").write_text(NETS.replace("8, 3, padding", "9, 3, padding"))
    assert run("report", file, "--model", model).code == 1  # another network than the file's
    (nets / "nets.py").write_text(NETS)
    answer = run("report", file, "--json", "--quiet")  # the file says how it is built
    assert answer.code == 0, answer.err
    assert answer.json["file_bytes"] == file.stat().st_size


def test_float_files_of_any_ending(run, nets: Path) -> None:
    namespace: dict = {}
    exec(NETS, namespace)
    network = namespace["image"]()
    torch.save(network.state_dict(), nets / "a.whatever")
    for words in (("--weights", nets / "a.whatever"),):
        answer = run("convert", f"{nets}/nets.py:image", *words, "-o", nets / "x.st")
        assert answer.code == 0, answer.err
        assert "6 of 6 tensors loaded" in answer.err


def test_volumes(run, nets: Path) -> None:
    model, file = f"{nets}/nets.py:volume", nets / "v.st"
    answer = run("convert", model, "--size", "10x8x6", "-o", file, "--quiet")
    assert answer.code == 0, answer.err
    answer = run("report", file, "--size", "10x8x6", "--json", "--quiet")
    assert answer.json["ops"] == run("report", file, "--json", "--quiet").json["ops"] > 0
    for source in (model, file):
        answer = run("bench", source, "--size", "10x8x6", "--batch-size", 2, *BENCH)
        assert answer.code == 0, answer.err
        assert answer.json["shape"] == [2, 1, 6, 8, 10]
        assert not any(version["failure"] for version in answer.json["versions"])
    assert run("bench", file, *BENCH).json["shape"] == [1, 1, 6, 8, 10]
    answer = run("report", file, "--size", "32x32")
    assert answer.code == 1
    assert "the network's convolutions have 3 dimensions; give WxHxD" in answer.err
    assert "192x144, nor WIDTHxHEIGHTxDEPTH" in run("report", file, "--size", "32").err


@pytest.mark.parametrize("kind", EXAMPLES)
def test_two_inputs(run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "two.py").write_text(TWO + EXAMPLES[kind])
    model, file = f"{tmp_path}/two.py:make", tmp_path / "two.st"
    answer = run("convert", model, "-o", file, "--quiet")
    assert answer.code == 0, answer.err
    whole = run("report", file, "--json", "--quiet")
    assert whole.code == 0, whole.err
    for source in (model, file):
        answer = run("bench", source, "--batch-size", 3, *BENCH)
        assert answer.code == 0, answer.err
        assert answer.json["shapes"] == [[3, 3, 16, 24]] * 2
        assert not any(version["failure"] for version in answer.json["versions"])
    if kind == "tuple":  # it takes a size
        answer = run("bench", model, "--size", "8x12", *BENCH)
        assert answer.json["shapes"] == [[1, 3, 12, 8]] * 2


def test_two_inputs_without_examples(run, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    for words in (
        ("convert", "--plan-only"),
        ("convert", "--plan-only", "--size", "8x8"),
        ("bench",),
        ("bench", "--size", "8x8"),
        ("report", "--policy", "bidense"),
    ):
        answer = run(words[0], f"{tmp_path}/two.py:make", *words[1:], "--quiet")
        assert answer.code == 1, words
        assert "define example_inputs() next to the factory in its file" in answer.err, words
        assert "torch.zeros" not in answer.err
    (tmp_path / "two.py").write_text(TWO + "def example_inputs():\n    raise OSError('gone')\n")
    answer = run("convert", f"{tmp_path}/two.py:make", "--plan-only")
    assert answer.code == 1
    assert "calling example_inputs failed (OSError: gone)" in answer.err
