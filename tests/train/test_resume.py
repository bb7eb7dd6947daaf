"""What a resumed run may change, and that loader workers and epochs change nothing."""

from __future__ import annotations

import functools
import gc
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, Subset

from binarize.data import Augment, Scenes
from binarize.errors import DataError, FileError
from binarize.train import DepthDistillation, Segmentation, SegmentationDistillation, Trainer
from binarize.train.seeding import seeded
from binarize.train.settings import describe_object


def network(classes: int = 6, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Dropout2d(0.2), nn.Conv2d(8, classes, 1),
    )  # fmt: skip


def loader(workers: int = 0, batch: int = 4, **options: Any) -> DataLoader[Any]:
    settings: dict[str, Any] = {"count": 8, "size": (24, 32), "task": "segmentation", **options}
    data = Scenes(**settings)
    return DataLoader(
        data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def trainer(folder: Path | None = None, **options: Any) -> Trainer:
    model = options.pop("model", None) or network()
    settings: dict[str, Any] = {
        "epochs": 2, "lr": 1e-2, "balance": 0, "progress": False, **options
    }  # fmt: skip
    return Trainer(model, output_dir=folder, **settings)


def weights(run: Trainer) -> list[torch.Tensor]:
    return list(run.student.state_dict().values())


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "lr": ({"lr": 2e-2}, {}, "lr=0.01, this run has 0.02; use the same lr, or start over"),
    "weight_decay": ({"weight_decay": 0.5}, {}, "weight_decay=0.01, this run has 0.5"),
    "latent": ({"latent_weight_decay": 0.5}, {}, "latent_weight_decay=0.0, this run has 0.5"),
    "warmup": ({"warmup": 0.1}, {}, "warmup=0.3, this run has 0.1"),
    "clip": ({"clip": 1.0}, {}, "clip=None, this run has 1.0"),
    "seed": ({"seed": 7}, {}, "seed=0, this run has 7"),
    "optimizer": ({"optimizer": torch.optim.SGD}, {}, "optimizer=None, this run has 'SGD'"),
    "no teacher": ({"teacher": None}, {}, "teacher='weights [0-9a-f]{8}', this run has None"),
    "teacher": ({"teacher": 2}, {}, "teacher='weights .*', this run has 'weights "),
    "distillation": (
        {"distillation": SegmentationDistillation(trust="all")},
        {},
        "distillation.trust='agree', this run has 'all'",
    ),
    "kind": ({"distillation": DepthDistillation()}, {}, "distillation.class='Segmentation"),
    "loss": (
        {"task": Segmentation(6, label_smoothing=0.1)},
        {},
        "loss.label_smoothing=0.0, this run has 0.1",
    ),
    "class weights": (
        {"class_weights": [1.0] * 6},
        {},
        r"loss.class_weights=None, this run has \[",
    ),
    "balance": ({"balance": 0.5}, {}, "balance=0, this run has 0.5"),
    "ignored": ({"ignore_index": 3}, {}, "(loss|distillation).ignore_index=255, this run has 3"),
    "size": ({}, {"size": (32, 32)}, r"data.size=\[24, 32\], this run has \[32, 32\]"),
    "normalize": ({}, {"normalize": "symmetric"}, "data.normalize="),
    "augment": ({}, {"augment": Augment(jitter=0.1)}, "data.augment="),
    "batch": ({}, {"batch": 2, "count": 4}, "batch_size=4, this run has 2"),
    "policy": ({"settings": {"policy": "bnn"}}, {}, "policy='bidense', this run has 'bnn'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_outcome_is_refused(tmp_path: Path, change: str) -> None:
    options: dict[str, Any] = {"teacher": network(seed=1), "settings": {"policy": "bidense"}}
    trainer(tmp_path, epochs=1, **options).fit(loader())
    changed, data, message = CHANGES[change]
    options.update(changed)
    if isinstance(options["teacher"], int):
        options["teacher"] = network(seed=2)
    run = trainer(tmp_path, epochs=1, resume="auto", **options)
    before = [value.clone() for value in weights(run)]
    with pytest.raises(FileError, match=f"was made with {message}") as caught:
        run.fit(loader(**data))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))


