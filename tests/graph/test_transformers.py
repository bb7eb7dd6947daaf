"""Networks of Hugging Face's transformers, made small from their configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.graph.origin import build_origin, find_origin

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; run `pip install '.[test]'`"
)

SIZE = 56
WIDTHS = [8, 16, 24, 32]
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def segformer(**options: Any) -> nn.Module:
    config = transformers.SegformerConfig(
        num_labels=5,
        depths=[1, 1, 1, 1],
        hidden_sizes=WIDTHS,
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
        **options,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def upernet() -> nn.Module:
    config = transformers.UperNetConfig(
        backbone_config=transformers.ConvNextConfig(
            depths=[1, 1, 1, 1], hidden_sizes=WIDTHS, out_features=STAGES
        ),
        hidden_size=16,
        num_labels=5,
        auxiliary_channels=16,
        auxiliary_in_channels=24,
        pool_scales=[1, 2],
    )
    return transformers.UperNetForSemanticSegmentation(config)


def depth_anything() -> nn.Module:
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=SIZE,
            patch_size=14,
            out_features=STAGES,
            reshape_hidden_states=False,
        ),
        reassemble_hidden_size=16,
        patch_size=14,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


def dpt() -> nn.Module:
    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=14,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return transformers.DPTForDepthEstimation(config)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "segformer": segformer,
    "upernet": upernet,
    "depth-anything": depth_anything,
    "dpt": dpt,
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]().eval()


def assert_alike(output: Any, wanted: Any, tolerance: float = 0.0) -> None:
    """Compare outputs: the same class of the library, with the same entries."""
    assert type(output) is type(wanted)
    assert list(output) == list(wanted)
    for value, other in zip(output.values(), wanted.values(), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(value, other, rtol=tolerance, atol=tolerance)


def test_from_conversion_to_programs(network: nn.Module, tmp_path: Path) -> None:
    x, file = torch.randn(2, 3, SIZE, SIZE), tmp_path / "network.safetensors"
    before = network(x)
    student = binarize.convert(network, example_inputs={"pixel_values": x}).eval()
    wanted = student(x)
    assert_alike(network(x), before)  # left as it was
    assert isinstance(wanted, transformers.utils.ModelOutput)
    assert list(wanted) == list(before)
    assert [v.shape for v in wanted.values()] == [v.shape for v in before.values()]
    assert student.binarize_plan.binary_share > 0.3
    assert not student.binarize_plan.opaque

    binarize.save(student, file)
    assert_alike(binarize.load(file)(x), wanted)  # built by its configuration
    assert_alike(binarize.load(file, network)(x), wanted)
    packed = binarize.pack(student)
    assert_alike(packed(pixel_values=x), wanted, 1e-5)
    assert packed.unfused is None
    assert_alike(binarize.load(file, packed=True)(x), wanted, 1e-5)

    packed(x)
    binarize.save(packed, file)
    assert_alike(binarize.load(file)(x), wanted, 1e-5)


@pytest.mark.parametrize("name", ["segformer", "dpt"])
def test_options_of_a_call(name: str) -> None:
    network = NETWORKS[name]().eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    student = binarize.convert(network, example_inputs=x).eval()
    packed = binarize.pack(student)

    plain = student(x, return_dict=False)
    assert isinstance(plain, tuple)
    torch.testing.assert_close(plain[0], student(x)[0], rtol=0, atol=0)
    wanted = student(x, output_hidden_states=True)
    assert len(wanted.hidden_states) == len(network(x, output_hidden_states=True).hidden_states)
    found = packed(x, output_hidden_states=True)
    for value, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["segformer", "upernet"])
def test_labels_give_a_loss_to_train_by(name: str) -> None:
    x, labels = torch.randn(2, 3, SIZE, SIZE), torch.randint(0, 5, (2, SIZE, SIZE))
    student = binarize.convert(NETWORKS[name](), example_inputs=x).train()
    result = student(pixel_values=x, labels=labels)
    assert list(result)[:2] == ["loss", "logits"]
    result.loss.backward()
    layers = [m for m in student.modules() if isinstance(m, binarize.nn.BinaryLayer)]
    reached = [layer for layer in layers if layer.weight.grad is not None]
    assert layers
    assert len(reached) == len(layers)
    assert all(torch.isfinite(layer.weight.grad).all() for layer in reached)


def test_origin_builds_the_network_alike(network: nn.Module) -> None:
    origin = find_origin(network)
    assert origin is not None
    assert origin["library"] == "transformers"
    twin = build_origin(origin)
    assert str(twin) == str(network)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, SIZE, SIZE)
    assert_alike(twin.eval()(x), network(x))


def test_origin_knows_how_attention_is_computed() -> None:
    for kind in ("eager", "sdpa"):
        origin = find_origin(segformer(attn_implementation=kind))
        assert origin is not None
        assert build_origin(origin).config._attn_implementation == kind
    for kind in ("eager", "sdpa"):  # of the backbone alone
        network: Any = depth_anything()
        network.backbone.config._attn_implementation = kind
        origin = find_origin(network)
        assert origin is not None
        twin: Any = build_origin(origin)
        assert twin.backbone.config._attn_implementation == kind
        assert twin.config._attn_implementation == network.config._attn_implementation


def test_changed_and_derived_networks_have_no_origin() -> None:
    changed: Any = segformer()
    changed.decode_head.activation = nn.GELU()
    assert find_origin(changed) is None

    class Mine(transformers.SegformerForSemanticSegmentation):
        pass

    assert find_origin(Mine(segformer().config)) is None
