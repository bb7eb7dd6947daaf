"""What a run leaves for people: history, curves and pictures, whole at any moment."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from binarize.data import Scenes
from binarize.errors import BinarizeError
from binarize.page.curves import curves_figure, panels, speed
from binarize.train import Classification, Depth, MultiTask, Segmentation, SilentProgress, Trainer
from binarize.train.progress import run_log

SIZE = (16, 24)


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, channels, 1))


def loader(task: str, count: int = 3, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(Scenes(count, SIZE, seed=seed, task=task), batch_size=2)


def trainer(folder: Path | None, task: str = "segmentation", **options: Any) -> Trainer:
    channels = {"depth": 1, "classification": 3}.get(task, 6)
    settings = {"epochs": 2, "lr": 1e-2, "progress": False, "task": task, **options}
    net = network(channels)
    if task == "classification":
        net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Trainer(net, output_dir=folder, **settings)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "history.json").read_text(encoding="utf-8"))


def test_the_history_is_there_after_every_epoch(tmp_path: Path) -> None:
    seen = []

    def look(made: Trainer, record: dict[str, Any]) -> None:
        seen.append(read(tmp_path))

    made = trainer(tmp_path, callbacks=[look])
    history = made.fit(loader("segmentation"), loader("segmentation", seed=1))
    assert [len(told["history"]) for told in seen] == [1, 2]
    assert {told["state"] for told in seen} == {"running"}
    told = read(tmp_path)
    assert (told["state"], told["epochs"], told["progress"]) == ("finished", 2, None)
    assert (told["format"], told["task"], told["metric"]) == (
        *("binarize history", "segmentation", "mIoU"),
    )
    assert told["best"] == made.best
    for mine, theirs in zip(told["history"], history, strict=True):
        # What is not a number in Python has no name in JSON.
        theirs = {**theirs, "IoU": [None if math.isnan(x) else x for x in theirs["IoU"]]}
        assert mine == theirs
        assert mine["images"] == 3
        assert speed(mine) == pytest.approx(3 / mine["seconds"])
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.size[0] > 600
    assert not list(tmp_path.glob(".*"))


def test_progress_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Look(SilentProgress):
        def step(self, epoch: int, step: int, loss: float | None) -> None:
            if (tmp_path / "history.json").exists():
                seen.append(read(tmp_path)["progress"])

    monkeypatch.setattr(run_log, "_PAUSE", 0.0)
    (tmp_path / ".history.json.0.part").touch()  # of a run that was killed while writing
    trainer(tmp_path, progress=Look()).fit(loader("segmentation"))
    steps = [(told["epoch"], told["step"], told["steps"]) for told in seen if told]
    # What a display sees is as of the step before.
    assert steps == [(1, 1, 2), (2, 1, 2)]
    assert all(told["loss"] > 0 for told in seen if told)
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_says_so_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    def stop(made: Trainer, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, callbacks=[stop]).fit(loader("segmentation"))
    assert (read(tmp_path)["state"], len(read(tmp_path)["history"])) == ("stopped", 1)
    trainer(tmp_path, resume="auto").fit(loader("segmentation"))
    assert (read(tmp_path)["state"], len(read(tmp_path)["history"])) == ("finished", 2)


def test_what_cannot_be_written_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = []

    class Listen(SilentProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    (tmp_path / "history.json").mkdir()
    (tmp_path / "pictures").touch()
    made = trainer(tmp_path, progress=Listen(), pictures=1)
    assert len(made.fit(loader("segmentation"), loader("segmentation"))) == 2
    assert len(notes) == 1
    assert "note: cannot write pictures" in notes[0]
    assert "training continues without it" in notes[0]
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_pictures_show_input_truth_and_prediction(task: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, task, pictures=3)
    val = loader(task, seed=1)
    made.fit(loader(task), val)
    told = read(tmp_path)["pictures"]
    assert told == {"epoch": 2, "files": [f"pictures/{i}.png" for i in (1, 2, 3)]}
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["1.png", "2.png", "3.png"]
    with Image.open(tmp_path / "pictures/3.png") as picture:
        pixels = torch.from_numpy(np.array(picture)).long()
    rows, columns = SIZE
    assert pixels.shape == (rows, 3 * columns + 8, 3)
    data: Any = val.dataset
    sample = data[2]
    assert torch.equal(
        pixels[:, :columns], data.denormalize(sample["image"]).permute(1, 2, 0).long()
    )
    if task == "segmentation":
        colors = torch.tensor(data.palette)
        with torch.no_grad():
            guess = made.student.eval()(sample["image"][None])[0].argmax(0)
        for place, labels in ((columns + 4, sample["mask"]), (2 * columns + 8, guess)):
            assert torch.equal(pixels[:, place : place + columns], colors[labels.long()])


def test_pictures_of_any_tensors(tmp_path: Path) -> None:
    images = torch.randn(3, 3, *SIZE)
    labels = torch.tensor([0, 2, 1])
    batches = DataLoader(TensorDataset(images, labels), batch_size=2)
    trainer(tmp_path / "a", "classification", pictures=9).fit(batches, batches)
    assert len(read(tmp_path / "a")["pictures"]["files"]) == 3
    masks = torch.randint(0, 2, (3, 6, *SIZE))
    batches = DataLoader(TensorDataset(images, masks), batch_size=3)
    trainer(tmp_path / "b", "multilabel", pictures=1, num_classes=6).fit(batches, batches)
    assert (tmp_path / "b/pictures/1.png").is_file()


class Heads(nn.Module):
    """A network that returns a mapping of heads."""

    def __init__(self, **channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.trunk = network(sum(channels.values()))

    def forward(self, x: Any) -> dict[str, Any]:
        parts = self.trunk(x).split(list(self.channels.values()), 1)
        made = dict(zip(self.channels, parts, strict=True))
        if "kind" in made:
            made["kind"] = made["kind"].mean((2, 3))
        return made


def test_pictures_of_several_heads(tmp_path: Path) -> None:
    torch.manual_seed(1)
    samples = [
        {
            "image": torch.rand(3, *SIZE),
            "mask": torch.randint(0, 6, SIZE),
            "depth": torch.rand(1, *SIZE) + 1,
            "label": torch.tensor(kind),
        }
        for kind in (2, 0, 1)
    ]
    batches: DataLoader[Any] = DataLoader(samples, 2)  # type: ignore[arg-type]

    def shown(folder: Path, channels: dict[str, int], task: Any) -> np.ndarray:
        network = Heads(**channels)
        made = Trainer(
            network if len(channels) > 1 else network.trunk, task=task, epochs=1,
            output_dir=folder, progress=False, pictures=2,
        )  # fmt: skip
        made.fit(batches, batches)
        assert read(folder)["pictures"]["files"] == ["pictures/1.png", "pictures/2.png"]
        with Image.open(folder / "pictures/2.png") as picture:
            return np.asarray(picture.convert("RGB"))

    alone = shown(tmp_path / "alone", {"labels": 6}, Segmentation(6))
    tasks: dict[str, Any] = {"labels": Segmentation(6), "distance": Depth(max_depth=10.0)}
    both = shown(tmp_path / "both", {"labels": 6, "distance": 1}, MultiTask(tasks))
    # The image, then truth and prediction of each head.
    assert both.shape[0] == alone.shape[0] == SIZE[0]
    assert both.shape[1] >= 5 * SIZE[1] > alone.shape[1]
    width = alone.shape[1] * 2 // 3
    assert np.array_equal(both[:, :width], alone[:, :width])  # image and true labels
    assert not np.array_equal(both[:, -SIZE[1] :], both[:, -2 * SIZE[1] - 1 : -SIZE[1] - 1])
    # A class is written below the pictures of the others.
    tasks = {"labels": Segmentation(6), "kind": Classification(3)}
    kinds = shown(tmp_path / "kinds", {"labels": 6, "kind": 3}, MultiTask(tasks))
    assert kinds.shape[0] > SIZE[0]


def test_pictures_change_nothing_about_the_training(tmp_path: Path) -> None:
    runs = [
        trainer(tmp_path / str(count), pictures=count).fit(
            loader("segmentation"), loader("segmentation", seed=1)
        )
        for count in (0, 2)
    ]
    first, second = ([{**r, "seconds": 0} for r in run] for run in runs)
    assert json.dumps(first) == json.dumps(second)


def test_pictures_need_something_to_show(tmp_path: Path) -> None:
    with pytest.raises(BinarizeError, match=r"pictures=2: needs output_dir; give the folder"):
        trainer(None, pictures=2)
    with pytest.raises(BinarizeError, match=r"pictures=-1: must not be negative"):
        trainer(tmp_path, pictures=-1)
    with pytest.raises(BinarizeError, match=r"pictures=2: needs validation images; give val_load"):
        trainer(tmp_path, pictures=2).fit(loader("segmentation"))
    assert not list(tmp_path.iterdir())


RECORDS = [
    {"epoch": 1, "loss": 2.0, "lr": 0.1, "images": 10, "seconds": 2.0, "val_loss": None},
    {"epoch": 2, "loss": 1.0, "lr": 0.2, "images": 10, "seconds": 4.0, "val_loss": 1.5, "mIoU": 0.4,
     "RMSE": 3.0, "flip_ratio": 0.01, "IoU": [0.1], "float_weights": True, "$odd_": 0.5},
]  # fmt: skip


def test_charts_show_all_numbers() -> None:
    nan = math.nan
    assert repr(panels(RECORDS)) == repr(
        {
            "loss": {"loss": [2.0, 1.0], "val_loss": [nan, 1.5]},
            "metrics": {"mIoU": [nan, 0.4], "$odd_": [nan, 0.5]},
            "other metrics": {"RMSE": [nan, 3.0]},
            "learning rate": {"lr": [0.1, 0.2]},
            "images per second": {"images/s": [5.0, 2.5]},
            "binary weights that changed sign": {"flip_ratio": [nan, 0.01]},
        }
    )
    for dark in (False, True):
        figure = curves_figure(RECORDS, best=2, dark=dark)
        figure.canvas.draw()
        drawn = {axes.get_title(): axes for axes in figure.axes}
        assert len(drawn) == 6
        (loss, val_loss) = drawn["loss"].get_lines()
        assert list(loss.get_ydata()) == [2.0, 1.0]
        assert list(val_loss.get_xdata()) == [2]
    assert panels([]) == {}
    assert panels([{"epoch": 1, "loss": None}]) == {}
    curves_figure([{"epoch": 1, "loss": None}])
