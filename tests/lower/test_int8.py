"""Networks with 8-bit layers, from conversion to programs in files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, StdConv2d
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError, DataError, ModelError
from binarize.graph.plan import Plan
from binarize.graph.rewrite import apply_plan
from binarize.kernels import native
from binarize.kernels.int8 import _has_onednn, int8_layer
from binarize.kernels.ops import run_unit
from binarize.lower import fuse
from binarize.lower.units import arguments, is_call
from binarize.nn import BinaryLayer, Int8Layer
from binarize.policy.loader import from_dict


def chain(affine: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),
    )


class Shaped(nn.Module):
    """8-bit layers whose results are read in several ways."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.other = nn.BatchNorm2d(6)
        used = set()
        for name, module in self.named_children():
            module.register_forward_hook(lambda *_, name=name: used.add(name))
        self(torch.zeros(1, 3, 4, 4))
        for name, module in list(self.named_children()):
            module._forward_hooks.clear()
            if name not in used:
                delattr(self, name)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.what == "shared norm":
            x = self.norm(self.second(F.relu(self.norm(x))))
        elif self.what == "twice":
            x = F.relu(self.norm(x))
            x = self.second(x) + self.third(x)
        elif self.what == "one range":
            x = F.relu(self.norm(x))
            return self.second(x), self.third(x)
        elif self.what == "another reader":
            x = F.relu(self.norm(x))
            return self.second(x), x.mean((2, 3))
        elif self.what == "residual":
            x = F.relu(x)
            x = F.relu(x + self.norm(self.second(x)))
        elif self.what == "shared layer":
            x = self.second(F.hardswish(self.second(x)))
        elif self.what == "norm behind":
            x = self.norm(F.relu(x))
        elif self.what == "two activations":
            x = F.relu(x), x.clamp(0, 0.1)
        elif self.what == "normed and not":
            x = self.norm(x), F.relu(x)
        elif self.what == "norms":
            x = self.other(self.norm(x))
        elif self.what == "silu":
            x = self.third(F.silu(self.other(self.second(x))))
        elif self.what == "clamp":
            x = self.third(self.second(x.clamp(-0.4, 1.5)).clamp(min=0.1)).clamp(max=2)
        elif self.what == "resized":
            x = self.second(F.interpolate(F.relu(x), scale_factor=2))
        elif self.what == "concatenated":
            x = self.second(torch.cat([x[:, :3], F.relu(x)[:, 3:]], 1))
        return x


WHAT = [
    *("shared norm", "twice", "one range", "another reader", "residual", "shared layer"),
    *("norm behind", "norms", "silu", "clamp", "resized", "concatenated"),
    *("two activations", "normed and not"),
]


def student(network: nn.Module, x: Tensor, policy: str = "bidense", **options: Any) -> Any:
    """A converted network that has seen data, in eval mode."""
    torch.manual_seed(0)
    converted = binarize.convert(network, policy, example_inputs=x, **options)
    with torch.no_grad():
        for module in converted.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
        for _ in range(3):
            converted(x + 0.1 * torch.randn_like(x))
    return converted.eval()


def eight(network: nn.Module, x: Tensor) -> Any:
    return student(network, x, overrides={"*": "int8"})


def flat(y: Any) -> Tensor:
    return torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y.flatten()


def assert_alike(packed: Any, network: nn.Module, x: Tensor) -> None:
    """Equal but for the few values where rounding is a matter of the last bit."""
    with torch.no_grad():
        wanted = flat(network(x))
        results = packed.network(x), packed(x), packed(x)
    assert packed.unfused is None
    for y in map(flat, results):
        assert ((y - wanted).abs() < 1e-4 * wanted.abs().max()).float().mean() > 0.99
        assert (y - wanted).abs().max() < 0.05 * wanted.abs().max()


def nodes(packed: Any) -> list[Any]:
    (program,) = packed._programs.values()
    return [n for n in program.module.graph.nodes if n.op == "call_function"]


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 9, 12)
    x[0, :, :4] = 0
    return x


