"""The penalty on binarized inputs that differ from the base's: equation, schedule, resuming."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes
from binarize.errors import BinarizeError, ModelError
from binarize.nn import BiConv2d
from binarize.nn.weight_binarizers import FlippedSign
from binarize.sharing.differences import differing_inputs
from binarize.train import Agreement
from tests.sharing.test_add_task import Net, base_of


class Single(nn.Module):
    """One binary layer, which may run twice, or scale its input first."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = BiConv2d(4, 4, 3, padding=1)
        self.shift = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x + self.shift)
        return self.conv(y) if self.twice else y


def bits(network: Any, x: Tensor) -> Tensor:
    out: Tensor = network.conv.binarizer(x + network.shift) >= 0
    return out


X = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(3))


def pair(twice: bool = False) -> tuple[Any, Any]:
    base: Any = Single(twice).eval()
    task = copy.deepcopy(base).train()
    with torch.no_grad():
        # A change that the binarizer, which follows the mean, cannot take back.
        task.shift.copy_(torch.tensor([0.0, 0.5, -0.5, 1.0]).view(1, 4, 1, 1))
        task.conv.binarizer.b.add_(0.4)
    return base, task


def test_equation() -> None:
    base, task = pair()
    term = Agreement(base, weight=2.0).open(task)
    x = X.clone().requires_grad_()
    with term.listening(x):
        task(x)
    loss: Any = term.loss()
    loss.backward()

    ours, theirs = bits(task, X), bits(base, X)
    assert 0 < int((ours != theirs).sum()) < X.numel()
    assert loss.item() == pytest.approx(2 * (ours != theirs).float().mean().item())
    wanted = 2 * (ours.float() - theirs.float()) / X.numel()
    torch.testing.assert_close(x.grad, wanted)
    torch.testing.assert_close(task.shift.grad, wanted.sum((0, 2, 3), keepdim=True))
    assert base.shift.grad is None


def test_equal_networks_cost_nothing() -> None:
    base, _ = pair()
    twin = copy.deepcopy(base)
    term = Agreement(base).open(twin)
    with term.listening(X):
        twin(X)
    loss: Any = term.loss()
    assert loss.item() == 0


def test_every_call_counts_and_nothing_is_left_behind() -> None:
    base, task = pair(twice=True)
    before = copy.deepcopy(base.state_dict())
    base.train()
    term = Agreement(base).open(task)
    with term.listening(X):
        task(X)
    assert len(term._shares) == 2
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())
    assert not task.conv.binarizer._forward_hooks
    assert not base.conv.binarizer._forward_hooks
    term = Agreement(base).open(task)
    with term.listening(X[:0]):
        pass
    assert term.loss() is None


def test_nothing_before_the_flips_are_fixed() -> None:
    base = base_of(Net())
    task = binarize.add_task(base, 1, flips=0.1)
    term = Agreement(base).open(task)
    x = torch.randn(2, 3, 16, 24)
    gates = [m for m in task.modules() if isinstance(m, FlippedSign)]
    for fixed, active in ((False, False), (True, True)):
        for gate in gates:
            gate.fixed = fixed
        with term.listening(x):
            task(x)
        assert (term.loss() is not None) is active
    # Without flips there is nothing to wait for.
    plain = binarize.add_task(base, flips=0)
    term = Agreement(base).open(plain)
    with term.listening(x):
        plain(x)
    assert term.loss() is not None


@pytest.mark.parametrize("policy", ["lqnet", "reactnet"])
def test_other_binarizers(policy: str) -> None:
    base = base_of(Net(), policy)
    task: Any = binarize.add_task(base, flips=0)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    term = Agreement(base).open(task)
    with term.listening(torch.randn(2, 3, 16, 24)):
        task(torch.randn(2, 3, 16, 24))
    loss: Any = term.loss()
    assert 0 < loss < 1
    loss.backward()
    assert task.norm.weight.grad.abs().sum() > 0


def trained(
    base: Any,
    folder: Path | None,
    agreement: Agreement | None,
    *,
    flips: float = 0.05,
    **options: Any,
) -> Any:
    torch.manual_seed(3)
    task = binarize.add_task(base, 1, flips=flips)
    data = Scenes(8, size=(16, 16), task="depth", seed=0)
    loader = DataLoader(data, batch_size=2)
    trainer = binarize.Trainer(
        task, task="depth", epochs=5, lr=0.01, agreement=agreement, output_dir=folder,
        resume=None if folder is None else "auto", progress=False, **options,
    )  # fmt: skip
    trainer.fit(loader)
    return task.eval()


@pytest.fixture(scope="module")
def base() -> Any:
    return base_of(Net(6))


def test_a_trained_task_agrees_more(base: Any) -> None:
    images = [batch["image"] for batch in DataLoader(Scenes(8, size=(16, 16), seed=0), 8)]
    shares = []
    for agreement in (None, Agreement(base, 30.0)):
        task = trained(base, None, agreement, flips=0)
        found, _ = differing_inputs(base, {"t": task}, images)
        shares.append(sum(d for d, _ in found["t"].values()))
    assert shares[1] < 0.95 * shares[0]


def test_a_resumed_run_is_exact(base: Any, tmp_path: Path) -> None:
    agreement = Agreement(base, 1.0)
    whole = trained(base, None, agreement)

    def stop(trainer: Any, record: Any) -> bool:
        return bool(record["epoch"] == 4)

    folder = tmp_path / "run"
    trained(base, folder, agreement, callbacks=[stop])
    resumed = trained(base, folder, agreement)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert base.training is False


@pytest.mark.parametrize("other", ["weight", "base", "none"])
def test_a_resumed_run_needs_the_same(base: Any, tmp_path: Path, other: str) -> None:
    trained(base, tmp_path, Agreement(base), callbacks=[lambda trainer, record: True])
    changed = copy.deepcopy(base)
    with torch.no_grad():
        changed.norm.bias.add_(1)
    agreement = {"weight": Agreement(base, 2.0), "base": Agreement(changed), "none": None}[other]
    with pytest.raises(BinarizeError, match="agreement"):
        trained(base, tmp_path, agreement)


def test_mistakes(base: Any) -> None:
    with pytest.raises(BinarizeError, match="weight=0: must be positive; use 1.0, or leave"):
        Agreement(base, 0)
    task = binarize.add_task(base, 1)
    with pytest.raises(BinarizeError, match="compile=True: feature maps cannot be compared"):
        binarize.Trainer(task, task="depth", agreement=Agreement(base), compile=True)
    with pytest.raises(ModelError, match="agreement='Net': its binary layers are not the stude"):
        Agreement(Net()).open(task)
    with pytest.raises(ModelError, match="it is the student itself; give its base"):
        Agreement(base).open(base)
