"""Classification from end to end, with networks of the libraries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from binarize.errors import BinarizeError, DataError, ModelError
from binarize.train import Classification, ClassificationDistillation, Trainer

LOGITS = torch.tensor([[3.0, 1, 0, 0, 0, -1, -2], [0, 1, 2, 3, 4, 5, 6], [0, 0, 9, 0, 0, 0, 0]])


def pairs(count: int = 16, mapping: str | None = None) -> Any:
    labels = torch.arange(count) % 3
    random = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(count, 3, 8, 8, generator=random)
    for image, label in zip(images, labels, strict=True):
        image[label] += 1.5
    if mapping:
        return [{"image": i, mapping: n} for i, n in zip(images, labels, strict=True)]
    return list(zip(images, labels, strict=True))


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )  # fmt: skip


@pytest.mark.parametrize("key", [None, "label", "species"])
def test_it_learns_from_a_teacher(key: str | None) -> None:
    task: Any = Classification(3, target=key) if key == "species" else "classification"
    options: dict[str, Any] = {"epochs": 6, "lr": 5e-2, "progress": False, "task": task}
    train = DataLoader(pairs(24, key), 4, shuffle=True)
    teacher, student = network(), network()
    Trainer(teacher, **options).fit(train)
    run = Trainer(student, teacher=teacher, **options)
    history = run.fit(train, DataLoader(pairs(12, key), 5))
    assert history[-1]["top1"] > 0.9
    assert history[-1]["top5"] == 1
    assert history[0]["distillation"] > 0
    assert run.best is not None
    assert run.best["metric"] == "top1"


def test_a_network_of_a_library() -> None:
    import timm

    from binarize import convert

    torch.manual_seed(0)
    student = convert(timm.create_model("resnet10t", num_classes=3))
    data = [(nn.functional.interpolate(i[None], size=32)[0], n) for i, n in pairs(8)]
    run = Trainer(student, task="classification", epochs=1, progress=False)
    assert math.isfinite(run.fit(DataLoader(data, 4), DataLoader(data, 4))[0]["val_loss"])  # type: ignore[arg-type]


def test_the_numbers() -> None:
    task = Classification(7)
    metric = task.metric(torch.device("cpu"))
    # First guess right; the sixth guess; ignored.
    task.update(metric, LOGITS, torch.tensor([0, 1, -100]))
    assert {k: v.item() for k, v in metric.compute().items()} == {"top1": 0.5, "top5": 0.5}
    task.update(metric, LOGITS, torch.tensor([6, 2, 2]))
    assert {k: v.item() for k, v in metric.compute().items()} == {"top1": 0.4, "top5": 0.6}
    logits, label = LOGITS.double(), torch.tensor([0, 1, -100])
    by_hand = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(1)[1, 1]) / 2
    assert task.loss(logits, label).item() == pytest.approx(by_hand.item())
    assert task.loss(logits, torch.full((3,), -100)).item() == 0
    smooth = Classification(7, label_smoothing=0.1).loss(logits, label)
    mean = -(logits.log_softmax(1)[:2].mean(1)).mean()
    assert smooth.item() == pytest.approx((0.9 * by_hand + 0.1 * mean).item())
    few = Classification(2)
    metric = few.metric(torch.device("cpu"))
    few.update(metric, LOGITS[:, :2], torch.tensor([1, 0, 0]))
    assert metric.compute()["top5"].item() == 1


def test_distillation() -> None:
    loss = ClassificationDistillation(temperature=3.0)
    label = torch.tensor([0, 1, -100])
    assert loss(LOGITS, LOGITS, label, 0.0).item() == pytest.approx(0, abs=1e-6)
    other = LOGITS.flip(1).clone()
    value = loss(other, LOGITS, label, 0.0)
    other[2] = 0  # ignored
    assert loss(other, LOGITS, label, 0.9) == value > 0
    assert ClassificationDistillation(schedule="linear")(other, LOGITS, label, 1.0) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.check(torch.tensor([3])), DataError, "label=3: must be from 0 to 2, or -100"),
        (lambda t: t.check(torch.zeros(2, 2).long()), DataError, r"must be class indices of shape"),
        (lambda t: t.check(torch.zeros(2)), DataError, "torch.float32"),
        (
            lambda t: t.prepare(torch.zeros(2, 4), (1, 1)),
            ModelError,
            "the network returns 4 values",
        ),
        (lambda t: t.prepare(torch.zeros(2, 3, 4, 4), (1, 1)), ModelError, "logits of shape"),
        (lambda t: t.prepare({"a": 1}, (1, 1)), ModelError, "logits of shape"),
        (lambda t: Classification(3, label_smoothing=2), BinarizeError, "must be from 0 to 1"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Classification(3))


def test_labels_and_outputs_of_other_kinds() -> None:
    task = Classification(3)
    for kind in (torch.uint8, torch.int32, torch.int64):
        label = torch.tensor([0, 2]).to(kind)
        task.check(label)
        assert math.isfinite(task.loss(torch.zeros(2, 3), label))
    for output in ({"logits": torch.ones(2, 3)}, (torch.ones(2, 3), 0), torch.ones(2, 3).half()):
        assert task.prepare(output, (1, 1)).dtype == torch.float32
        assert task.decode(output).tolist() == [0, 0]


def test_callbacks_optimizers_and_schedulers(tmp_path: Path) -> None:
    from binarize.train import CSVLog, EarlyStopping

    seen: list[int] = []

    class _Stuck(Classification):
        def update(self, metric: Any, prepared: Any, target: Any) -> None:
            metric.update(torch.zeros_like(prepared), target)  # never better than at first

    def run(**options: Any) -> Trainer:
        return Trainer(
            network(), task=_Stuck(3), epochs=9, lr=0.1, progress=False, output_dir=tmp_path,
            optimizer=lambda groups, lr: torch.optim.SGD(groups, lr),
            scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.LinearLR(
                optimizer, 1.0, 0.5, total_iters=steps
            ),
            callbacks=[EarlyStopping(3), CSVLog(tmp_path / "log.csv"),
                       lambda trainer, record: seen.append(record["epoch"])], **options,
        )  # fmt: skip

    data = DataLoader(pairs(8), 4)
    first = run()
    assert [r["epoch"] for r in first.fit(data, data)] == [1, 2, 3, 4] == seen
    assert first.history[0]["lr"] == pytest.approx(0.1 * (1 - 0.5 * 2 / 18))
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,loss,lr,images,seconds,val_loss,top1,top5")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "4"]
    # A run that came to its early end does not go on when it is resumed.
    assert len(run(resume="auto").fit(data, data)) == 4


def test_optimizers_without_momentum_cycle_none() -> None:
    run = Trainer(network(), task="classification", epochs=1, progress=False,
                  optimizer=torch.optim.Adagrad)  # fmt: skip
    assert len(run.fit(DataLoader(pairs(4), 2))) == 1
