"""Schedules for binary networks: two steps, rates by kind, and how many signs change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from binarize import convert
from binarize.data import Scenes
from binarize.errors import BinarizeError, ModelError
from binarize.nn import BinaryLayer
from binarize.train import CSVLog, SilentProgress, Trainer
from binarize.train.optimizer import make_optimizer, make_scheduler
from binarize.train.schedules import Flips

SIZE = (16, 24)


def _network(policy: str = "bidense", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 2),
    )  # fmt: skip
    return convert(network, policy, example_inputs=torch.zeros(1, 3, *SIZE))


def _layers(network: nn.Module) -> list[BinaryLayer]:
    found = [m for m in network.modules() if isinstance(m, BinaryLayer)]
    assert len(found) >= 2
    return found


def _loader(seed: int = 0) -> DataLoader[Any]:
    return DataLoader(Scenes(8, SIZE, seed=seed, task="segmentation"), 4, shuffle=seed == 0)


def _trainer(network: nn.Module, **options: Any) -> Trainer:
    return Trainer(network, **{"epochs": 4, "lr": 1e-2, "progress": False, **options})


@pytest.mark.parametrize("policy", ["bidense", "adabin", "xnor", "lqnet"])
def test_float_weights_are_the_latent_weights(policy: str) -> None:
    network = _network(policy).eval()
    x = torch.rand(2, 3, *SIZE)
    binary = network(x)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    seen: list[bool] = []
    for layer in _layers(network):
        layer.use_float_weights(True)
        layer.quantizer.register_forward_hook(lambda *_: seen.append(True))
    floats = network(x)
    assert not seen  # nothing was binarized
    assert not torch.equal(floats, binary)
    with torch.no_grad():
        for layer in _layers(network):
            layer.weight.mul_(2)  # the signs are the same, the sums are not
    assert not torch.equal(network(x), floats)
    for layer in _layers(network):
        layer.use_float_weights(False)
    network.load_state_dict(state)
    assert torch.equal(network(x), binary)
    assert network.state_dict().keys() == state.keys()


def test_several_latent_weights_stay_binary() -> None:
    network = _network("groupnet").eval()
    x = torch.rand(1, 3, *SIZE)
    binary = network(x)
    for layer in _layers(network):
        layer.use_float_weights(True)
    assert torch.equal(network(x), binary)


def test_two_steps(tmp_path: Path) -> None:
    network = _network()
    layer = _layers(network)[0]
    seen: list[tuple[bool, float]] = []

    def watch(trainer: Trainer, record: dict[str, Any]) -> None:
        saved = torch.load(tmp_path / "last.pt", weights_only=True)
        groups = {g["name"]: g["weight_decay"] for g in saved["optimizer"]["param_groups"]}
        seen.append((layer.float_weights, groups["latent"]))

    trainer = _trainer(
        network, two_steps=0.5, weight_decay=0.25, latent_weight_decay=0.125,
        output_dir=tmp_path, callbacks=[watch],
    )  # fmt: skip
    history = trainer.fit(_loader(), _loader(1))
    assert seen == [(True, 0.25), (True, 0.25), (False, 0.0), (False, 0.0)]
    assert ["float_weights" in record for record in history] == [True, True, False, False]
    assert trainer.best is not None
    assert trainer.best["epoch"] > 2  # what is saved is the binary form
    measured = trainer.evaluate(_loader(1))
    assert measured["mIoU"] == pytest.approx(history[-1]["mIoU"], abs=1e-6)


def test_layers_become_binary_one_after_the_other() -> None:
    network = _network()
    layers = _layers(network)
    seen: list[tuple[list[bool], float]] = []

    class Watch(SilentProgress):
        def step(self, epoch: int, step: int, loss: float | None) -> None:
            groups = {g["name"]: g["weight_decay"] for g in optimizers[0].param_groups}
            seen.append(([layer.float_weights for layer in layers], groups["latent"]))

    optimizers: list[torch.optim.Optimizer] = []

    def make(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.AdamW(groups, lr))
        return optimizers[0]

    options: dict[str, Any] = {"optimizer": make, "weight_decay": 0.25, "progress": Watch()}
    history = _trainer(network, two_steps=0.5, progressive=True, **options).fit(_loader())
    both, one, none = ([True, True], 0.25), ([False, True], 0.0), ([False, False], 0.0)
    # Eight updates, of which four are the first step: each layer takes two.
    assert [state for state in seen if state[0] is not None] == [both] * 2 + [one] * 2 + [none] * 4
    assert ["float_weights" in record for record in history] == [True, True, False, False]


def test_progressive_needs_two_steps() -> None:
    with pytest.raises(BinarizeError, match="progressive=True: is a way of two_steps"):
        _trainer(_network(), progressive=True)


def test_a_stopped_first_step_leaves_binary_weights() -> None:
    class Killed(SilentProgress):
        def step(self, epoch: int, step: int, loss: float | None) -> None:
            raise KeyboardInterrupt

    network = _network()
    with pytest.raises(KeyboardInterrupt):
        _trainer(network, two_steps=0.5, progress=Killed()).fit(_loader())
    assert not any(layer.float_weights for layer in _layers(network))


def test_a_resumed_run_is_in_the_right_step(tmp_path: Path) -> None:
    class Killed(SilentProgress):
        def epoch(self, record: Any) -> None:
            if record["epoch"] == 1:
                raise KeyboardInterrupt

    def run(folder: str, **options: Any) -> tuple[Trainer, nn.Module]:
        network = _network()
        switches = {
            "two_steps": 0.6,
            "progressive": True,
            "flips": True,
            "lr_factors": {"latent": 0.5},
        }
        options = {"output_dir": tmp_path / folder, **switches, **options}
        return _trainer(network, **options), network

    whole, first = run("whole")
    expected = whole.fit(_loader())
    killed, _ = run("killed", progress=Killed())
    with pytest.raises(KeyboardInterrupt):
        killed.fit(_loader())
    resumed, second = run("killed", resume="auto")
    history = resumed.fit(_loader())
    for ours, theirs in zip(history, expected, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other, _ = run("killed", resume="auto", two_steps=0.5)
    with pytest.raises(BinarizeError, match=r"two_steps=0\.6"):
        other.fit(_loader())


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_the_share_of_the_first_step_is_checked(share: float) -> None:
    with pytest.raises(BinarizeError, match="two_steps"):
        _trainer(_network(), two_steps=share).fit(_loader())


def test_two_steps_need_a_binary_layer() -> None:
    with pytest.raises(ModelError, match="no binary layer"):
        _trainer(nn.Conv2d(3, 6, 1), two_steps=0.5).fit(_loader())


def test_rates_by_kind() -> None:
    network = _network()
    factors = {"latent": 2.0, "thresholds": 0.5, "rest": 3.0}
    optimizer = make_optimizer(network, 0.01, 0.1, 0.0, lr_factors=factors)
    names = {id(p): name for name, p in network.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        latent = any(layer.weight is network.get_parameter(name) for layer in _layers(network))
        kind = "latent" if latent else "thresholds" if ".binarizer." in name else "rest"
        assert rate == pytest.approx(0.01 * factors[kind]), name
    scheduler = make_scheduler(optimizer, 0.01, 10, 0.3)
    highest = [0.0] * len(optimizer.param_groups)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        highest = [max(a, g["lr"]) for a, g in zip(highest, optimizer.param_groups, strict=True)]
    peaks = [0.01 * group["factor"] for group in optimizer.param_groups]
    assert highest == pytest.approx(peaks)


def test_one_rate_is_what_it_was() -> None:
    plain = _trainer(_network()).fit(_loader())
    same = _trainer(_network(), lr_factors={"latent": 1.0}).fit(_loader())
    assert [r["lr"] for r in plain] == pytest.approx([r["lr"] for r in same])
    assert [r["loss"] for r in plain] == pytest.approx([r["loss"] for r in same], rel=1e-4)
    for factors in ({"latents": 1.0}, {"latent": 0.0}, {"rest": "fast"}):
        with pytest.raises(BinarizeError, match="lr_factors"):
            _trainer(_network(), lr_factors=factors).fit(_loader())


def test_flips_are_counted() -> None:
    network = _network()
    flips = Flips(network)
    assert flips.measure()["flip_ratio"] == 0
    first, *others = _layers(network)
    with torch.no_grad():
        flat = first.weight.view(-1)
        flat[:3] = -flat[:3]
    told = flips.measure()
    shares = sorted(told["flips"].values(), reverse=True)
    assert shares[0] == pytest.approx(3 / first.weight.numel())
    assert shares[1:] == [0] * len(others)
    weights = sum(layer.weight.numel() for layer in _layers(network))
    assert told["flip_ratio"] == pytest.approx(3 / weights)
    assert flips.measure()["flip_ratio"] == 0
    assert Flips(nn.Conv2d(3, 3, 1)).measure() == {"flip_ratio": 0, "flips": {}}


def test_flips_are_logged(tmp_path: Path) -> None:
    network = _network()
    log = CSVLog(tmp_path / "log.csv")
    history = _trainer(network, flips=True, lr=0.05, callbacks=[log]).fit(_loader())
    assert all(0 <= record["flip_ratio"] <= 1 for record in history)
    assert any(record["flip_ratio"] > 0 for record in history)
    assert set(history[0]["flips"]) == {
        name for name, m in network.named_modules() if isinstance(m, BinaryLayer)
    }
    header = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert "flip_ratio" in header
    assert "flips" not in header


def test_flips_of_layers_that_pack_no_bits() -> None:
    class Plain(nn.Conv2d):
        def binary_weight(self) -> Tensor:
            return self.weight.sign()

    layer = Plain(4, 2, 3)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        flips = Flips(layer)
        layer.weight.mul_(4)  # no other sign
        assert flips.measure()["flip_ratio"] == 0
        layer.weight[0].neg_()
    assert flips.measure()["flip_ratio"] == 0.5
