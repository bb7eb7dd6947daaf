"""Distillation of several heads: from one network, or from a teacher of each head's task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from binarize.data import Scenes
from binarize.errors import BinarizeError, ModelError
from binarize.train import (
    Depth,
    DepthDistillation,
    FeatureDistillation,
    MultiTask,
    MultiTaskDistillation,
    Segmentation,
    SegmentationDistillation,
    Trainer,
)
from binarize.train.distillation.stages import pair_stages, stage_ends
from binarize.train.tasks.multitask import heads_split
from binarize.train.teachers import Teachers

SIZE = (16, 24)
CHANNELS = {"labels": 6, "depth": 1}


def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


class Heads(nn.Module):
    """An encoder of two stages; each head has a decoder that goes up one stage."""

    def __init__(self, *names: str, width: int = 8, form: type = dict) -> None:
        super().__init__()
        self.down1, self.down2 = block(3, width, 2), block(width, width, 2)
        self.up = nn.ModuleDict({name: block(width, width) for name in names})
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, CHANNELS[name], 1) for name in names})
        self.form = form
        self.runs = 0

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        deep = self.down2(self.down1(x))
        outputs = {}
        for name, up in self.up.items():
            y = nn.functional.interpolate(up(deep), scale_factor=2.0)
            outputs[name] = self.heads[name](y)
        if self.form is Tensor:
            return next(iter(outputs.values()))
        return outputs if self.form is dict else tuple(outputs.values())


def network(*names: str, seed: int = 0, **options: Any) -> Heads:
    torch.manual_seed(seed)
    return Heads(*(names or tuple(CHANNELS)), **options)


def alone(name: str, seed: int = 1) -> Heads:
    return network(name, seed=seed, form=Tensor)


def loader(count: int = 4) -> DataLoader[Any]:
    return DataLoader(Scenes(count, SIZE, seed=0), 4)


def two(**options: Any) -> MultiTask:
    return MultiTask({"labels": Segmentation(6), "depth": Depth(10.0)}, **options)


def train(task: MultiTask, student: nn.Module | None = None, **options: Any) -> Trainer:
    student = network() if student is None else student
    return Trainer(student, **{"task": task, "epochs": 1, "progress": False, **options})


def distilled(task: MultiTask, **options: Any) -> float:
    """Return the distillation loss of the only step, before its update."""
    value: float = train(task, **options).fit(loader())[0]["distillation"]
    return value


def expected(task: MultiTask, taught: Mapping[str, list[nn.Module]], weights: Any) -> float:
    """Return the weighted sum of the heads' own losses on the batch, written out."""
    batch = next(iter(loader()))
    student = network().train()
    output, total = student(batch["image"]), 0.0
    for name, teachers in taught.items():
        one = task.tasks[name]
        with torch.no_grad():
            outputs = [teacher.eval()(batch["image"]) for teacher in teachers]
        outputs = [out[name] if isinstance(out, dict) else out for out in outputs]
        wanted = torch.stack([one.prepare(out, SIZE) for out in outputs]).mean(0)
        usual = one.distillation()
        if name == "labels":
            usual = SegmentationDistillation(**RECIPE["segmentation"])
        if name == "depth":
            usual = DepthDistillation(**RECIPE.get("depth", {}))
        target = batch[str(one.target)]
        total += weights[name] * usual(one.prepare(output[name], SIZE), wanted, target, 0.0).item()
    return total


RECIPE = dict(Trainer(nn.Conv2d(3, 1, 1), progress=False).recipe.distillation)


def test_each_head_learns_from_its_own_teachers() -> None:
    task = two(weights={"depth": 0.25})
    taught = {"labels": [alone("labels")], "depth": [alone("depth"), network(seed=2)]}
    found = distilled(task, teacher={"depth": taught["depth"], "labels": taught["labels"][0]})
    weights = {"labels": 1.0, "depth": 0.25}
    assert found == pytest.approx(expected(task, taught, weights), rel=1e-4)
    assert found > 0


def test_heads_without_a_teacher_learn_from_labels_alone() -> None:
    task = two()
    taught = {"depth": [alone("depth")]}
    found = distilled(task, teacher=taught)
    assert found == pytest.approx(expected(task, taught, {"depth": 1.0}), rel=1e-4)
    # Also images without labels, of which only that head learns.
    image = next(iter(loader()))["image"]
    run = train(task, teacher={"depth": alone("depth"), "labels": []})
    first = run.fit(DataLoader([image], batch_size=None))[0]  # type: ignore[arg-type]
    assert first["loss"] == pytest.approx(first["distillation"])
    assert first["distillation"] > 0


@pytest.mark.parametrize("form", [dict, tuple])
def test_a_network_with_all_heads_is_a_teacher_of_each(form: type) -> None:
    teacher = network(seed=1, form=form)
    whole = distilled(two(), teacher=teacher)
    assert teacher.runs == 1
    each = network(seed=1)
    by_head = distilled(two(), teacher={"labels": each, "depth": each})
    assert by_head == whole > 0
    assert each.runs == 1  # once, for both heads


