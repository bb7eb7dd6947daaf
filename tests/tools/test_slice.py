"""One small network of most families: the slice of the survey that runs with the tests.

Of each the plan is made and carried out without storage, and its outputs compared in shape. What
`tools/survey.py` does beyond that is in test_zoos.py; values are in tests/graph.
"""

from __future__ import annotations

import pytest
from zoos import build

from binarize.survey import Case
from binarize.survey.examine import examine
from binarize.survey.row import CONVERTED, NOTHING
from binarize.survey.summary import TARGET

CONVOLUTIONAL = """
    halonet26t test_byobnet test_convnext cpubone_s0 csatv2 darknet17 cspnext_tiny dla34 dpn68
    edgenext_small efficientformer_l1 test_efficientnet tf_efficientnet_lite0 efficientvim_m1
    fasternet_t0 fastvit_t8 hgnetv2_b0 hrnet_w18_small inception_next_atto inception_v3
    lcnetv2_small lowformer_b0 test_mambaout coatnet_nano_rw_224 mobilevitv2_050
    test_nfnet rdnet_tiny regnetx_002 repvit_m0_9 res2net50_48w_2s resnest14d test_resnet resnet18d
    resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 skresnet18 starnet_s050
    swiftformer_xs tresnet_m vgg11 visformer_tiny ese_vovnet19b_slim_dw legacy_xception
""".split()
HYBRID = """
    coat_lite_tiny davit_tiny efficientvit_b0 ghostnet_050 hardcorenas_a levit_128 caformer_s18
    lcnet_050 mobilevit_xxs pvt_v2_b0 samvit_base_patch16
    swin_tiny_patch4_window7_224
    twins_svt_small vit_tiny_r_s16_p8_224 xcit_nano_12_p8_224
""".split()
TRANSFORMERS = "test_vit beit_base_patch16_224 convit_tiny gmlp_b16_224".split()
OTHERS = """
    timm:test_convnext+features timm:regnetx_002+features timm:lcnet_050+features
    smp:Segformer/mit_b0 smp:DPT/tu-test_vit smp:Unet/resnet18+aux smp:FPN/tu-test_resnet
    torchvision:lraspp_mobilenet_v3_large torchvision:shufflenet_v2_x0_5 torchvision:squeezenet1_1
    torchvision:ssdlite320_mobilenet_v3_large torchvision:r3d_18
""".split()
TASKS = {
    "torchvision:lraspp_mobilenet_v3_large": "segmentation",
    "torchvision:ssdlite320_mobilenet_v3_large": "detection",
    "torchvision:r3d_18": "video",
}


def case_of(key: str, task: str = "") -> Case:
    name, _, variant = key.partition("+")
    library, _, name = name.partition(":")
    known = {"smp": "segmentation_models_pytorch"}
    shape = (1, 3, 16, 112, 112) if task == "video" else None
    return Case(known.get(library, library), task, name, variant, shape=shape)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_become_binary(name: str) -> None:
    row = examine(Case("timm", "", name), light=True, build=build)
    assert row.status == CONVERTED, row.cause
    assert row.failures == {}
    assert row.map_share >= TARGET
    # What else is left is told, group by group, with its reason.
    left = sum(group["dense"] for group in row.kept)
    assert left == row.dense - row.dense_binary
    assert all(group["reason"] for group in row.kept)


@pytest.mark.parametrize("name", HYBRID)
def test_hybrids_become_binary_where_they_convolve(name: str) -> None:
    row = examine(Case("timm", "", name), light=True, build=build)
    assert row.status == CONVERTED, row.cause
    assert row.failures == {}
    assert row.dense_binary > 0
    # Attention and layers over tokens are left alone.
    for group in row.kept:
        if {"attention", "tokens"}.intersection(group["roles"]):
            assert group["dense"] == 0


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_told_apart(name: str) -> None:
    row = examine(Case("timm", "", name), light=True, build=build)
    assert row.status == NOTHING
    assert row.failures == {}
    assert not row.convolutional
    assert "role:tokens" in row.cause or "nothing to binarize" in row.cause


@pytest.mark.parametrize("key", OTHERS)
def test_other_ways_to_build_networks(key: str) -> None:
    row = examine(case_of(key, TASKS.get(key, "")), light="features" not in key, build=build)
    assert row.status == CONVERTED, row.cause
    assert row.failures == {}
    assert ("train" in row.checks) == ("features" in key)
