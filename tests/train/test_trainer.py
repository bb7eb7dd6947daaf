"""The trainer on tiny networks: it learns, resumes exactly, and says what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader

from binarize.data import Augment, Scenes
from binarize.errors import BinarizeError, DataError, FileError, ModelError
from binarize.train import Depth, Segmentation, SilentProgress, Trainer

FILES = {"last.pt", "best.pt", "history.json", "curves.png"}
_IMAGE, _MASK = torch.zeros(4, 3, 16, 16), torch.zeros(4, 16, 16, dtype=torch.int64)


def _network(classes: int = 6, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.PReLU(12),
        nn.Dropout2d(0.1),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, classes, 1),
    )


def _loader(task: str, count: int = 12, seed: int = 0, **options: Any) -> DataLoader[Any]:
    data = Scenes(count, (32, 40), seed=seed, task=task, **options)
    return DataLoader(data, batch_size=4, shuffle=seed == 0)


def _trainer(network: nn.Module, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"epochs": 2, "lr": 1e-2, "progress": False, **options}
    return Trainer(network, **settings)


def _numbers(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_it_learns(task: str) -> None:
    network = _network(6 if task == "segmentation" else 1)
    trainer = _trainer(network, task=task, epochs=6, lr=2e-2)
    before = trainer.evaluate(_loader(task, seed=1))
    history = trainer.fit(_loader(task, augment=True), _loader(task, seed=1))
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert {"loss", "lr", "seconds", "val_loss"} <= set(history[0])
    after = trainer.evaluate(_loader(task, seed=1))
    if task == "segmentation":
        assert after["mIoU"] > before["mIoU"]
        assert len(after["IoU"]) == 6
    else:
        assert after["AbsRel"] < before["AbsRel"]
        assert trainer.best is not None
        assert trainer.best["value"] == min(record["AbsRel"] for record in history)
    # what validation said after the last epoch is what evaluate says now
    assert after["loss"] == pytest.approx(history[-1]["val_loss"])
    json.dumps(history)
    json.dumps(after)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_teacher_is_followed_and_left_alone(task: str) -> None:
    classes = 6 if task == "segmentation" else 1
    teacher, student = _network(classes, seed=1), _network(classes)
    teacher[3].eval()
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    flags = [module.training for module in teacher.modules()]
    graphs: list[bool] = []
    teacher.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))
    history = _trainer(student, teacher=teacher, task=task).fit(_loader(task))
    assert not any(graphs)
    assert len(graphs) == 6
    assert history[0]["distillation"] > history[1]["distillation"] > 0
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == flags
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_tuples_of_image_and_target_will_do() -> None:
    pairs = [(torch.randn(3, 16, 16), torch.randint(0, 4, (16, 16))) for _ in range(6)]
    network = _network(4)
    trainer = _trainer(network, epochs=1)
    trainer.fit(DataLoader(pairs, batch_size=3))  # type: ignore[arg-type]
    assert len(trainer.evaluate(DataLoader(pairs, batch_size=4))["IoU"]) == 4  # type: ignore[arg-type]


class _Killed(SilentProgress):
    """Stops a run in the middle of an epoch, as a user or a scheduler would."""

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        if (epoch, step) == (3, 2):
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def run(folder: str, **options: Any) -> tuple[Trainer, nn.Module]:
        network = _network()
        return (
            _trainer(
                network,
                teacher=_network(seed=1),
                epochs=4,
                output_dir=tmp_path / folder,
                **options,
            ),
            network,
        )

    def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
        augment = Augment(zoom=1.5, jitter=0.3)
        return _loader("segmentation", augment=augment), _loader("segmentation", seed=1)

    whole, first = run("whole")
    expected = whole.fit(*loaders())

    killed, _ = run("killed", progress=_Killed())
    with pytest.raises(KeyboardInterrupt):
        killed.fit(*loaders())
    assert len(killed.history) == 2
    torch.manual_seed(12345)  # the new process knows nothing of the old one's generators
    resumed, second = run("killed", resume="auto")
    history = resumed.fit(*loaders())

    assert _numbers(history) == _numbers(expected)
    assert resumed.best == whole.best
    for (key, ours), theirs in zip(
        second.state_dict().items(), first.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key
    again, third = run("killed", resume=tmp_path / "killed")
    assert _numbers(again.fit(*loaders())) == _numbers(expected)  # nothing left to do
    assert torch.equal(third[0].weight, first[0].weight)


def test_a_generator_of_the_loader_is_resumed_too(tmp_path: Path) -> None:
    def fit(resume: bool) -> tuple[list[dict[str, Any]], nn.Module]:
        data = Scenes(8, (32, 40), task="segmentation")
        loader = DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(3))
        network = _network()
        trainer = _trainer(
            network, epochs=3, output_dir=tmp_path, resume="auto" if resume else None
        )
        if not resume:
            trainer.val_every = 1
        return trainer.fit(loader), network

    expected, network = fit(resume=False)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["history"] == expected
    (tmp_path / "last.pt").unlink()
    history, other = fit(resume=True)  # nothing there: a fresh run
    assert _numbers(history) == _numbers(expected)
    assert torch.equal(network[0].weight, other[0].weight)


def test_other_seeds_give_other_runs() -> None:
    losses = {
        _trainer(_network(), epochs=1, seed=seed).fit(_loader("segmentation"))[0]["loss"]
        for seed in (0, 0, 1)
    }
    assert len(losses) == 2


def test_checkpoints_hold_plain_data_and_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(_network(), output_dir=tmp_path)
    trainer.fit(_loader("segmentation"), _loader("segmentation", seed=1))
    assert {file.name for file in tmp_path.iterdir()} == FILES
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["best"] == trainer.best
    _network().load_state_dict(best["student"])
    before = (tmp_path / "last.pt").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FileError, match=r"cannot write last\.pt \(No space left on device\); free"):
        _trainer(_network(), output_dir=tmp_path, overwrite=True).fit(_loader("segmentation"))
    assert (tmp_path / "last.pt").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == FILES


def test_keep_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.9, math.nan, 0.5])
    weights: list[torch.Tensor] = []

    def scripted(network: nn.Module, *_: Any, **__: Any) -> dict[str, Any]:
        weights.append(network.state_dict()["0.weight"].clone())
        return {"mIoU": next(scores), "loss": 0.0}

    monkeypatch.setattr("binarize.train.trainer.evaluate", scripted)
    network = _network()
    trainer = _trainer(network, epochs=4, output_dir=tmp_path, select="best")
    trainer.fit(_loader("segmentation", 4), _loader("segmentation", 4, seed=1))
    assert trainer.best == {"epoch": 2, "metric": "mIoU", "value": 0.9}
    assert torch.equal(network.state_dict()["0.weight"], weights[1])
    assert not torch.equal(weights[1], weights[3])


@pytest.mark.parametrize(("task", "name"), [("segmentation", "mIoU"), ("depth", "AbsRel")])
def test_a_tie_keeps_the_first_best(
    task: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.5, 0.5, 0.5] if task == "segmentation" else [0.5, 0.3, 0.3, 0.3])
    monkeypatch.setattr(
        "binarize.train.trainer.evaluate", lambda *_, **__: {name: next(scores), "loss": 0.0}
    )
    trainer = _trainer(_network(6 if task == "segmentation" else 1), task=task, epochs=4,
                       output_dir=tmp_path)  # fmt: skip
    trainer.fit(_loader(task, 4), _loader(task, 4, seed=1))
    assert trainer.best is not None
    assert trainer.best["epoch"] == 2
    assert torch.load(tmp_path / "best.pt", weights_only=True)["best"]["epoch"] == 2


def test_the_best_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.2, 0.5, 0.7])

    def scripted(*_: Any, **__: Any) -> dict[str, Any]:
        return {"mIoU": next(scores), "loss": 0.0}

    monkeypatch.setattr("binarize.train.trainer.evaluate", scripted)
    options: dict[str, Any] = {"epochs": 4, "output_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        _trainer(_network(), progress=_Killed(), **options).fit(
            _loader("segmentation"), _loader("segmentation", 4, seed=1)
        )
    before = (tmp_path / "best.pt").read_bytes()
    network = _network()
    trainer = _trainer(network, resume="auto", select="best", **options)
    history = trainer.fit(_loader("segmentation"), _loader("segmentation", 4, seed=1))
    assert [record["mIoU"] for record in history] == [0.9, 0.2, 0.5, 0.7]
    assert trainer.best == {"epoch": 1, "metric": "mIoU", "value": 0.9}
    assert (tmp_path / "best.pt").read_bytes() == before
    best = torch.load(tmp_path / "best.pt", weights_only=True)["student"]
    assert all(torch.equal(value, best[name]) for name, value in network.state_dict().items())


def test_best_may_be_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.3, 0.2, 0.4])
    monkeypatch.setattr(
        "binarize.train.trainer.evaluate", lambda *_, **__: {"AbsRel": next(scores), "loss": 0.0}
    )
    trainer = _trainer(_network(1), task="depth", epochs=3)
    trainer.fit(_loader("depth", 4), _loader("depth", 4, seed=1))
    assert trainer.best == {"epoch": 2, "metric": "AbsRel", "value": 0.2}


class _Noted(torch.utils.data.Dataset[Any]):
    """Notes the order in which samples are read, and the noise drawn for each."""

    def __init__(self) -> None:
        self.read: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.append((index, torch.rand(()).item()))
        return {"image": _IMAGE[0], "mask": _MASK[0]}


def test_epochs_differ_in_order_and_in_noise() -> None:
    data = _Noted()
    _trainer(_network(), num_classes=6).fit(DataLoader(data, batch_size=4, shuffle=True))
    first, second = data.read[:8], data.read[8:]
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second)
    assert [index for index, _ in first] != [index for index, _ in second]
    assert len({noise for _, noise in data.read}) == 16


def test_val_every() -> None:
    trainer = _trainer(_network(), epochs=5, val_every=2)
    history = trainer.fit(_loader("segmentation", 4), _loader("segmentation", 4, seed=1))
    assert ["mIoU" in record for record in history] == [False, True, False, True, True]


def test_training_flags_are_put_back() -> None:
    network = _network()
    network.eval()
    network[1].train()
    flags = [module.training for module in network.modules()]
    trainer = _trainer(network, epochs=1)
    trainer.fit(_loader("segmentation", 4), _loader("segmentation", 4, seed=1))
    trainer.evaluate(_loader("segmentation", 4, seed=1))
    assert [module.training for module in network.modules()] == flags
    assert "forward" not in vars(network)


def test_bf16() -> None:
    network = _network()
    seen: list[torch.dtype] = []
    network[4].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    trainer = _trainer(network, epochs=1, bf16=True)
    record = trainer.fit(_loader("segmentation", 4), _loader("segmentation", 4, seed=1))[0]
    assert set(seen) == {torch.bfloat16}
    assert math.isfinite(record["loss"])
    assert network[0].weight.dtype == torch.float32
    seen.clear()
    trainer.evaluate(_loader("segmentation", 4))
    assert set(seen) == {torch.float32}


def test_launcher_asks_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert _trainer(_network()).bf16
    assert not _trainer(_network(), bf16=False).bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(BinarizeError) as caught:
        _trainer(_network())
    assert str(caught.value) == (
        "mixed_precision='fp16': training runs in float32 or bfloat16; "
        "launch with --mixed_precision bf16, or no"
    )


def test_an_accelerator_that_is_there_already() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        Accelerator(mixed_precision="bf16")
        with pytest.raises(
            BinarizeError, match="Accelerator='mixed_precision': this process already"
        ):
            _trainer(_network())
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_compile_compiles_student_and_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(sum(node.op != "placeholder" for node in graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=backend))
    losses = []
    for compile in (False, True):
        student, teacher = _network(), _network(seed=1)
        run = _trainer(student, teacher=teacher, epochs=1, compile=compile)
        losses.append(run.fit(_loader("segmentation"))[0]["loss"])
        assert bool(compiled) == compile
    assert len(compiled) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert set(student.state_dict()) == set(_network().state_dict())


def test_clip_limits_the_step() -> None:
    norms = []

    class _Watch(Segmentation):
        def loss(self, prepared: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return 1e3 * super().loss(prepared, target)

    for clip in (None, 0.5):
        network = _network()
        _trainer(network, task=_Watch(6), epochs=1, clip=clip).fit(_loader("segmentation", 4))
        gradients = [p.grad.norm() for p in network.parameters() if p.grad is not None]
        norms.append(torch.stack(gradients).norm().item())
    assert norms[0] > 100
    assert norms[1] == pytest.approx(0.5, rel=1e-3)


def test_tasks_are_chosen_by_name_object_or_data_set() -> None:
    depth = _trainer(_network(1), task=Depth(3.0), epochs=1)
    depth.fit(_loader("depth", 4))
    far = Scenes(4, (32, 40), task="depth")
    far.max_depth = 50.0
    trainer = _trainer(_network(1), task="depth")
    assert trainer.open_task(DataLoader(far)).max_depth == 50.0  # type: ignore[attr-defined]
    trainer = _trainer(_network(1), task="depth", max_depth=20.0)
    assert trainer.open_task(DataLoader(far)).max_depth == 20.0  # type: ignore[attr-defined]


class _Loud(nn.Module):
    """A network that turns to NaN after a few calls."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.inner, self.calls, self.after = _network(), 0, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(x) * (math.nan if self.calls > self.after else 1.0)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, step: int) -> None:
    network = _Loud(after=2 + step)
    trainer = _trainer(network, output_dir=tmp_path)
    with pytest.raises(ModelError) as caught:
        trainer.fit(_loader("segmentation"))
    assert str(caught.value) == (
        f"loss=nan: is not finite at epoch 2, step {step}; "
        "lower lr, set clip=1.0, or look for NaN in the images and the initial weights"
    )
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert (tmp_path / "last.pt").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0: must be positive; choose a larger value"),
        ({"lr": -1.0}, "lr=-1.0: must be positive; choose a larger value"),
        ({"task": "segmentations"}, "task='segmentations': unknown task; did you mean 'segm"),
        ({"task": "pose"}, "task='pose': unknown task; use one of segmentation, multilabel, depth"),
        ({"select": "best"}, "select='best': must be 'last', or 'best' with an output_dir; give"),
        ({"resume": "auto"}, "resume='auto': needs output_dir; give the folder of the run"),
        ({"resume": "none.pt"}, "resume='none.pt': no such file; give a checkpoint, or 'auto'"),
        ({"num_classes": 9}, "num_classes=9: the network returns 6 channels; build the"),
        (
            {"num_clases": 6},
            "num_clases=6: no task has such a setting; did you mean",
        ),
        (
            {"task": Segmentation(6), "num_classes": 6},
            "num_classes=6: the Trainer has no such argument, and the task has its own settings; "
            r"give it to the task, as Segmentation\(num_classes=...\)",
        ),
        ({"class_weights": [1.0]}, r"class_weights=\[1.0\]: must be 6 numbers, none negative"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BinarizeError, match=message) as caught:
        _trainer(_network(), **options).fit(_loader("segmentation", 4))
    assert "\n" not in str(caught.value)


