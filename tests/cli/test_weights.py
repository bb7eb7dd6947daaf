"""Weight files: what fits where."""

from __future__ import annotations

import argparse
import functools
import os
from collections import Counter
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from binarize.cli.weights import load_encoder, load_weights, save_float
from binarize.errors import FileError
from binarize.train import unfold_norms

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "weights"
ROOT = Path(os.environ.get("BINARIZE_WEIGHTS", BESIDE))


def block() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    )  # fmt: skip


def test_an_encoder_takes_torchvision_s_names(tmp_path: Path) -> None:
    backbone = timm.create_model("resnet18")
    tensors = {k: v for k, v in backbone.state_dict().items() if not k.startswith("layer4.1")}
    save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()},
              tmp_path / "w.safetensors")  # fmt: skip
    for name in ("resnet18", "tu-resnet18"):
        network = smp.Unet(name, encoder_weights=None, classes=2)
        matched = load_encoder(network, tmp_path / "w.safetensors")
        assert matched.loaded == len(tensors) - 2  # all but the classifier
        assert set(matched.unused) == {"fc.weight", "fc.bias"}
        assert any(key.rpartition("layer4.1")[1] for key in matched.missing)
        weight = dict(network.encoder.named_parameters())
        first = weight.get("conv1.weight", weight.get("model.conv1.weight"))
        assert torch.equal(first, backbone.conv1.weight.half().float())


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "encoder", "loaded", "unfolded"),
    [
        ("resnet18_imagenet_to_layer3", "resnet18", 80, 16),
        ("mobilenet_v2_imagenet", "mobilenet_v2", 260, 52),
    ],
)
def test_the_pretrained_files(file: str, encoder: str, loaded: int, unfolded: int) -> None:
    path = ROOT / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}; set BINARIZE_WEIGHTS to the folder that has it")
    network = smp.Unet(encoder, encoder_weights=None, classes=2)
    assert load_encoder(network, path).loaded == loaded
    assert unfold_norms(network, [{"image": torch.randn(2, 3, 64, 64)}]) == unfolded


def test_a_float_file_tells_its_network(tmp_path: Path) -> None:
    from binarize.cli.sources import known_about, open_file

    network = smp.Unet("resnet18", encoder_weights=None, classes=3)
    recipe = {"spec": "smp:Unet:resnet18", "classes": 3, "in_channels": 3, "arguments": {}}
    save_float(network, tmp_path / "w.safetensors", {"recipe": recipe, "settings": {"a": 1}})
    assert known_about(tmp_path / "w.safetensors")["settings"] == {"a": 1}
    again = open_file(str(tmp_path / "w.safetensors")).network
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(image), network.eval()(image))


@pytest.mark.parametrize("wrapped", [set(), {"state_dict"}, {"model", "epoch"}])
def test_checkpoints_of_others(tmp_path: Path, wrapped: set[str]) -> None:
    source, target = block(), block()
    found: dict = {f"module.{k}": v for k, v in source.state_dict().items()}
    for key in sorted(wrapped - {"epoch"}):
        found = {key: found, "epoch": 3}
    torch.save(found, tmp_path / "w.pt")
    assert load_weights(target, tmp_path / "w.pt").missing == ()
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, b)


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "a.b.c."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_any_prefix_of_all_names(tmp_path: Path, prefix: str, ending: str) -> None:
    source, target = block(), block()
    named = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / f"w.{ending}"
    torch.save(named, path) if ending == "pt" else save_file(named, path)
    assert load_weights(target, path).missing == ()
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lightning_ema_and_other_wrappers(tmp_path: Path) -> None:
    source, target = block(), block()
    state = source.state_dict()
    other = {k: torch.zeros(3) for k in ("exp_avg", "exp_avg_sq")}
    optimizer = {"state": {0: other}, "param_groups": [{"lr": 0.1}]}
    lightning = {
        "state_dict": {
            **{f"model.{k}": v for k, v in state.items()},
            "loss.weight": torch.ones(3),
        },
        "optimizer_states": [optimizer],
        "epoch": 3,
    }
    for name, found in {
        "lightning": lightning,
        "ema": {"ema": {"module": state, "decay": 0.9}, "optimizer": optimizer},
        "params_ema": {"params_ema": state},
        "averaged": {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in state.items()}},
        "deep": {"checkpoint": {"network": {"weights": state}}, "args": {"seed": 0}},
    }.items():
        torch.save(found, tmp_path / f"{name}.pt")
        matched = load_weights(target, tmp_path / f"{name}.pt")
        assert matched.missing == (), name
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            assert torch.equal(a, b)


class Options:
    """A hyperparameter of a class of its own, which marks a file if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_hyperparameters_are_not_unpickled(tmp_path: Path, zipped: bool) -> None:
    source, target = block(), block()
    hyper = {
        "options": Options(tmp_path / "ran"), "file": tmp_path, "all": argparse.Namespace(a=[1]),
        "optimizer": functools.partial(torch.optim.Adam, lr=0.1), "net": block(), "act": nn.ReLU,
        "counts": Counter("aab"), "names": {"a"}, "dtype": torch.float16,
    }  # fmt: skip
    state = {f"model.net.{key}": value for key, value in source.state_dict().items()}
    found = {"state_dict": state, "hyper_parameters": hyper, "pytorch-lightning_version": "2.6.0"}
    torch.save(found, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    assert load_weights(target, tmp_path / "w.ckpt").missing == ()
    assert torch.equal(target[0].weight, source[0].weight)
    assert not (tmp_path / "ran").exists()


def test_parts_that_were_compiled(tmp_path: Path) -> None:
    source = nn.Sequential(block(), block())
    # As torch.compile(source[1]) renames them.
    named = {
        k.replace("1.", "1._orig_mod.", 1) if k.startswith("1.") else k: v
        for k, v in source.state_dict().items()
    }
    assert "1._orig_mod.3.weight" in named
    for prefix in ("", "model.", "_orig_mod."):
        target = nn.Sequential(block(), block())
        torch.save({prefix + k: v for k, v in named.items()}, tmp_path / "w.pt")
        assert load_weights(target, tmp_path / "w.pt").missing == ()
        assert torch.equal(target[1][3].weight, source[1][3].weight)


def test_a_pickled_network_is_not_run(tmp_path: Path) -> None:
    for found in (block(), {"model": block(), "epoch": 3}):
        torch.save(found, tmp_path / "w.pt")
        with pytest.raises(FileError, match="no named weights, but a pickled network, which would"):
            load_weights(block(), tmp_path / "w.pt")


def test_a_checkpoint_that_is_none_names_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "config": {"a": 1}}, tmp_path / "w.pt")
    with pytest.raises(FileError, match="contains no named weights under epoch, config; give"):
        load_weights(block(), tmp_path / "w.pt")
    torch.save({"a.weight": torch.zeros(2), "b.weight": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(FileError, match="no tensor fits: the file has a.weight, b.weight, the net"):
        load_weights(block(), tmp_path / "w.pt")
    two = {f"{prefix}.{k}": v for prefix in "ab" for k, v in block().state_dict().items()}
    torch.save(two, tmp_path / "w.pt")  # which of the two is meant is not known
    with pytest.raises(
        FileError, match="two fitting networks, with names that start with a. and with b."
    ):
        load_weights(block(), tmp_path / "w.pt")
