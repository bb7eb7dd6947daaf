"""Networks that cannot be packed raise a one-line error, and nothing is changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import binarize
from binarize.errors import ModelError


def test_what_cannot_be_packed(shop: SimpleNamespace) -> None:
    student = shop.student(shop.UNet())
    training = shop.student(shop.UNet())
    training.block.conv1.train()
    cases: dict[str, tuple[Any, str]] = {
        "float": (
            shop.UNet().eval(),
            "model='UNet': it has no binary layers; convert it first: binarize.convert(model)",
        ),
        "twice": (
            binarize.pack(student),
            "model='PackedNetwork': it is already packed; use it as it is",
        ),
        "training": (
            training,
            "model='block.conv1': this module is in training mode, but packed networks are for "
            "inference; call model.eval() first",
        ),
        "all in training": (
            shop.student(shop.UNet()).train(),
            "model='UNet': this module is in training mode, but packed networks are for "
            "inference; call model.eval() first",
        ),
        "no network": (
            student.state_dict(),
            "model='OrderedDict': not a torch.nn.Module; give the network itself",
        ),
        "meta": (
            shop.student(shop.UNet()).to("meta"),
            "model='stem.weight': a tensor on the meta device has no values; load weights first",
        ),
    }
    for name, (model, message) in cases.items():
        with pytest.raises(ModelError) as caught:
            binarize.pack(model)
        assert str(caught.value) == message, name


def test_example_inputs_that_do_not_fit(shop: SimpleNamespace) -> None:
    student = shop.student(shop.UNet())
    with pytest.raises(ModelError, match="the network does not accept them .RuntimeError: Given"):
        binarize.pack(student, example_inputs=torch.zeros(1, 7, 8, 8))
    with pytest.raises(ModelError, match="must be a tensor, a tuple or a mapping"):
        binarize.pack(student, example_inputs=3)


def test_training_is_refused(shop: SimpleNamespace) -> None:
    packed = binarize.pack(shop.student(shop.UNet()))
    with pytest.raises(ModelError) as caught:
        packed.train()
    assert str(caught.value) == (
        "model='UNet': a packed network is for inference; train the network that it was packed from"
    )
    assert packed.eval() is packed
    assert not any(module.training for module in packed.modules())
    with pytest.raises(ModelError, match="binarize.convert did not make it"):
        binarize.save(nn.Sequential(packed), "never.safetensors")


def test_the_original_is_left_alone(shop: SimpleNamespace) -> None:
    student = shop.student(shop.UNet())
    before = {key: value.clone() for key, value in student.state_dict().items()}
    grads = [parameter.requires_grad for parameter in student.parameters()]
    binarize.pack(student, example_inputs=torch.zeros(1, 3, 8, 8)).bfloat16()
    after = student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert grads == [parameter.requires_grad for parameter in student.parameters()]