def test_losses_by_head() -> None:
    teacher = network(seed=1)
    both = distilled(two(), teacher=teacher)
    labels, depth = (
        distilled(two(), teacher=teacher, distillation={name: None}) for name in ("depth", "labels")
    )
    assert min(labels, depth) > 0
    assert labels + depth == pytest.approx(both, rel=1e-5)
    usual = DepthDistillation(**RECIPE.get("depth", {}))
    doubled = DepthDistillation(2 * usual.weight, gradient_weight=2 * usual.gradient_weight)
    more = distilled(two(), teacher=teacher, distillation={"depth": doubled})
    assert more == pytest.approx(labels + 2 * depth, rel=1e-5)


def test_feature_maps_are_those_that_all_heads_share() -> None:
    image = torch.rand(1, 3, *SIZE)
    split = heads_split(two())
    ends = stage_ends(network(), image, split)
    assert {key: point.module.partition(".")[0] for key, point in ends.items()} == {
        ("down", (8, 12)): "down2",  # as it enters the next stage
        ("down", (4, 6)): "up",
    }
    assert all(point.side == "input" for point in ends.values())
    # A single task's teacher has further stages, which the student's heads do not share.
    for teacher in (network(seed=1), network(seed=1, form=tuple), alone("depth")):
        pairs = pair_stages(network(), teacher, image, split=split)
        sides = {(point.module.partition(".")[0], point.side) for pair in pairs for point in pair}
        assert sides <= {("down2", "input"), ("down2", "output"), ("up", "input")}
        assert len(pairs) == 2
    assert heads_split(MultiTask({"depth": "depth"})) is None
    assert heads_split(Depth()) is None


def test_feature_maps_count_once_whatever_the_number_of_heads() -> None:
    features = FeatureDistillation(1.0, 0.5)
    teacher = network(seed=1)
    plain = distilled(two(weights={"depth": 3.0}), teacher=teacher)
    more = distilled(two(weights={"depth": 3.0}), teacher=teacher, features=features)
    student, image = network(), next(iter(loader()))["image"]
    term = features.open(student, teacher, image[:1], heads_split(two()))
    student.train()
    with term.student.listening():
        student(image)
    with term.teacher.listening(), torch.no_grad():
        teacher.eval()(image)
    assert more - plain == pytest.approx(term.loss(0.0).item(), rel=1e-4)
    term.close()


def test_a_resumed_run_has_the_same_weights(tmp_path: Path) -> None:
    teachers = {"labels": alone("labels"), "depth": alone("depth", 2)}

    def run(folder: Path, stop: int | None = None, **options: Any) -> Any:
        def at(trainer: Trainer, record: Mapping[str, Any]) -> bool:
            return record["epoch"] == stop

        task, student = two(weights="uncertainty"), network(width=4)
        options = {"teacher": teachers, "features": FeatureDistillation(), **options}
        trainer = train(task, student, epochs=2, output_dir=folder, callbacks=[at], **options)
        history = trainer.fit(loader())
        for record in history:
            record.pop("seconds")
        return task.state_dict(), student.state_dict(), history

    whole = run(tmp_path / "a")
    run(tmp_path / "b", 1)
    again = run(tmp_path / "b", resume="auto")
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    run(tmp_path / "c", 1)
    for other in (
        {"teacher": {**teachers, "depth": alone("depth", 3)}},
        {"teacher": network(seed=1)},
        {"distillation": {"depth": None}},
    ):
        with pytest.raises(BinarizeError, match=r"was made with (teacher|distillation)"):
            run(tmp_path / "c", resume="auto", **other)


def test_teachers_and_losses_that_do_not_fit() -> None:
    def message(**options: Any) -> str:
        with pytest.raises(BinarizeError) as caught:
            train(**{"task": two(), **options}).fit(loader())
        return str(caught.value)

    assert message(teacher={"dept": alone("depth")}) == (
        "teacher='dept': unknown name; use one of labels, depth"
    )
    assert message(teacher={"depth": "net.pt"}) == (
        "teacher='str': is not a network; give an nn.Module, or several"
    )
    assert message(teacher={"depth": alone("depth")}, task=Depth()) == (
        "teacher=['depth']: depth has no heads; give a network, or a list"
    )
    assert message(teacher={"labels": alone("depth")}).startswith("teacher['labels']='")
    assert message(teacher={"labels": alone("depth")}).endswith(
        "give a teacher with the same kind of output as the student"
    )
    depth = {"depth": DepthDistillation()}
    assert message(teacher={"labels": alone("labels")}, distillation=depth) == (
        "distillation='depth': has no teacher; give it one besides those of labels"
    )
    explicit = MultiTaskDistillation(depth, two())
    assert "has no teacher" in message(teacher={"labels": alone("labels")}, distillation=explicit)
    assert message(teacher=network(), distillation={"dept": None}) == (
        "distillation='dept': unknown name; use one of labels, depth"
    )
    nothing = {"labels": None, "depth": None}
    assert message(teacher=network(), distillation=nothing) == (
        "distillation='{}': there is no loss for any head; give no teacher, or a loss for a head"
    )
    single = {"task": Depth(10.0), "student": alone("depth", 0), "teacher": alone("depth")}
    assert message(**single, distillation=depth) == (
        "distillation=['depth']: depth has no heads; give the loss itself"
    )
    wrong = Teachers({"": [nn.Linear(5, 5)]}, two(), autocast=torch.no_grad)
    with pytest.raises(ModelError, match=r"teacher='images \(1, 3, 16, 24\)': does not accept"):
        wrong.predict(torch.rand(1, 3, *SIZE), SIZE)
