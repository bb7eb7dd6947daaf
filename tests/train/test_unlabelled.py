"""Images without labels: a teacher is enough, alone and beside labelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from binarize.data import Augment, PartlyLabelled, Scenes, UnlabelledFolder
from binarize.errors import DataError
from binarize.train import (
    ClassificationDistillation,
    DepthDistillation,
    SegmentationDistillation,
    Trainer,
)

SIZE = (24, 32)


def _photos(folder: Path, count: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = Scenes(count, (30, 40), seed=7, task="segmentation", normalize="none")
    for index in range(count):
        image = data.denormalize(data[index]["image"]).permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def _network(channels: int = 6, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, channels, 1)
    )


@pytest.mark.parametrize(
    ("loss", "channels"),
    [
        (SegmentationDistillation(), 6),
        (SegmentationDistillation(trust="mix"), 1),
        (SegmentationDistillation(multilabel=True), 3),
        (DepthDistillation(), 1),
    ],
)
def test_without_labels_every_pixel_counts_and_the_teacher_is_believed(
    loss: Any, channels: int
) -> None:
    teacher = torch.randn(2, channels, 4, 5)
    student = torch.zeros_like(teacher, requires_grad=True)
    loss(student, teacher, None, 0.0).backward()
    assert bool((student.grad != 0).all())  # type: ignore[union-attr]
    assert loss(teacher, teacher, None, 0.0).item() == pytest.approx(0, abs=1e-6)
    logits = torch.randn(4, 5)
    assert ClassificationDistillation()(-logits, logits, None, 0.0) > 0


@pytest.mark.parametrize("task", ["segmentation", "depth", "multilabel"])
def test_a_folder_of_images_is_enough(tmp_path: Path, task: str) -> None:
    data = UnlabelledFolder(_photos(tmp_path), SIZE, task=task, augment=Augment(flip=0.5))
    channels = 1 if task == "depth" else 6
    teacher = _network(channels, seed=1)
    student = _network(channels)
    trainer = Trainer(
        student,
        teacher=teacher,
        task=task,
        num_classes=channels,
        epochs=12,
        lr=2e-2,
        progress=False,
    )
    history = trainer.fit(DataLoader(data, 3, shuffle=True))
    assert history[-1]["loss"] == history[-1]["distillation"] < 0.7 * history[0]["loss"]
    with pytest.raises(DataError, match="has no (mask|depth)"):
        Trainer(student, task=task, num_classes=channels, epochs=1, progress=False).fit(
            DataLoader(data, 3)
        )


def test_images_as_tensors_are_enough_too() -> None:
    images = DataLoader(torch.rand(4, 3, *SIZE), 2)  # type: ignore[arg-type]
    trainer = Trainer(
        _network(), teacher=_network(seed=1), num_classes=6, epochs=1, progress=False
    )  # fmt: skip
    assert trainer.fit(images)[0]["loss"] > 0


def _mixed(folder: Path, task: str, **options: Any) -> PartlyLabelled:
    labelled = Scenes(4, SIZE, task=task, **options)
    return PartlyLabelled(labelled, UnlabelledFolder(_photos(folder), SIZE, **options))


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_mixed_batches_weigh_both_kinds_by_their_number(tmp_path: Path, task: str) -> None:
    data = _mixed(tmp_path, task)
    assert len(data) == 10
    assert [bool(data[i]["labelled"]) for i in range(10)] == [True] * 4 + [False] * 6
    calls: list[tuple[int, bool]] = []

    def distill(ours: Tensor, theirs: Tensor, target: Any, done: float) -> Tensor:
        calls.append((len(ours), target is not None))
        assert target is None or len(target) == len(ours)
        return ours.sum() * 0 + (1.0 if target is not None else 3.0)

    channels = 6 if task == "segmentation" else 1
    options: dict[str, Any] = {"task": task, "epochs": 1, "lr": 1e-3, "progress": False}
    trainer = Trainer(
        _network(channels), teacher=_network(channels, seed=1), distillation=distill, **options
    )
    history = trainer.fit(DataLoader(data, 5))
    assert calls == [(4, True), (1, False), (5, False)]
    # First batch: 4 of 5 labelled; second: none.
    assert history[0]["distillation"] == pytest.approx(((4 * 1 + 1 * 3) / 5 + 3) / 2)
    # Without a teacher the labelled ones count alone.
    history = Trainer(_network(channels), **options).fit(DataLoader(data, 5))
    assert history[0]["loss"] > 0
    assert "distillation" not in history[0]


def test_a_mixed_set_answers_for_its_labelled_part(tmp_path: Path) -> None:
    data = _mixed(tmp_path, "segmentation")
    assert data.classes == data.labelled.classes
    assert torch.equal(data.class_counts(), data.labelled.class_counts())
    seen: list[tuple[int, int]] = []
    data.preload(lambda done, count: seen.append((done, count)))
    assert seen == [(i, 10) for i in range(1, 11)]
    with pytest.raises(IndexError):
        data[10]
    assert torch.equal(data[-1]["image"], data[9]["image"])
    other = UnlabelledFolder(tmp_path, (8, 8))
    with pytest.raises(DataError, match="the labelled images have size"):
        PartlyLabelled(data.labelled, other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        UnlabelledFolder(tmp_path / "empty", SIZE)
