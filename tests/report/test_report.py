"""Totals, rows and bytes: nothing missing, nothing twice, nothing guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import binarize
from binarize.errors import ModelError
from binarize.report import Row

IMAGE = torch.zeros(1, 3, 64, 64)


class Small(nn.Module):
    """Shared, unused, grouped and transposed layers, a loose parameter, a functional product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.down = nn.Conv2d(8, 12, 2, stride=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.unused = nn.Conv2d(6, 6, 3)
        self.gain = nn.Parameter(torch.ones(6, 6))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.twice(F.relu(self.twice(x))))
        x = F.relu(self.up(F.relu(self.down(x))))
        return self.head((x.permute(0, 2, 3, 1) @ self.gain).permute(0, 3, 1, 2))


BUILDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small": (Small, (2, 3, 10, 14)),
    "unet": (
        lambda: smp.Unet(
            "resnet18", encoder_weights=None, classes=3, decoder_channels=(32, 16, 8, 8, 8)
        ),
        (1, 3, 64, 64),
    ),
    "resnet": (lambda: timm.create_model("test_resnet"), (1, 3, 65, 63)),
    "convnext": (lambda: timm.create_model("test_convnext"), (1, 3, 64, 64)),
    "efficientnet": (lambda: timm.create_model("test_efficientnet"), (1, 3, 64, 64)),
    "vit": (lambda: timm.create_model("test_vit"), (1, 3, 160, 160)),
}


def total(report: binarize.Report, attribute: str) -> float:
    return sum(getattr(row, attribute) for row in report.layers)


@pytest.mark.parametrize("name", BUILDS)
def test_rows_add_up(name: str, tmp_path: Path) -> None:
    build, shape = BUILDS[name]
    network, image = build(), torch.zeros(shape)
    overrides = {"blocks.*": "binarize"} if name == "vit" else None
    student = binarize.convert(network, example_inputs=image, overrides=overrides)
    binarize.save(student, tmp_path / "a.safetensors")

    report = binarize.report(student, image)
    plain = binarize.report(network, image)

    for attribute in ("params", "float_params", "binary_params", "ops", "float_ops", "binary_ops"):
        assert total(report, attribute) == getattr(report, attribute)
    assert total(report, "bytes") == report.file_bytes
    assert report.file_bytes == (tmp_path / "a.safetensors").stat().st_size
    count = sum(p.numel() for p in student.parameters())
    assert report.float_params + report.binary_params == count
    # What the float network was is known without it, also where its layers are gone.
    assert report.reference_params == plain.params == sum(p.numel() for p in network.parameters())
    assert report.reference_bytes == plain.reference_bytes
    assert report.reference_ops == plain.ops
    assert plain.ops is not None
    assert 0 < report.binary_ops < plain.ops


@pytest.mark.parametrize("name", BUILDS)
def test_float_network(name: str, tmp_path: Path) -> None:
    build, shape = BUILDS[name]
    network = build()
    save_file(network.state_dict(), tmp_path / "a.safetensors")

    report = binarize.report(network, torch.zeros(shape))

    assert report.policy is None
    assert report.binary_params == report.binary_ops == 0
    assert report.params == report.reference_params
    assert report.ops == report.reference_ops
    assert report.file_bytes == (tmp_path / "a.safetensors").stat().st_size
    assert total(report, "bytes") == report.file_bytes
    assert {row.decision for row in report.layers} == {""}


def test_paper_accounting() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(2, 3, 10, 14))

    report = binarize.report(student, torch.zeros(2, 3, 10, 14))

    binary = 8 * 4 * 9 + 12 * 8 * 4 + 12 * 6 * 4
    assert report.binary_params == binary + 6 * 6 * 9
    assert report.params == report.float_params + report.binary_params / 32
    pixels = 2 * 10 * 14
    assert report.binary_ops == pixels * 8 * 4 * 9 * 2 + pixels // 4 * (12 * 8 * 4 + 12 * 6 * 4)
    assert report.float_ops == pixels * (8 * 3 * 9 + 6 * 2 + 6 * 6)
    assert report.ops == report.float_ops + report.binary_ops / 64


def rows(report: binarize.Report) -> dict[str, Row]:
    return {row.name: row for row in report.layers}


