"""Every network of the three libraries is surveyed, and some are examined."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
from zoos import build, build_quickly, catalogue

from binarize import convert
from binarize.errors import ModelError
from binarize.survey import Case, select, spread, survey
from binarize.survey.examine import _original, _train, examine
from binarize.survey.row import CONVERTED

CASE = Case("timm", "resnet", "test_resnet")


@pytest.fixture(scope="module")
def everything() -> list[Case]:
    return catalogue()


def test_every_timm_network_is_there(everything: list[Case]) -> None:
    import timm

    ours = [case for case in everything if case.library == "timm"]
    assert {case.name for case in ours if not case.variant} == set(timm.list_models())
    assert {case.family for case in ours} == set(timm.list_modules())
    samples = Counter(case.family for case in ours if case.sample)
    assert set(samples) == set(timm.list_modules())
    assert set(samples.values()) == {1}
    assert {case.family for case in ours if case.variant == "features"} == set(timm.list_modules())


def test_every_smp_decoder_and_encoder_is_there(everything: list[Case]) -> None:
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING as architectures
    from segmentation_models_pytorch.encoders import encoders

    ours = [case for case in everything if case.library == "segmentation_models_pytorch"]
    decoders = {cls.__name__ for cls in architectures.values()}
    assert len(decoders) >= 12
    assert {case.family for case in ours} == decoders
    assert {case.family for case in ours if case.variant == "aux"} == decoders
    assert {case.family for case in ours if case.sample} == decoders
    assert {f"Unet/{name}" for name in encoders} <= {case.name for case in ours}
    # Every decoder meets an encoder of every family.
    counts = Counter(case.family for case in ours if not case.variant)
    assert min(counts.values()) >= 20


def test_torchvision_is_there(everything: list[Case]) -> None:
    ours = {case.name for case in everything if case.library == "torchvision"}
    for name in ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "resnet18",
                 "fasterrcnn_resnet50_fpn", "r3d_18"):  # fmt: skip
        assert name in ours


def test_keys_are_unique_and_in_a_fixed_order(everything: list[Case]) -> None:
    keys = [case.key for case in everything]
    assert len(set(keys)) == len(keys)
    assert [case.key for case in catalogue()] == keys


def test_selection(everything: list[Case]) -> None:
    assert select(everything, []) == everything
    few = select(everything, ["timm:resnet18", "smp:FPN/resnet18"])
    assert [case.key for case in few] == ["timm:resnet18", "smp:FPN/resnet18"]
    assert {case.family for case in select(everything, ["vgg"])} == {"vgg"}
    with pytest.raises(ModelError, match="none of the .* networks matches it"):
        select(everything, ["timm:resnet18", "timm:resnet19"])


def test_a_survey_sees_every_family_first(everything: list[Case]) -> None:
    order = spread(everything)
    assert sorted(case.key for case in order) == sorted(case.key for case in everything)
    families = {(case.library, case.family) for case in everything}
    soon = order[: len(families) + sum(case.sample for case in everything)]
    assert {(case.library, case.family) for case in soon} == families
    samples = [case.sample for case in order]
    assert samples == sorted(samples, reverse=True)


def test_rows_come_from_other_processes() -> None:
    (row,) = survey([CASE], timeout=120, build=build_quickly)
    assert row.status == CONVERTED
    assert row.failures == {}
    assert row.checks == {"forward": "ok", "reload": "ok", "train": "ok"}
    assert row.ops is not None
    assert row.reference_ops is not None
    assert 0 < row.ops < row.reference_ops / 10
    assert row.effective_params is not None
    assert 0 < row.effective_params < row.params
    assert (row.size, row.other_size) == ([160, 160], [199, 249])


def test_a_layer_without_a_gradient_is_a_failure_unless_the_original_has_none_either() -> None:
    # Of the encoder the decoder takes no map behind the fourth.
    row = examine(
        Case("segmentation_models_pytorch", "PSPNet", "PSPNet/efficientnet-b0"), build=build
    )
    assert row.status == CONVERTED
    assert row.failures == {}
    assert row.checks["train"] == "ok"

    with torch.device("meta"):
        teacher = timm.create_model("test_resnet")
    student = convert(teacher)
    site = next(d.site for d in student.binarize_plan.layers if d.action == "binarize")
    x = torch.zeros(2, 3, 64, 64, device="meta")
    assert _train(teacher, student, x, None) is None
    student.get_submodule(site).register_forward_hook(lambda _module, _args, out: out.detach())
    assert str(_train(teacher, student, x, None)).startswith(f"no gradient for {site}.")


def test_a_network_that_cannot_be_built_without_storage_loses_it() -> None:
    # Its constructor computes with tensors.
    case = Case("torchvision", "classification", "regnet_x_400mf")
    with pytest.raises(NotImplementedError), torch.device("meta"):
        build(case)
    model, x, _ = _original(case, build)
    assert x.is_meta
    assert all(p.is_meta for p in model.parameters())
    row = examine(case, build=build)
    assert row.failures == {}


@pytest.mark.parametrize("name", ["s3d", "mvit_v2_s"])
def test_networks_for_films_are_examined_at_the_size_they_take(
    name: str, everything: list[Case]
) -> None:
    (case,) = select(everything, [f"torchvision:{name}"])
    row = examine(case, light=True, build=build)
    assert row.status == CONVERTED, row.cause
    assert row.failures == {}
    assert row.size == [16, 224, 224]


def test_a_light_survey_examines_samples_in_full() -> None:
    sample = Case("timm", "resnet", "test_resnet", sample=True)
    rows = list(survey([CASE, sample], timeout=240, light=True, build=build_quickly))
    assert [(row.light, "train" in row.checks, "real" in row.checks) for row in rows] == [
        (True, False, False),
        (False, True, True),
    ]
