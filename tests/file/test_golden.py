"""Files that earlier releases wrote load, and compute what they did."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import binarize

GOLDEN = Path(__file__).parents[1] / "golden"


def original() -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("make_files", GOLDEN / "make_files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: torch.nn.Module = module.network()
    return network


@pytest.mark.parametrize("packed", [False, True])
def test_a_network_of_the_first_format(packed: bool) -> None:
    told = np.load(GOLDEN / "file_format_1.npz")
    network = binarize.load(GOLDEN / "file_format_1.safetensors", original(), packed=packed)
    with torch.no_grad():
        answer = network(torch.from_numpy(told["image"])).numpy()
    assert np.allclose(answer, told["packed" if packed else "simulated"], atol=1e-5)


def test_programs_of_the_first_format() -> None:
    told = np.load(GOLDEN / "file_format_1.npz")
    network = binarize.load(GOLDEN / "file_format_1_programs.safetensors")
    answer = network(torch.from_numpy(told["image"])).numpy()
    assert np.allclose(answer, told["packed"], atol=1e-5)