def test_shared_layer_counts_once_and_runs_twice() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))

    row = rows(binarize.report(student, torch.zeros(1, 3, 10, 14)))["twice"]

    assert row.calls == 2
    assert row.binary_params == 8 * 4 * 9
    assert row.binary_ops == 2 * 10 * 14 * 8 * 4 * 9
    # k and b per channel, one a, scale and shift of the norm per channel.
    assert row.float_params == 8 + 8 + 1 + 8 + 8
    assert (row.weight_bits, row.activation_bits) == (1, 1)
    # Bits, scales, k, b, a, four values of the norm per channel, and its counter.
    assert row.bytes == 8 * 4 * 9 // 8 + 4 * (8 + 8 + 8 + 1 + 4 * 8) + 8


def test_rows_tell_decisions_reasons_and_rules() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))

    table = rows(binarize.report(student, torch.zeros(1, 3, 10, 14)))

    stem = table["stem"]
    assert (stem.kind, stem.shape, stem.decision) == ("Conv2d", (8, 3, 3, 3), "keep")
    assert stem.rule == "role=input -> keep"
    assert stem.reason.startswith("reads the image")
    assert (stem.weight_bits, stem.activation_bits) == (32, 32)
    assert table["unused"].calls == 0
    assert table["unused"].ops == 0
    assert table["(root)"].float_params == 36
    assert table["(root)"].part == "other"
    assert table["(root):matmul"].float_ops == 10 * 14 * 36
    assert table["norm"].part == "norm"
    assert table["header and metadata"].part == "file"


def test_removed_projection_is_told_and_weighs_nothing() -> None:
    network = timm.create_model("test_resnet")
    student = binarize.convert(network, example_inputs=IMAGE)

    report = binarize.report(student, IMAGE)

    gone = [row for row in report.layers if row.decision == "remove"]
    assert gone
    for row in gone:
        assert row.params == row.ops == row.bytes == 0
        assert row.weight_bits is None
        assert row.shape[2:] == (1, 1)
    actions = [d.action for d in student.binarize_plan.additions]
    dropped, kept = actions.count("drop"), actions.count("keep")
    assert dropped > kept
    assert f"block shortcuts: {dropped} dropped, {kept} kept" in report.notes


def test_removed_projection_without_a_layer_alike_is_unknown() -> None:
    student = binarize.convert(timm.create_model("test_resnet"), example_inputs=IMAGE)
    plan = student.binarize_plan
    decisions = tuple(
        type(d)(**{**vars(d), "like": None}) if d.action == "remove" else d for d in plan.decisions
    )
    student.binarize_plan = type(plan)(**{**vars(plan), "decisions": decisions})

    report = binarize.report(student, IMAGE)

    assert report.reference_ops is None
    assert report.ops is not None
    assert "unknown" in str(report)