def test_what_changes_nothing_is_applied_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "binarize")
    trainer(tmp_path, settings={"root": "/old"}).fit(loader())
    run = trainer(tmp_path, resume="auto", settings={"root": "/new"}, val_every=2, progress=None)
    run.fit(loader())
    told = [record.getMessage() for record in caplog.records if record.name == "binarize.train"]
    assert told == [
        "resuming after epoch 2 of 2",
        "val_every changes from 1 to 2",
        "root changes from '/old' to '/new'",
    ]


def test_checkpoints_of_earlier_versions_go_on(tmp_path: Path) -> None:
    whole = trainer()
    whole.fit(loader())
    trainer(tmp_path, epochs=1).fit(loader())
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert math.isfinite(state["history"][0]["loss"])
    kept = ("task", "epochs", "steps", "seed")  # all that they wrote down
    state["settings"] = {name: state["settings"][name] for name in kept}
    torch.save(state, tmp_path / "last.pt")
    run = trainer(tmp_path, epochs=1, lr=5.0, resume="auto")
    assert len(run.fit(loader())) == 1


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    first = trainer(tmp_path, epochs=1)
    first.fit(loader())
    first.fit(loader())  # its own
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(FileError) as caught:
        trainer(tmp_path, epochs=1).fit(loader())
    assert str(caught.value) == (
        f"output_dir='{tmp_path}': holds the checkpoints of another run; give resume='auto' to "
        "continue, overwrite=True to start over, or another folder"
    )
    assert (tmp_path / "last.pt").read_bytes() == before
    trainer(tmp_path, epochs=1, seed=1, overwrite=True).fit(loader())
    assert (tmp_path / "last.pt").read_bytes() != before


@pytest.mark.parametrize("kind", ["scenes", "subset", "numpy"])
def test_workers_change_nothing(kind: str) -> None:
    def made(workers: int, *, shuffle: bool = True) -> DataLoader[Any]:
        data: Any = Scenes(
            8, (24, 32), task="segmentation", augment=Augment(flip=0.5, zoom=1.5, jitter=0.3)
        )
        if kind == "subset":
            data = Subset(data, [5, 1, 2, 0, 7, 3])
        elif kind == "numpy":
            data = _Noisy()
        return DataLoader(data, 2, shuffle=shuffle, num_workers=workers,
                          persistent_workers=workers == 2)  # fmt: skip

    runs = []
    for workers in (0, 2):
        run = trainer(num_classes=6, epochs=2)
        run.fit(made(workers), made(workers, shuffle=False))
        runs.append(run)
    for other in runs[1:]:
        for mine, theirs in zip(runs[0].history, other.history, strict=True):
            assert {k: v for k, v in mine.items() if k not in ("seconds", "IoU")} == {
                k: v for k, v in theirs.items() if k not in ("seconds", "IoU")
            }
        assert all(map(torch.equal, weights(runs[0]), weights(other)))


class _Noisy(Dataset[Any]):
    """Draws from all three generators."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.rand(3, 24, 32) + random.random() + np.random.rand()
        return image, torch.full((24, 32), index % 6)


def test_reading_a_sample_leaves_the_generators_alone() -> None:
    seen: list[tuple[float, float, float]] = []

    class _Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((torch.rand(()).item(), random.random(), np.random.rand()))
            return x

    for data in (_Noisy(), [(torch.zeros(3, 24, 32), torch.zeros(24, 32).long())] * 8):
        model = network()
        model.insert(0, _Watch())
        trainer(model=model, num_classes=6).fit(DataLoader(data, 4))  # type: ignore[arg-type]
    assert seen[:4] == seen[4:]
    assert len(set(seen)) == 4


class _Following(Sampler[int]):
    """A sampler whose order depends on the epoch that it is told."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch, self.used = size, -1, []  # type: ignore[var-annotated]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Any:
        self.used.append(self.epoch)
        return iter([(i + self.epoch) % self.size for i in range(self.size)])


