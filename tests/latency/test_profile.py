"""Profiles of latency: what they hold, how they are read, and what they are refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError, FileError
from binarize.latency import Profile
from binarize.latency.measure import machine


class Net(nn.Module):
    """A stem, a residual block with a projection, a depthwise layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.down = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Conv2d(12, 2, 1)
        self.unused = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = (y + self.down(x)).relu()
        return self.head(self.depthwise(x).relu())


X = torch.randn(1, 3, 17, 19)


@pytest.fixture(scope="module")
def profile() -> Profile:
    torch.manual_seed(0)
    return binarize.profile(Net().eval(), X, rounds=3)


def test_times_of_the_layers_add_up_to_the_networks(profile: Profile) -> None:
    planned = {layer.site: layer.planned for layer in profile.layers}
    assert planned == {
        "stem": "keep",
        "conv1": "binarize",
        "conv2": "binarize",
        "down.0": "remove",
        "depthwise": "binarize",
        "head": "keep",
        "unused": "binarize",
    }
    total = profile.rest + sum(x.milliseconds[x.planned] for x in profile.layers)
    assert total == pytest.approx(profile.whole["policy"], rel=1e-6)
    assert profile.predict() == pytest.approx(total)
    assert all(x.milliseconds["keep"] > 0 for x in profile.layers if x.site != "unused")
    assert set(profile.whole) == {"policy", "keep", "int8"}


def test_what_never_runs_or_is_gone_takes_no_time(profile: Profile) -> None:
    assert set(profile.layers[-1].milliseconds.values()) == {0.0}
    gone = next(layer for layer in profile.layers if layer.site == "down.0")
    assert gone.milliseconds["remove"] == 0
    assert gone.milliseconds["keep"] > 0
    assert profile.of("down.0", "bypass") == 0  # however it is gone


def test_the_network_is_as_before() -> None:
    net = Net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    binarize.profile(net, X, rounds=1)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_it_survives_its_file(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile.save(path)
    assert Profile.load(path) == profile
    assert "conv2" in str(profile)
    assert str(profile) == str(Profile.load(path))


def test_a_layer_that_was_not_measured(profile: Profile) -> None:
    with pytest.raises(BinarizeError) as caught:
        profile.predict({"stem": "int8"})
    assert str(caught.value) == (
        "profile='stem: int8': this was not measured; profile this network with the same policy "
        "and overrides"
    )


@pytest.mark.parametrize("field", ["processor", "kernels", "threads", "torch", "binarize"])
def test_another_machine_is_refused(profile: Profile, field: str) -> None:
    other = replace(machine(), **{field: "other"})
    with pytest.raises(BinarizeError, match=rf"^profile='{field} .*: this machine has other, so"):
        profile.check(other)
    profile.check(machine())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "binarize profile"}'])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(FileError, match=r"is not a readable profile .*binarize profile"):
        Profile.load(path)
    with pytest.raises(FileError, match="cannot be read"):
        Profile.load(tmp_path / "missing.json")
    with pytest.raises(FileError, match="cannot be written"):
        Profile("", "", "", machine(), 1, (), 0.0, {}).save(tmp_path / "no" / "folder.json")


def test_a_budget_of_time_reads_a_profile(profile: Profile, tmp_path: Path) -> None:
    """Latencies are made up, so that it is known what has to come out."""
    layers = tuple(
        replace(x, milliseconds={**dict.fromkeys(x.milliseconds, 1.0), "keep": 3.0})
        for x in profile.layers
    )
    known = replace(profile, layers=layers, rest=0.5, whole={**profile.whole, "keep": 20.0})
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(known.to_dict()))
    least = known.predict()
    given = {"example_inputs": X, "profile": path}
    net = Net().eval()
    # Room for one more float layer, not for two.
    plan = binarize.plan(net, budget=f"{least + 2.5}ms", **given)
    moved = [d.site for d in plan.layers if d.action == "keep" and d.site not in ("stem", "head")]
    assert len(moved) == 1
    assert "2.000 ms more in float" in next(d.reason for d in plan.layers if d.site == moved[0])
    predicted = known.predict({d.site: d.action for d in plan.layers})
    assert predicted == pytest.approx(least + 2)
    share = binarize.plan(net, budget=f"time={100 * (least + 2.5) / 20:.3f}%", **given)
    assert [d.action for d in share.layers] == [d.action for d in plan.layers]
    with pytest.raises(BinarizeError, match=rf"the minimum of policy .* is {least:.3f} ms;"):
        binarize.plan(net, budget="1ms", **given)
    del net.unused  # it would stay binary: it costs nothing and gains nothing
    with pytest.raises(BinarizeError, match=r"the float network needs only .* ms"):
        binarize.plan(net, budget="1s", **given)


def test_a_budget_of_time_needs_a_size() -> None:
    with pytest.raises(BinarizeError, match=r"latency depends on the size of the inputs; give ex"):
        binarize.plan(Net().eval(), budget="1ms")
    with pytest.raises(BinarizeError, match=r"^profile='str': it has no effect without"):
        binarize.plan(Net().eval(), profile="profile.json")