class Pair(Small):
    """Takes two images."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return super().forward(x) + super().forward(other).mean((2, 3), keepdim=True)


def test_operations_of_a_float_network_are_unknown_without_inputs() -> None:
    network = Small()

    report = binarize.report(network)

    assert report.ops is report.float_ops is report.binary_ops is report.reference_ops is None
    assert report.inputs is None
    assert {row.calls for row in report.layers} == {None}
    assert report.params == binarize.report(network, torch.zeros(1, 3, 10, 14)).params


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (Small, (torch.zeros(2, 3, 10, 14),)),
        (Pair, (torch.zeros(1, 3, 10, 14), torch.zeros(3, 3, 6, 8))),
        (lambda: Small().to(torch.bfloat16), (torch.zeros(1, 3, 10, 14, dtype=torch.bfloat16),)),
    ],
    ids=["one", "two", "bfloat16"],
)
def test_inputs_of_the_conversion_are_known_also_from_the_file(
    build: Callable[[], nn.Module], inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    student = binarize.convert(build(), example_inputs=inputs)
    expected = binarize.report(student, inputs)

    binarize.save(student, tmp_path / "a.safetensors")
    loaded = binarize.load(tmp_path / "a.safetensors", build())

    assert binarize.report(student) == expected
    assert binarize.report(loaded) == expected
    assert expected.file_bytes == (tmp_path / "a.safetensors").stat().st_size
    assert "unknown" not in str(expected)


def test_inputs_that_were_found_are_told() -> None:
    report = binarize.report(binarize.convert(Small()))

    assert report.inputs == "1×3×256×256"
    assert report.ops == binarize.report(binarize.convert(Small()), torch.zeros(1, 3, 256, 256)).ops


def test_inputs_given_by_name_are_not_known_later() -> None:
    inputs = {"x": torch.zeros(1, 3, 10, 14), "other": torch.zeros(1, 3, 10, 14)}
    student = binarize.convert(Pair(), example_inputs=inputs)

    assert binarize.report(student).ops is None
    assert binarize.report(student, inputs).ops is not None


def test_a_plan_that_does_not_know_its_inputs_is_read() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))
    told = student.binarize_plan.to_dict()
    del told["example"]  # as in older files
    student.binarize_plan = type(student.binarize_plan).from_dict(told)

    assert binarize.report(student).inputs is None


def test_operations_grow_with_the_batch_and_the_size() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))

    one = binarize.report(student, torch.zeros(1, 3, 10, 14))
    eight = binarize.report(student, torch.zeros(2, 3, 20, 28))

    assert eight.ops == 8 * one.ops
    assert eight.file_bytes == one.file_bytes


def test_training_changes_no_size() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))
    before = binarize.report(student)
    for parameter in student.parameters():
        parameter.data.normal_()

    assert binarize.report(student) == before


def test_half_precision_halves_the_floats() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))
    row = rows(binarize.report(student.bfloat16()))["stem"]

    assert row.bytes == 2 * (8 * 3 * 9 + 8)
    assert row.weight_bits == 16


def test_meta_device_is_enough() -> None:
    with torch.device("meta"):
        student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))
        image = torch.zeros(1, 3, 10, 14)
    real = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))

    assert binarize.report(student, image) == binarize.report(real, torch.zeros(1, 3, 10, 14))


def test_network_is_not_changed() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14)).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}

    binarize.report(student, torch.zeros(1, 3, 10, 14))

    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(module.training for module in student.modules())
    assert not any(module._forward_hooks for module in student.modules())


def test_loaded_network_has_the_same_report(tmp_path: Path) -> None:
    network, image = Small(), torch.zeros(1, 3, 10, 14)
    student = binarize.convert(network, example_inputs=image)
    binarize.save(student, tmp_path / "a.safetensors")

    loaded = binarize.load(tmp_path / "a.safetensors", network)

    assert binarize.report(loaded, image) == binarize.report(student, image)


def test_to_dict_is_json() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))

    report = binarize.report(student, torch.zeros(1, 3, 10, 14))
    data = json.loads(json.dumps(report.to_dict()))

    assert data["params"] == report.params
    assert data["ops"] == report.ops
    assert data["file_bytes"] == report.file_bytes
    assert data["inputs"] == "1×3×10×14"
    assert data["network"] == "Small"
    assert data["policy"] == "bidense"
    first = data["layers"][0]
    assert first["name"] == "stem"
    assert first["shape"] == [8, 3, 3, 3]
    assert first["ops"] == 10 * 14 * 8 * 27
    assert json.loads(json.dumps(binarize.report(Small()).to_dict()))["ops"] is None


def test_units_without_a_plan_are_counted_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), binarize.nn.BiConv2d(4, 6, 3, padding=1))

    report = binarize.report(network, torch.zeros(1, 3, 5, 5))

    assert report.binary_params == 6 * 4 * 9
    assert report.binary_ops == 25 * 6 * 4 * 9
    assert report.float_ops == 25 * 12


def test_network_without_anything() -> None:
    report = binarize.report(nn.ReLU(), torch.zeros(1, 3, 5, 5))

    assert report.params == report.ops == 0
    assert report.reference_bytes == 0
    assert "Total" in str(report)


def test_inputs_by_name_and_in_a_tuple() -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))
    image = torch.zeros(1, 3, 10, 14)

    assert binarize.report(student, {"x": image}) == binarize.report(student, (image,))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(1, 4, 10, 14), "the network's forward does not accept them"),
        (torch.zeros(1, 3, 10, 14, dtype=torch.int64), "images must be floating point"),
        ("image", "must be a tensor, a tuple or a mapping"),
    ],
)
def test_inputs_that_do_not_fit(inputs: object, words: str) -> None:
    student = binarize.convert(Small(), example_inputs=torch.zeros(1, 3, 10, 14))

    with pytest.raises(ModelError, match=words) as error:
        binarize.report(student, inputs)

    assert "\n" not in str(error.value)


def test_not_a_network() -> None:
    with pytest.raises(ModelError) as error:
        binarize.report("unet")  # type: ignore[arg-type]

    assert str(error.value) == "model='str': not a torch.nn.Module; give the network itself"