def test_devices_must_agree() -> None:
    with pytest.raises(ModelError) as caught:
        _trainer(_network(), teacher=_network().to("meta"))
    assert str(caught.value) == (
        "teacher='meta': is not on the student's device, cpu; move it with teacher.to('cpu')"
    )
    torn = _network()
    torn[0].to("meta")
    with pytest.raises(ModelError, match=r"student=\['cpu', 'meta'\]: is spread over several"):
        _trainer(torn)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((_IMAGE.byte(), _MASK), "image='torch.uint8': images must be floating point; convert"),
        ((_IMAGE, _MASK + 6), "label=6: must be from 0 to 5, or 255"),
        ((_IMAGE,), "batch='list': has no mask; give a tuple"),
        ({"image": _IMAGE, "depth": _IMAGE}, "batch='dict': has no mask; give a tuple"),
        ((_IMAGE[:, :, :1, :1], _MASK[:, :1, :1]), None),
    ],
)
def test_batches_that_do_not_fit(batch: Any, message: str | None) -> None:
    loader = DataLoader([batch], batch_size=None)
    trainer = _trainer(_network(), num_classes=6, epochs=1)
    if message is None:
        trainer.fit(loader)
        return
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(DataError, match=message):
            call(loader)


def test_a_batch_norm_needs_two_values() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Conv2d(3, 6, 1))
    with pytest.raises(DataError, match="batch size=1: a BatchNorm on a 1x1 feature map needs"):
        _trainer(network, num_classes=6).fit(DataLoader([(_IMAGE[:1], _MASK[:1])], batch_size=None))