@pytest.mark.parametrize("affine", [True, False])
def test_a_chain_hands_on_codes(image: Tensor, affine: bool) -> None:
    network = eight(chain(affine), image)
    packed = binarize.pack(network)
    assert_alike(packed, network, image)
    made = nodes(packed)
    assert [node.target for node in made] == [int8_layer] * 3
    first, second, third = (arguments(node) for node in made)
    assert (first["activation"], first["limits"]) == ("hardtanh", [0.0, 6.0])
    assert (second["activation"], third["activation"]) == ("relu", "none")
    assert (first["y_scale"], first["y_zero"]) == (second["x_scale"], second["x_zero"])
    assert (second["y_scale"], second["y_zero"]) == (third["x_scale"], third["x_zero"])
    assert third["y_scale"] is None
    assert packed(image[:0]).shape == (0, 12, 5, 6)
    assert torch.equal(packed(image[:1]), packed(image)[:1])
    last = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(packed(last), packed(image))


class Expanded(nn.Module):
    """A 1-bit layer that 8-bit layers read."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.other = nn.Conv2d(24, 24, 3, padding=1)
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.expand(self.first(x))
        y = self.depthwise(x)
        if self.what == "two readers":
            y = y + self.other(x)
        elif self.what == "a sum":
            y = y + x
        return self.last(y)


@pytest.mark.parametrize("what", ["alone", "two readers", "a sum"])
def test_a_unit_writes_codes_for_8_bit_layers(
    image: Tensor, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = dict.fromkeys(("first", "depthwise", "other", "last"), "int8")
    network = student(Expanded(what), image, overrides=overrides)
    packed = binarize.pack(network)
    found = packed(image)
    (call,) = (arguments(node) for node in nodes(packed) if is_call(node, run_unit))
    (reader,) = (
        arguments(node)
        for node in nodes(packed)
        if is_call(node, int8_layer) and arguments(node)["groups"] == 24
    )
    if what == "a sum":
        assert call["y_scale"] is None
    else:
        assert (call["y_scale"], call["y_zero"]) == (reader["x_scale"], reader["x_zero"])
    # Rounding in the unit or in its reader is the same.
    monkeypatch.setattr(fuse, "pass_codes", lambda recording: None)
    plain = binarize.pack(network)
    assert torch.equal(plain(image), found)
    calls = [arguments(node) for node in nodes(plain) if is_call(node, run_unit, int8_layer)]
    assert all(given["y_scale"] is None for given in calls)
    binarize.save(packed, tmp_path / "programs.safetensors")
    assert torch.equal(binarize.load(tmp_path / "programs.safetensors")(image), found)


def test_calls_without_later_arguments_are_understood(image: Tensor) -> None:
    """Files of earlier versions hold calls without what was added at the end since."""
    packed = binarize.pack(student(Expanded("a sum"), image, overrides={"first": "int8"}))
    packed(image)
    for node in nodes(packed):
        if not is_call(node, run_unit):
            continue
        given = arguments(node)
        node.args = node.args[:25]
        assert arguments(node) == given
        assert (given["y_scale"], given["y_zero"]) == (None, 0)


@pytest.mark.parametrize("what", WHAT)
def test_what_follows_a_layer(image: Tensor, what: str) -> None:
    network = eight(Shaped(what), image)
    packed = binarize.pack(network)
    assert_alike(packed, network, image)
    layers = [arguments(node) for node in nodes(packed) if is_call(node, int8_layer)]
    others = [node for node in nodes(packed) if not is_call(node, int8_layer)]
    codes = [call["y_scale"] is not None for call in layers]
    does = [call["activation"] for call in layers]
    if what in ("twice", "one range"):
        # Both read the same numbers, so their ranges are the same.
        assert codes == [True, False, False]
        assert does[0] == "relu"
    elif what == "shared layer":
        assert codes == [True, True, False] or codes == [False, True, False]
        assert does == ["none", "hardswish", "none"]
    elif what == "shared norm":
        assert (codes, does) == ([True, False], ["relu", "none"])
        assert not others
    elif what == "silu":
        assert (codes, does) == ([True, True, False], ["none", "swish", "none"])
    elif what == "norms":
        assert not any(codes)
    elif what == "clamp":
        assert does[0] == "hardtanh"
        assert does[1:] == ["none", "none"]
    else:
        assert not any(codes)
        several = ("concatenated", "two activations", "normed and not")
        assert does[0] == ("none" if what in several else "relu")


def test_readers_of_two_ranges(image: Tensor) -> None:
    network = eight(Shaped("one range"), image)
    network.third.input_range.limits.mul_(0.5)
    packed = binarize.pack(network)
    assert_alike(packed, network, image)
    assert all(arguments(n)["y_scale"] is None for n in nodes(packed) if is_call(n, int8_layer))


def test_bits_and_eight_bits_in_one_network(image: Tensor) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )
    made = student(network, image, "deploy")
    actions = {d.site: d.action for d in made.binarize_plan.layers}
    assert actions == {"0": "int8", "3": "binarize", "6": "int8", "8": "int8"}
    packed = binarize.pack(made)
    assert_alike(packed, made, image)
    paths = {row.name: row.path for row in binarize.report(packed).layers}
    assert paths == {"0": "int8", "3": "popcount", "6": "int8", "8": "int8"}


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_dimensions(dims: int) -> None:
    conv: Any = nn.Conv1d if dims == 1 else nn.Conv3d
    norm: Any = nn.BatchNorm1d if dims == 1 else nn.BatchNorm3d
    up: Any = nn.ConvTranspose1d if dims == 1 else nn.ConvTranspose3d
    network = nn.Sequential(
        conv(2, 4, 3, padding=1, padding_mode="circular"),
        norm(4),
        nn.ReLU(),
        up(4, 4, 2, stride=2, groups=2),
        norm(4),
        nn.ReLU6(),
        conv(4, 3, 1),
    )
    x = torch.randn(2, 2, *(5, 4, 3)[:dims])
    made = eight(network, x)
    packed = binarize.pack(made)
    assert_alike(packed, made, x)
    assert len(nodes(packed)) >= 3


def test_tokens(image: Tensor) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.gelu(self.up(x.flatten(2).transpose(1, 2))))

    made = eight(Tokens(), image)
    assert_alike(binarize.pack(made), made, image)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(image: Tensor, kind: torch.dtype) -> None:
    made = eight(chain(), image).to(kind)
    packed, x = binarize.pack(made), image.to(kind)
    y, wanted = packed(x), made(x)
    assert y.dtype == kind
    room = 1e-3 if kind == torch.float64 else 0.1
    torch.testing.assert_close(y, wanted, rtol=room, atol=room)


def test_padding_to_same(image: Tensor) -> None:
    network = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    made = eight(network, image)
    assert isinstance(made[0], Conv2dSame)
    assert isinstance(made[0], Int8Layer)
    plain = copy.deepcopy(network)
    packed = binarize.pack(made)
    assert_alike(packed, made, image)
    assert isinstance(packed.network[0], Conv2dSame)
    assert packed(image).shape == plain(image).shape


def test_the_reference_gives_the_same(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    made = eight(chain(), image)
    wanted = binarize.pack(made)(image)
    monkeypatch.setenv(native.ENVIRONMENT, "reference")
    native.int8_kernels.cache_clear()
    try:
        assert native.int8_kernels() is None
        found = binarize.pack(made)(image)
    finally:
        native.int8_kernels.cache_clear()
        _has_onednn.cache_clear()
    assert ((found - wanted).abs() < 1e-5).float().mean() > 0.99


# Files


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_files(image: Tensor, tmp_path: Path, kind: torch.dtype) -> None:
    network = chain()
    made, x = student(network, image, "deploy").to(kind), image.to(kind)
    path = tmp_path / "a.safetensors"
    binarize.save(made, path)
    with torch.no_grad():
        wanted = made(x)
        for given in (network, copy.deepcopy(network).to(kind)):
            loaded = binarize.load(path, given)
            assert {p.dtype for p in loaded.parameters()} == {kind}
            assert torch.equal(loaded(x), wanted)
            packed = binarize.load(path, given, packed=True)
            assert torch.equal(packed(x), binarize.pack(made)(x))
    binarize.save(loaded, tmp_path / "b.safetensors")
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    if kind == torch.float32:
        report = binarize.report(made, x)
        assert report.file_bytes == path.stat().st_size
        assert sum(row.bytes for row in report.layers) == report.file_bytes


def test_files_of_shared_layers(image: Tensor, tmp_path: Path) -> None:
    network = Shaped("twice")
    network.second = nn.Conv2d(6, 6, 1, bias=False)
    network.second.weight = network.third.weight
    made = eight(network, image)
    binarize.save(made, tmp_path / "a.safetensors")
    loaded: Any = binarize.load(tmp_path / "a.safetensors", network)
    assert torch.equal(loaded(image), made(image))
    assert loaded.third.weight is loaded.second.weight


CHILD = """
import sys, torch, binarize
network = binarize.load(sys.argv[1])
x, y = torch.load(sys.argv[2], weights_only=True)
assert torch.equal(network(x), y), (network(x) - y).abs().max()
"""


def test_programs_in_another_process(image: Tensor, tmp_path: Path) -> None:
    packed = binarize.pack(student(chain(), image, "deploy"))
    torch.save([image, packed(image)], tmp_path / "told.pt")
    binarize.save(packed, tmp_path / "programs.safetensors")
    assert torch.equal(binarize.load(tmp_path / "programs.safetensors")(image), packed(image))
    command = [sys.executable, "-c", CHILD, tmp_path / "programs.safetensors", tmp_path / "told.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]


# Plans and reports


def test_counts(image: Tensor) -> None:
    made = eight(chain(), image)
    report = binarize.report(made, image[:1])
    rows = {row.name: row for row in report.layers if row.part == "layer"}
    assert {name: row.int8_params for name, row in rows.items()} == {"0": 216, "3": 72, "6": 96}
    places = 5 * 6
    assert {n: row.int8_ops for n, row in rows.items()} == {
        "0": 216 * places,
        "3": 72 * places,
        "6": 96 * places,
    }
    for row in rows.values():
        assert (row.weight_bits, row.activation_bits, row.decision) == (8, 8, "int8")
        assert row.binary_params == row.binary_ops == row.float_ops == 0
        assert row.params == row.float_params + row.int8_params / 4
        assert row.ops == row.int8_ops / 8
    assert (report.int8_params, report.int8_ops) == (384, 384 * places)
    assert report.params == report.float_params + 384 / 4
    assert report.ops == 384 * places / 8
    told = report.to_dict()
    assert (told["int8_params"], told["int8_ops"]) == (384, 384 * places)
    assert "8-bit" in str(report)
    # Codes, scales, limits and the counter.
    assert 216 + 4 * 8 <= rows["0"].bytes <= 216 + 4 * 8 + 2 * 4 + 8
    packed = binarize.report(binarize.pack(made))
    assert [(row.path, row.kind) for row in packed.layers] == [("int8", "PackedInt8")] * 3


def test_plans(image: Tensor) -> None:
    network = chain()
    plan = binarize.plan(network, "bidense", example_inputs=image, overrides={"3": "int8"})
    assert {d.site: d.action for d in plan.layers} == {"0": "keep", "3": "int8", "6": "keep"}
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    apply_plan(network, plan)
    assert [isinstance(m, Int8Layer) for m in network if isinstance(m, nn.Conv2d)] == [
        *(False, True, False),
    ]


def test_a_rule_of_another_unit() -> None:
    rule = {"match": {"role": "input"}, "action": "int8", "unit": {"bypass": None}, "reason": "x"}
    with pytest.raises(BinarizeError) as caught:
        from_dict({"name": "p", "extends": "bidense", "rules": [rule]})
    assert str(caught.value) == (
        "policy='p': rules[1].unit: a layer that is 8-bit has no unit; remove it; "
        "correct these keys"
    )


def test_layers_that_stay(image: Tensor) -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    network = nn.Sequential(
        StdConv2d(3, 4, 3, padding=1), nn.ReLU(), Own(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    made = eight(network, image)
    decided = {d.site: d for d in made.binarize_plan.layers}
    assert {site: d.action for site, d in decided.items()} == {
        "0": "keep",
        "2": "keep",
        "4": "int8",
    }
    assert decided["0"].reason == "it standardizes its weight in its own forward"
    assert decided["2"].reason
    assert not isinstance(made[2], Int8Layer | BinaryLayer)


def test_layers_that_nothing_calls(image: Tensor) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aid = nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 1)
            self.unused = nn.Conv2d(3, 3, 3, groups=3)

        def forward(self, x: Tensor) -> Any:
            y = self.body(x)
            return (y, self.aid(y)) if self.training else y

    for policy, overrides in (("deploy", None), ("bidense", {"*": "int8"})):
        made = binarize.convert(Heads(), policy, example_inputs=image, overrides=overrides)
        decided = {d.site: (d.action, d.reason) for d in made.binarize_plan.layers}
        assert decided["body"][0] == "int8"
        for site, why in (("aid", "only training calls it"), ("unused", "never calls it")):
            assert decided[site][0] == "keep"
            assert why in decided[site][1]
        binarize.recalibrate(made, [image])
        binarize.pack(made.eval())(image)


def test_a_network_that_saw_nothing(image: Tensor, tmp_path: Path) -> None:
    made = binarize.convert(chain(), example_inputs=image, overrides={"*": "int8"}).eval()
    with pytest.raises(ModelError) as caught:
        binarize.pack(made)
    assert str(caught.value) == (
        "model='0': the range of this 8-bit layer's input was never observed; "
        "train it, or call binarize.recalibrate(model, batches)"
    )
    binarize.save(made, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="was never observed"):
        binarize.load(tmp_path / "a.safetensors", chain(), packed=True)
    binarize.pack(binarize.recalibrate(made, [image]))(image)


# Training


def ranges(network: nn.Module) -> list[Tensor]:
    return [m.input_range.limits.clone() for m in network.modules() if isinstance(m, Int8Layer)]


def test_recalibration(image: Tensor) -> None:
    made = eight(chain(), image)
    batches = [image * k for k in (1, 3, 8)]
    first = made[0].input_range
    before = [value.clone() for value in made.state_dict().values()]
    with pytest.raises(DataError):
        binarize.recalibrate(made, [*batches, torch.zeros(2, 3, 4, 4, dtype=torch.uint8)])
    after = made.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    binarize.recalibrate(made, batches)
    wanted = torch.tensor([image.min(), image.max()]) * 4
    torch.testing.assert_close(first.limits, wanted)
    assert (first.num_batches_tracked, first.momentum, first.training) == (3, 0.1, False)
    only = binarize.convert(nn.Sequential(nn.Conv2d(3, 2, 1)), overrides={"*": "int8"})
    binarize.recalibrate(only, [image])
    assert only[0].input_range.is_observed


@pytest.mark.filterwarnings("ignore::binarize.errors.SlowWarning")
def test_an_epoch_and_going_on(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    from binarize.data import Scenes
    from binarize.train import Trainer

    def run(epochs: int, folder: str, **options: Any) -> Any:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1),
        )
        made = binarize.convert(network, "deploy", example_inputs=torch.zeros(1, 3, 24, 32))
        data = Scenes(4, (24, 32), task="segmentation")
        settings: dict[str, Any] = {"balance": 0, "progress": False, "num_classes": 6, **options}
        trainer = Trainer(made, epochs=epochs, lr=1e-2, output_dir=tmp_path / folder, **settings)
        trainer.fit(DataLoader(data, 2, shuffle=True))
        return made

    whole = run(2, "whole")
    assert [m for m in whole.modules() if isinstance(m, Int8Layer)]
    assert all(limits[1] > 0 for limits in ranges(whole))
    starts = tmp_path / "whole"
    assert (starts / "last.pt").is_file()
    whole.eval()
    x = torch.rand(1, 3, 24, 32)
    assert_alike(binarize.pack(whole), whole, x)
    again = run(2, "whole", resume=starts / "last.pt", overwrite=True).eval()
    assert torch.equal(again(x), whole(x))
    assert all(torch.equal(a, b) for a, b in zip(ranges(again), ranges(whole), strict=True))
