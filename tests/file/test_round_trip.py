"""What is saved comes back: outputs to the last bit, bytes to the last byte."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer

Made = tuple[nn.Module, Tensor]
Trained = Callable[[nn.Module], nn.Module]
Make = Callable[[str], Made]


def outputs(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        result = network(image)
    return torch.cat([x.flatten() for x in result]) if isinstance(result, list) else result


def test_outputs_are_the_same_to_the_last_bit(made: Made, trained: Trained, tmp_path: Path) -> None:
    network, image = made
    student = trained(binarize.convert(network, example_inputs=image))

    binarize.save(student, tmp_path / "a.safetensors")
    loaded = binarize.load(tmp_path / "a.safetensors", model=network)

    assert torch.equal(outputs(loaded, image), outputs(student, image))
    assert not any(module.training for module in loaded.modules())
    assert loaded.binarize_plan == student.binarize_plan


def test_saving_what_was_loaded_gives_the_same_file(
    made: Made, trained: Trained, tmp_path: Path
) -> None:
    network, image = made
    student = trained(binarize.convert(network, example_inputs=image))
    binarize.save(student, tmp_path / "a.safetensors")

    binarize.save(binarize.load(tmp_path / "a.safetensors", network), tmp_path / "b.safetensors")

    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("policy", ["bidense", "bidense-released"])
def test_binary_weights_are_exactly_those_saved(
    make: Make, trained: Trained, tmp_path: Path, policy: str
) -> None:
    network, image = make("encoder-decoder")
    student = trained(binarize.convert(network, policy, example_inputs=image))
    binarize.save(student, tmp_path / "a.safetensors")
    loaded = dict(binarize.load(tmp_path / "a.safetensors", network).named_modules())

    units = {n: m for n, m in student.named_modules() if isinstance(m, BinaryLayer)}
    assert len(units) == 5
    for name, unit in units.items():
        signs, scale = unit.binary_weight()
        loaded_signs, loaded_scale = loaded[name].binary_weight()
        assert torch.equal(signs * scale, loaded_signs * loaded_scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["encoder-decoder", "channels-last"])
def test_other_types(
    make: Make, trained: Trained, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    network, image = make(name)
    image = image.to(dtype)
    student = trained(binarize.convert(network, example_inputs=image.float()).to(dtype))
    binarize.save(student, tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors", network)

    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert next(network.parameters()).dtype == torch.float32
    result = outputs(loaded, image)
    assert result.dtype == dtype
    assert torch.equal(result, outputs(student, image))


def test_mixed_types(make: Make, trained: Trained, tmp_path: Path) -> None:
    network, image = make("encoder-decoder")
    student = binarize.convert(network, example_inputs=image)
    student.head.double()
    student.join.register_forward_hook(lambda *args: args[2].double())
    binarize.save(trained(student), tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors", network)

    assert loaded.head.weight.dtype == torch.float64
    assert loaded.join.weight.dtype == torch.float32


def test_memory_format_comes_back(make: Make, trained: Trained, tmp_path: Path) -> None:
    network, image = make("encoder-decoder")
    student = trained(binarize.convert(network, example_inputs=image))
    student = student.to(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last)
    binarize.save(student, tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors", network)

    mine, theirs = dict(loaded.named_parameters()), dict(student.named_parameters())
    assert not theirs["down.weight"].is_contiguous()
    assert {k: p.stride() for k, p in mine.items()} == {k: p.stride() for k, p in theirs.items()}
    assert torch.equal(outputs(loaded, image), outputs(student, image))


def test_strides_that_leave_gaps_are_closed(make: Make, trained: Trained, tmp_path: Path) -> None:
    network, image = make("encoder-decoder")
    student = trained(binarize.convert(network, example_inputs=image))
    wide = torch.randn(3, 14, 1, 1)
    student.head.weight.data = wide[:, ::2]
    binarize.save(student, tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors", network)

    assert torch.equal(loaded.head.weight, wide[:, ::2])


def test_sharing_is_kept_and_stored_once(make: Make, trained: Trained, tmp_path: Path) -> None:
    network, image = make("shared")
    student = trained(binarize.convert(network, example_inputs=image))
    binarize.save(student, tmp_path / "a.safetensors")

    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        names = set(file.keys())
    loaded = binarize.load(tmp_path / "a.safetensors", network)

    assert "body.0.weight.bits" in names
    assert not any(name.startswith(("again.", "right.weight")) for name in names)
    assert loaded.again is loaded.body[0]
    assert loaded.left.weight is loaded.right.weight


def test_network_that_no_longer_ties_takes_the_one_tensor(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    network, image = make("shared")
    student = trained(binarize.convert(network, example_inputs=image))
    binarize.save(student, tmp_path / "a.safetensors")
    untied = copy.deepcopy(network)
    untied.right.weight = nn.Parameter(torch.randn_like(network.right.weight))

    loaded = binarize.load(tmp_path / "a.safetensors", untied)

    assert torch.equal(outputs(loaded, image), outputs(student, image))


def test_weight_that_a_float_layer_reads_too_stays_whole(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    network, image = make("shared")
    student = trained(binarize.convert(network, example_inputs=image, overrides={"right": "keep"}))
    binarize.save(student, tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors", network)

    assert torch.equal(loaded.left.weight, student.left.weight)
    assert torch.equal(outputs(loaded, image), outputs(student, image))


def test_counters_of_norms_are_one_tensor(make: Make, trained: Trained, tmp_path: Path) -> None:
    network, image = make("encoder-decoder")
    student = trained(binarize.convert(network, example_inputs=image))
    student.down.norm.num_batches_tracked.fill_(41)
    binarize.save(student, tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors", network)

    assert loaded.down.norm.num_batches_tracked == 41
    assert loaded.join.norm.num_batches_tracked == 7
    assert loaded.down.norm.num_batches_tracked.shape == ()
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert sum("num_batches_tracked" in name for name in file.keys()) == 1  # noqa: SIM118


def test_neither_network_is_changed(make: Make, trained: Trained, tmp_path: Path) -> None:
    network, image = make("encoder-decoder")
    student = trained(binarize.convert(network, example_inputs=image)).train()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (network, student)]
    tensors = [list(map(id, m.state_dict(keep_vars=True).values())) for m in (network, student)]

    binarize.save(student, tmp_path / "a.safetensors")
    loaded = binarize.load(tmp_path / "a.safetensors", network)
    outputs(loaded.train(), image)

    for model, values, identities in zip((network, student), before, tensors, strict=True):
        state = model.state_dict(keep_vars=True)
        assert list(map(id, state.values())) == identities
        assert all(torch.equal(state[key], value) for key, value in values.items())
        assert model.training
    assert not hasattr(network, "binarize_plan")


def test_gradients_flow_after_loading(make: Make, trained: Trained, tmp_path: Path) -> None:
    network, image = make("encoder-decoder")
    student = trained(binarize.convert(network, example_inputs=image))
    binarize.save(student, tmp_path / "a.safetensors")
    loaded = binarize.load(tmp_path / "a.safetensors", network).train()

    loaded(image).square().mean().backward()

    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())


def test_compiled_network_saves_what_is_inside(make: Make, tmp_path: Path) -> None:
    network, image = make("encoder-decoder")
    student = binarize.convert(network, example_inputs=image)

    binarize.save(student, tmp_path / "a.safetensors")
    binarize.save(torch.compile(student, backend="eager"), tmp_path / "b.safetensors")

    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# Networks that rebuild themselves


@pytest.mark.parametrize(
    "build",
    [
        lambda: smp.Unet(
            "resnet18", encoder_weights=None, classes=4, decoder_channels=(64, 32, 16, 8, 8)
        ),
        lambda: timm.create_model("test_resnet", num_classes=10),
        lambda: timm.create_model("test_resnet", features_only=True, out_indices=(1, 3)),
        lambda: timm.create_model("test_convnext", num_classes=3),
    ],
    ids=["smp", "timm", "timm-features", "timm-convnext"],
)
def test_known_networks_need_nothing_but_the_file(
    build: Callable[[], nn.Module], trained: Trained, tmp_path: Path
) -> None:
    image = torch.randn(1, 3, 64, 64)
    student = trained(binarize.convert(build(), example_inputs=image))
    binarize.save(student, tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors")

    assert torch.equal(outputs(loaded, image), outputs(student, image))


# The file


def test_unet_is_more_than_24_times_smaller(tmp_path: Path) -> None:
    network = smp.Unet("resnet34", encoder_weights=None, classes=11)
    floats = sum(x.numel() * x.element_size() for x in network.state_dict().values())
    image = torch.zeros(1, 3, 64, 64)

    binarize.save(binarize.convert(network, example_inputs=image), tmp_path / "a.safetensors")

    assert floats / (tmp_path / "a.safetensors").stat().st_size > 24


def test_header_says_what_a_reader_needs(tmp_path: Path) -> None:
    student = binarize.convert(timm.create_model("test_resnet", num_classes=3))
    binarize.save(student, tmp_path / "a.safetensors")

    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
        bits = file.get_tensor("layer1.0.conv1.weight.bits")
        scale = file.get_tensor("layer1.0.conv1.weight.scale")
        keys = set(file.keys())

    assert metadata["format"] == "binarize"
    assert metadata["format_version"] == "1"
    assert metadata["policy"] == "bidense"
    assert metadata["padding_value"] == "0"
    assert metadata["origin"] == (
        '{"arguments": {"num_classes": 3}, "library": "timm", "name": "test_resnet"}'
    )
    assert bits.dtype == torch.uint8
    assert bits.numel() == 32 * 32 * 9 // 8
    assert scale.shape == (32,)
    assert scale.dtype == torch.float32
    assert "layer1.0.conv1.weight" not in keys
    assert {"conv1.0.weight", "fc.weight", "layer1.0.conv1.binarizer.k"} <= keys


_PROGRAM = """
import sys, torch, binarize, timm
torch.manual_seed(0)
student = binarize.convert(timm.create_model("test_resnet", num_classes=3))
binarize.save(student, sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(tmp_path / f"{seed}.safetensors")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )

    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_scalars_keep_type_and_value(tmp_path: Path) -> None:
    class Scaled(nn.Sequential):
        """A gain and a temperature that are no batch counters, though as small as one."""

        def __init__(self) -> None:
            layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
            super().__init__(*layers)
            self.gain = nn.Parameter(torch.tensor(0.3))
            self.register_buffer("temperature", torch.tensor(1.7, dtype=torch.float64))
            self.register_buffer("steps", torch.tensor(7, dtype=torch.int32))

    network = Scaled()
    student = binarize.convert(network, example_inputs=torch.zeros(1, 3, 8, 8))
    student[1].num_batches_tracked.fill_(2**40 + 1)
    binarize.save(student, tmp_path / "a.safetensors")
    loaded = binarize.load(tmp_path / "a.safetensors", network).state_dict()
    for name in ("gain", "temperature", "steps", "1.num_batches_tracked"):
        saved = student.state_dict()[name]
        assert loaded[name].dtype == saved.dtype, name
        assert loaded[name].item() == saved.item(), name
