"""Several heads on one backbone: losses, weights, metrics, distillation, checkpoints, files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes
from binarize.errors import BinarizeError, DataError, ModelError
from binarize.sensitivity import sensitivity
from binarize.train import Depth, MultiTask, MultiTaskDistillation, Recipe, Segmentation, Trainer

SIZE = (32, 48)


class TwoHeads(nn.Module):
    """A shared encoder, and a decoder with a head for each task."""

    def __init__(self, *, as_tuple: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU()),
        )
        self.labels = nn.Conv2d(12, 6, 3, 1, 1)
        self.depth = nn.Conv2d(12, 1, 3, 1, 1)
        self.as_tuple = as_tuple

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        outputs = {"labels": self.labels(x), "depth": self.depth(x)}
        return tuple(outputs.values()) if self.as_tuple else outputs


def network(seed: int = 0, *, as_tuple: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    return TwoHeads(as_tuple=as_tuple)


def loader(seed: int = 0, count: int = 8) -> DataLoader[Any]:
    return DataLoader(Scenes(count, SIZE, seed=seed), 4, shuffle=seed == 0)


def two(**options: Any) -> MultiTask:
    return MultiTask({"labels": Segmentation(6), "depth": Depth(10.0)}, **options)


def train(task: MultiTask, model: nn.Module | None = None, **options: Any) -> Trainer:
    model = network() if model is None else model
    return Trainer(model, **{"task": task, "epochs": 2, "lr": 1e-2, "progress": False, **options})


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    sample = next(iter(loader()))
    return network()(sample["image"]), {key: sample[key] for key in ("mask", "depth")}


def test_the_loss_is_the_weighted_sum() -> None:
    output, target = batch()
    parts = [
        task.loss(task.prepare(output[name], SIZE), target[task.target])
        for name, task in (("labels", Segmentation(6)), ("depth", Depth(10.0)))
    ]
    plain, weighed = two(), two(weights={"depth": 0.25})
    assert plain.loss(plain.prepare(output, SIZE), target).item() == pytest.approx(
        sum(parts).item()
    )
    expected = parts[0] + 0.25 * parts[1]
    assert weighed.loss(weighed.prepare(output, SIZE), target).item() == pytest.approx(
        expected.item()
    )
    assert list(weighed.parameters()) == []


def test_uncertainty_weights_are_optimal_at_the_logarithm_of_the_loss() -> None:
    task = two(weights="uncertainty")
    losses = torch.tensor([0.2, 5.0])
    assert task.log_variances is not None
    optimizer = torch.optim.LBFGS([task.log_variances], max_iter=100, tolerance_grad=1e-9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = task._sum(losses)
        loss.backward()
        return loss

    optimizer.step(step)
    assert task.log_variances.tolist() == pytest.approx([math.log(0.2), math.log(5)], abs=1e-4)
    # There the loss is one per task, and its logarithm.
    assert task._sum(losses).item() == pytest.approx(2 + math.log(0.2) + math.log(5), abs=1e-5)
    weights = task.current()["task_weights"]
    assert weights == {"labels": pytest.approx(5, abs=1e-3), "depth": pytest.approx(0.2, abs=1e-3)}


def test_a_batch_in_which_nothing_counts_teaches_no_weight() -> None:
    task = two(weights="uncertainty")
    output, target = batch()
    target["mask"] = torch.full_like(target["mask"], 255)
    task.loss(task.prepare(output, SIZE), target).backward()
    assert task.log_variances is not None
    assert task.log_variances.grad is not None
    assert task.log_variances.grad[0] == 0
    assert task.log_variances.grad[1] != 0


def test_metrics_are_those_of_each_task() -> None:
    output, target = batch()
    task = two()
    metric = task.metric(torch.device("cpu"))
    task.update(metric, task.prepare(output, SIZE), target)
    found = metric.compute()
    for name, alone in task.tasks.items():
        single = alone.metric(torch.device("cpu"))
        alone.update(single, alone.prepare(output[name], SIZE), target[str(alone.target)])
        for key, value in single.compute().items():
            torch.testing.assert_close(found[f"{name}/{key}"], value, equal_nan=True)
    metric.reset()
    task.update(metric, task.prepare(output, SIZE), target)
    torch.testing.assert_close(metric.compute(), found, equal_nan=True)
    decoded = task.decode(output, SIZE)
    assert decoded["labels"].shape == (4, *SIZE)
    assert decoded["depth"].shape == (4, 1, *SIZE)


def test_distillation_of_each_head() -> None:
    output, target = batch()
    other = network(1)(next(iter(loader()))["image"])
    task = two(weights={"labels": 2.0})
    student, teacher = task.prepare(output, SIZE), task.prepare(other, SIZE)
    loss = task.distillation()
    assert loss(student, student, target, 0.0).item() == pytest.approx(0, abs=1e-6)
    parts = [
        task.tasks[n].distillation()(student[n], teacher[n], target[key], 0.5)
        for n, key in (("labels", "mask"), ("depth", "depth"))
    ]
    expected = 2 * parts[0] + parts[1]
    assert loss(student, teacher, target, 0.5).item() == pytest.approx(expected.item())
    only = MultiTaskDistillation({"depth": task.tasks["depth"].distillation()}, task)
    assert only(student, teacher, None, 0.0) > 0
    assert only(student, teacher, target, 0.5).item() == pytest.approx(parts[1].item())


@pytest.mark.parametrize("as_tuple", [False, True])
def test_it_learns_with_open_settings(as_tuple: bool, tmp_path: Path) -> None:
    model = network(as_tuple=as_tuple)
    task = MultiTask({"labels": "segmentation", "depth": "depth"}, monitor="depth/AbsRel")
    before = Trainer(model, task=task, progress=False).evaluate(loader(1))
    run = train(task, model, epochs=6, teacher=network(3, as_tuple=as_tuple), output_dir=tmp_path)
    history = run.fit(loader(), loader(1))
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["depth/AbsRel"] < before["depth/AbsRel"]
    assert run.best is not None
    assert run.best["metric"] == "depth/AbsRel"
    assert run.best["value"] == min(record["depth/AbsRel"] for record in history)
    assert len(history[-1]["labels/IoU"]) == 6


def test_images_without_labels_and_parts_of_batches() -> None:
    images = next(iter(loader()))
    batches = [
        {**images, "labelled": torch.tensor([True, False, True, False])},
        images["image"],
        {**images, "labelled": torch.zeros(4, dtype=torch.bool)},
    ]
    task = two(weights="uncertainty")
    run = train(task, teacher=[network(1), network(2)], epochs=1)
    assert math.isfinite(run.fit(DataLoader(batches, batch_size=None))[0]["loss"])  # type: ignore[arg-type]


def test_pairs_with_a_mapping_of_targets() -> None:
    images = next(iter(loader()))
    targets = {"mask": images["mask"], "depth": images["depth"]}
    run = train(two(), epochs=1)
    run.fit(DataLoader([(images["image"], targets)], batch_size=None))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no mapping with mask, depth; give a dict with"):
        run.fit(DataLoader([(images["image"], images["mask"])], batch_size=None))  # type: ignore[arg-type]


def test_a_resumed_run_has_the_same_weights(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int | None = None, **options: Any) -> tuple[Any, Any, Any]:
        task, model = two(weights="uncertainty"), network()

        def stop(trainer: Trainer, record: Mapping[str, Any]) -> bool:
            return record["epoch"] == epochs

        trainer = train(
            task,
            model,
            epochs=3,
            output_dir=folder,
            teacher=network(1),
            callbacks=[stop],
            **options,
        )
        history = trainer.fit(loader(), loader(1))
        for record in history:
            record.pop("seconds")
        return task.log_variances, model.state_dict(), history

    whole = run(tmp_path / "a")
    assert whole[0].abs().min() > 0
    assert "task_weights" in whole[2][0]
    run(tmp_path / "b", 1)
    again = run(tmp_path / "b", resume="auto")
    torch.testing.assert_close(again, whole, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(BinarizeError, match=r"was made with loss.weights='uncertainty', this run "):
        train(two(), epochs=3, output_dir=tmp_path / "b", teacher=network(1), resume="auto").fit(
            loader(), loader(1)
        )


def test_a_converted_encoder_with_two_decoders(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            labels, depth = (
                smp.Unet("resnet18", 3, None, decoder_channels=(16, 8, 8), classes=classes)
                for classes in (6, 1)
            )
            self.encoder = labels.encoder
            self.decoders = nn.ModuleDict({"labels": labels.decoder, "depth": depth.decoder})
            self.heads = nn.ModuleDict(
                {"labels": labels.segmentation_head, "depth": depth.segmentation_head}
            )

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.encoder(x)
            return {name: self.heads[name](d(features)) for name, d in self.decoders.items()}

    torch.manual_seed(0)
    teacher = Net()
    batches = DataLoader(Scenes(4, (32, 32)), 2)
    student = binarize.convert(teacher, example_inputs=torch.zeros(1, 3, 32, 32))
    train(two(weights="uncertainty"), student, teacher=teacher, epochs=1).fit(batches)
    student.eval()
    image = torch.rand(1, 3, 32, 32)
    path = tmp_path / "two.safetensors"
    binarize.save(student, path)
    loaded = binarize.load(path, teacher).eval()
    packed = binarize.pack(student, image)
    for name, output in student(image).items():
        torch.testing.assert_close(loaded(image)[name], output, rtol=0, atol=0)
        torch.testing.assert_close(packed(image)[name], output, rtol=1e-3, atol=1e-3)


def test_a_recipe_sets_the_losses_of_each_head() -> None:
    settings = {"segmentation": {"weight": 3.0}, "depth": {"weight": 0.125}}
    recipe = Recipe("mine", "test", distillation=settings)
    made = recipe.make_distillation(two().distillation())
    assert made.parts["labels"].weight == 3
    assert made.parts["depth"].weight == 0.125


def test_sensitivity_measures_the_monitored_metric() -> None:
    data = list(loader(1))
    task = two(monitor="depth/δ1", higher_is_better=True)
    found = sensitivity(network().eval(), data, task=task)
    assert found.metric == "depth/δ1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "tasks={}: must be tasks by head; give e.g. {'depth': 'depth'}"),
        ({"tasks": "depth"}, "tasks='str': must be tasks by head; give e.g. {'depth': 'depth'}"),
        ({"tasks": {"a": "dept"}}, "task='dept': unknown task; did you mean 'depth'?"),
        ({"weights": "learnt"}, "weights='learnt': unknown name; use one of uncertainty"),
        ({"weights": {"x": 1}}, "weights='x': unknown name; use one of labels, depth"),
        (
            {"weights": {"depth": 0}},
            "weights['depth']=0: must be positive; omit the head to leave it out",
        ),
        (
            {"monitor": "AbsRel"},
            "monitor='AbsRel': must be head/metric; use e.g. labels/mIoU or depth/AbsRel",
        ),
        (
            {"monitor": "depth/RMSE"},
            "higher_is_better=None: is unknown for depth/RMSE; give True or False, or monitor "
            "depth/AbsRel",
        ),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    tasks = {"labels": Segmentation(6), "depth": Depth()}
    with pytest.raises(BinarizeError) as caught:
        MultiTask(**{"tasks": tasks, **options})
    assert str(caught.value) == message


def test_data_and_networks_that_do_not_fit() -> None:
    task = two(monitor="labels/Dice", higher_is_better=True)
    with pytest.raises(BinarizeError) as caught:
        train(task).fit(loader())
    assert str(caught.value) == (
        "monitor='labels/Dice': unknown metric; use one of labels/mIoU, labels/pixAcc"
    )
    output, target = batch()
    for wrong, shown in (
        ({"labels": output["labels"]}, "['labels']"),
        ((output["labels"],), "'1 outputs'"),
        (output["labels"], "'Tensor'"),
    ):
        with pytest.raises(ModelError) as refused:
            two().prepare(wrong, SIZE)
        end = "return a dict or a tuple of labels, depth"
        assert str(refused.value) in [
            f"output={shown}: has no head {name!r}; {end}" for name in ("labels", "depth")
        ]
    with pytest.raises(DataError) as caught_data:
        two().check({**target, "depth": target["depth"][..., :-1]})
    assert str(caught_data.value) == (
        "targets='mask 32x48, depth 32x47': differ in rows x columns; resize them to one size"
    )
    with pytest.raises(DataError, match="label=200: must be from 0 to 5"):
        two().check({**target, "mask": torch.full_like(target["mask"], 200)})