def test_loaders_without_batches() -> None:
    data = Scenes(2, (32, 40), task="segmentation")
    with pytest.raises(DataError, match="train_loader=0: has no batches; use a smaller batch"):
        _trainer(_network()).fit(DataLoader(data, batch_size=4, drop_last=True))

    class _Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield {"image": _IMAGE[0], "mask": _MASK[0]}

    with pytest.raises(DataError, match="train_loader='DataLoader': has no length"):
        _trainer(_network()).fit(DataLoader(_Stream(), batch_size=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network", r"does not fit the network at 0\.weight; build the network as it was"),
        ("layers", "does not fit the network at extra"),
        ("epochs", "was made with epochs=2, this run has 3; use the same epochs, or start"),
        ("data", "was made with steps=3, this run has 1; use the same steps, or start over"),
        ("frozen", "was made with other trainable parameters; freeze the same layers"),
        ("damaged", "cannot be read as a checkpoint; start over without resume"),
        ("foreign", "is not a training state; give the last.pt of a training"),
        ("newer", "has version 99, this package reads up to 2; resume with the version that wrote"),
        ("weights", "contains weights only; give the last.pt of the training"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path: Path, change: str, message: str) -> None:
    _trainer(_network(), output_dir=tmp_path).fit(
        _loader("segmentation"), _loader("segmentation", seed=1)
    )
    path = tmp_path / "last.pt"
    network: nn.Module = _network()
    options: dict[str, Any] = {}
    if change == "network":
        network[0] = nn.Conv2d(3, 12, 5, stride=2, padding=2)  # type: ignore[operator]
    elif change == "layers":
        network.register_buffer("extra", torch.zeros(1))
    elif change == "epochs":
        options["epochs"] = 3
    elif change == "frozen":
        network[0].weight.requires_grad_(False)  # type: ignore[index]
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    elif change == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif change == "newer":
        torch.save({**torch.load(path, weights_only=True), "version": 99}, path)
    elif change == "weights":
        path = tmp_path / "best.pt"
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainer = _trainer(network, resume=path, **options)
    with pytest.raises(FileError, match=message) as caught:
        trainer.fit(_loader("segmentation", 4 if change == "data" else 12))
    assert str(caught.value).startswith(f"resume='{path}': ")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class _Scheduled(nn.Identity):
    """What annealed surrogates are to the trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("progress", torch.zeros(()))
        self.told: list[float] = []

    def set_progress(self, done: float) -> None:
        self.progress.fill_(done)
        self.told.append(done)


def test_modules_are_told_how_far_the_training_is(tmp_path: Path) -> None:
    network = _network()
    scheduled = _Scheduled()
    network.append(scheduled)
    trainer = _trainer(network, task="segmentation", output_dir=tmp_path)
    trainer.fit(_loader("segmentation"))
    # Two epochs of three steps.
    assert scheduled.told == pytest.approx([i / 6 for i in range(6)])
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["student"]
    assert saved["8.progress"].item() == pytest.approx(5 / 6)


def test_the_loss_of_an_evaluation_is_the_mean_over_the_batches() -> None:
    network, batches = _network().eval(), _loader("segmentation", seed=1)
    task = Segmentation(6)
    losses = []
    for batch in batches:
        with torch.no_grad():
            logits = task.prepare(network(batch["image"]), (32, 40))
        losses.append(task.loss(logits, batch["mask"]).item())
    assert len(set(losses)) == 3
    loss = _trainer(network, task=task).evaluate(batches)["loss"]
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-5)
