"""Teachers, norms and tasks that are not the usual ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from binarize.data import Scenes
from binarize.errors import ModelError
from binarize.train import SegmentationDistillation, Trainer, norms
from binarize.train.norms import frozen_norms


def network(classes: int = 6, channels: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1),
    )  # fmt: skip


def loader() -> DataLoader[Any]:
    return DataLoader(Scenes(8, (16, 24), task="segmentation"), 4)


def trainer(student: nn.Module, **options: Any) -> Trainer:
    return Trainer(student, **{"epochs": 1, "progress": False, "lr": 1e-2, **options})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_teachers_of_other_types(dtype: torch.dtype) -> None:
    told = []
    for kind in (torch.float32, dtype):
        teacher = network().to(kind)
        student = network()
        record = trainer(student, teacher=teacher).fit(loader())[0]
        assert student[0].weight.dtype == torch.float32
        assert next(teacher.parameters()).dtype == kind
        told.append(record["distillation"])
    assert told[1] == pytest.approx(told[0], rel=0.05)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (network(classes=4), "the network returns 4 channels; give a teacher with the same kind"),
        (
            network(channels=1),
            "does not accept them .*channels.*; give a teacher that accepts the student",
        ),
        (nn.Linear(24, 6), "must return a tensor|the network returns 3 channels"),
        (nn.Flatten(), "the network must return a tensor"),
    ],
)
def test_teachers_that_do_not_fit_are_to_blame(teacher: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        trainer(network(), teacher=teacher).fit(loader())
    assert str(caught.value).startswith("teacher=")
    assert "\n" not in str(caught.value)


def test_frozen_norms_stay_frozen() -> None:
    by_parameters = network()
    by_parameters[1].requires_grad_(False)
    by_mode = network().train()
    by_mode[1].eval()
    for student in (by_parameters, by_mode):
        before = [{k: v.clone() for k, v in student[i].state_dict().items()} for i in (1, 4)]
        flags = [module.training for module in student.modules()]
        trainer(student).fit(loader(), loader())
        assert [module.training for module in student.modules()] == flags
        frozen = student[1].state_dict()
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(frozen[name], before[0][name]), name
            assert not torch.equal(student[4].state_dict()[name], before[1][name]), name
    # A whole network in evaluation mode was loaded for use, and is trained all the same.
    assert frozen_norms(network().eval()) == []


class _Accuracy(Metric):
    """Share of images whose class is right."""

    hits: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        self.hits += (logits.argmax(1) == label).sum()
        self.count += len(label)

    def compute(self) -> dict[str, Tensor]:
        return {"accuracy": self.hits / self.count}


class _Own:
    """A classification task as somebody outside the package writes it."""

    name, target, monitor, higher_is_better = "own", "label", "accuracy", True

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        return output

    def check(self, target: Tensor) -> None: ...

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(prepared, target)

    def metric(self, device: torch.device) -> Metric:
        return _Accuracy().to(device)

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        metric.update(prepared, target)

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        return output.argmax(1)

    def distillation(self) -> Any:
        return lambda student, teacher, target, done: F.mse_loss(student, teacher)


@pytest.mark.parametrize("mapping", [True, False])
def test_a_classification_task_of_ones_own(mapping: bool) -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 3, 8, 8, generator=random) + 2.0 * labels.view(-1, 1, 1, 1)
    pairs: Any = [
        {"image": image, "label": label} if mapping else (image, label)
        for image, label in zip(images, labels, strict=True)
    ]

    def made() -> nn.Module:
        return nn.Sequential(network(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    run = trainer(made(), teacher=made(), task=_Own(), epochs=8, lr=3e-2)
    history = run.fit(DataLoader(pairs, 4, shuffle=True), DataLoader(pairs, 5))
    assert history[-1]["accuracy"] > 0.9
    assert run.best is not None
    assert run.evaluate(DataLoader(pairs, 16))["accuracy"] == history[-1]["accuracy"]


def test_the_ignored_label_reaches_the_distillation() -> None:
    """Pixels that do not count teach nothing, whatever the teacher says there."""

    class _Void(Scenes):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            sample = super().__getitem__(index)
            sample["mask"][:, 12:] = 3
            return sample

    class _Biased(nn.Module):
        """A teacher that says something else where nothing counts."""

        def __init__(self, inner: nn.Module, amount: float) -> None:
            super().__init__()
            self.inner, self.amount = inner, amount

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x).clone()
            out[:, 0, :, 12:] += self.amount
            return out

    def distilled(amount: float, ignore: int) -> float:
        data = DataLoader(_Void(4, (16, 24), task="segmentation"), 4)
        student, teacher = network(), _Biased(network(), amount)
        run = trainer(student, teacher=teacher, ignore_index=ignore)
        return run.fit(data)[0]["distillation"]

    assert distilled(9.0, ignore=3) == distilled(0.0, ignore=3)
    assert distilled(9.0, ignore=255) != distilled(0.0, ignore=255)
    given = SegmentationDistillation(ignore_index=3)
    assert given.ignore_index == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_synchronised_norms_round_no_more_than_torchs(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over many pixels do not fit half precision, and lose digits of double in single."""
    x = (torch.randn(2, 3, 64, 64, dtype=torch.float64) + 30).to(dtype)
    norm = nn.BatchNorm2d(3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    wanted, other = norm(x), nn.BatchNorm2d(3, dtype=norm.weight.dtype)
    monkeypatch.setattr(norms, "all_reduce", lambda sums: sums)  # as one process alone
    with norms.SynchronisedNorms():
        found = other(x)
    assert found.dtype == dtype
    rounding = {torch.float16: 4e-3, torch.float32: 1e-4, torch.float64: 1e-11}[dtype]
    torch.testing.assert_close(found, wanted, atol=rounding, rtol=0)
    torch.testing.assert_close(other.running_var, norm.running_var, atol=rounding, rtol=0)