class _FollowingData(_Noisy):
    """A data set that gives what epoch it is told."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((3, 24, 32), float(self.epoch)), torch.zeros(24, 32).long()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("by", ["sampler", "batch sampler", "both"])
def test_a_resumed_run_tells_the_epoch_on(tmp_path: Path, by: str, workers: int) -> None:
    seen: list[float] = []

    class _Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(x.mean().item())
            return x

    def fit(epochs: int, **options: Any) -> _Following:
        sampler = _Following(8)
        how: dict[str, Any] = {"batch_size": 8, "sampler": sampler}
        if by == "batch sampler":
            how = {"batch_sampler": torch.utils.data.BatchSampler(sampler, 8, False)}
        data: Any = _FollowingData() if by != "sampler" else _Noisy()
        model = network()
        model.insert(0, _Watch())
        run = trainer(tmp_path, model=model, epochs=4, num_classes=6, **options)
        run.fit(DataLoader(data, num_workers=workers, persistent_workers=workers > 0, **how))
        return sampler

    with pytest.MonkeyPatch.context() as patch:
        real = torch.save

        def stop(state: Any, file: Any) -> None:
            real(state, file)
            if len(state["history"]) == 2:
                patch.undo()
                raise KeyboardInterrupt

        patch.setattr(torch, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(4)
        # What was written before the interruption was not yet in place: epoch 1 is.
    assert len(torch.load(tmp_path / "last.pt", weights_only=True)["history"]) == 1
    seen.clear()
    assert fit(4, resume="auto").used == [1, 2, 3]
    if by != "sampler":
        assert seen == [1, 2, 3]


def test_any_sampler_has_its_own_generator() -> None:
    def order(seed: int) -> list[int]:
        read: list[int] = []

        class _Noted(_Noisy):
            def __getitem__(self, index: int) -> Any:
                read.append(index)
                return super().__getitem__(index)

        sampler = torch.utils.data.WeightedRandomSampler([1.0] * 8, 8)
        trainer(num_classes=6, seed=seed).fit(DataLoader(_Noted(), 4, sampler=sampler))
        return read

    assert order(0) == order(0) != order(1)
    sampler = RandomSampler(range(8))
    trainer(num_classes=6).fit(DataLoader(_Noisy(), 4, sampler=sampler))
    assert sampler.generator is not None


class _Failing(Dataset[Any]):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if self.kind == "ours" and index == 1:
            raise DataError("mask", 7, "is out of range", "map it")
        if self.kind == "theirs" and index == 1:
            raise KeyError("depth")
        rows = 24 if self.kind != "sizes" or index else 30
        return torch.zeros(3, rows, 32), torch.zeros(rows, 32).long()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ours", "^mask=7: is out of range; map it$"),
        ("sizes", r"loader='.*: all samples of a batch must have the same size; give"),
        ("theirs", "data='KeyError': the data set raised an error: .*depth.*; with num_workers=0"),
    ],
)
def test_errors_of_data_sets_are_theirs(
    kind: str, message: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long torch waits for a worker that has failed.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    error: Any = KeyError if kind == "theirs" and workers == 0 else DataError
    match = "depth" if error is KeyError else message
    data = DataLoader(_Failing(kind), 4, num_workers=workers)
    with pytest.raises(error, match=match) as caught:
        trainer(num_classes=6).fit(data)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()


def test_any_seed_seeds_numpy() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        with seeded(seed):
            return random.random(), float(np.random.rand()), torch.rand(()).item()

    seeds = [*range(12), 2**32 - 1, 2**40 + 77, 2**63 - 2]
    made = [draws(seed) for seed in seeds]
    for draw in zip(*made, strict=True):
        assert len(set(draw)) == len(seeds)
    assert made == [draws(seed) for seed in seeds]


def test_objects_whose_class_has_no_signature() -> None:
    assert describe_object(functools.partial(max, 1)) == {"class": "partial"}
