"""Files that earlier releases wrote load, and compute what they did."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

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


# The second has 8-bit layers, too.
FILES = pytest.mark.parametrize("name", ["file_format_1", "file_format_1_int8"])


@FILES
@pytest.mark.parametrize("packed", [False, True])
def test_a_network_of_the_first_format(name: str, packed: bool) -> None:
    told = np.load(GOLDEN / f"{name}.npz")
    network = binarize.load(GOLDEN / f"{name}.safetensors", original(), packed=packed)
    with torch.no_grad():
        answer = network(torch.from_numpy(told["image"])).numpy()
    assert np.allclose(answer, told["packed" if packed else "simulated"], atol=1e-5)


@FILES
def test_programs_of_the_first_format(name: str) -> None:
    told = np.load(GOLDEN / f"{name}.npz")
    network = binarize.load(GOLDEN / f"{name}_programs.safetensors")
    answer = network(torch.from_numpy(told["image"])).numpy()
    assert np.allclose(answer, told["packed"], atol=1e-5)


def test_what_the_file_with_8_bit_layers_holds() -> None:
    with safe_open(GOLDEN / "file_format_1_int8.safetensors", "pt") as file:
        names = set(file.keys())
        codes = {name: file.get_tensor(name) for name in names if name.endswith(".int8")}
        scales = {name: file.get_tensor(name) for name in names if name.endswith(".scale")}
    assert codes.keys() == {"0.weight.int8", "9.weight.int8"}
    for name, values in codes.items():
        assert values.dtype == torch.int8
        assert values.abs().max() == 63
        scale = scales[name.replace(".int8", ".scale")]
        assert (scale.dtype, scale.shape) == (torch.float32, values.shape[:1])
    assert {"0.input_range.limits", "2.weight.bits", "9.input_range.limits"} <= names
