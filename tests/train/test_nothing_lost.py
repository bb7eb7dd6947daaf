"""A run that is killed at any moment goes on as if nothing had happened, also between epochs."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from binarize.errors import BinarizeError
from binarize.train import SilentProgress, Trainer
from binarize.train.checkpoint import parse_every

FILES = {"last.pt", "best.pt", "history.json", "curves.png"}
# Both the process that is killed and the test itself run this.
SETUP = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from binarize import convert
    from binarize.data import Augment, Scenes
    from binarize.train import FeatureDistillation, Trainer

    def make(folder, workers, accumulate, **options):
        torch.set_num_threads(1)

        def network(seed):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2),
                nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 6, 1), nn.Upsample(scale_factor=2),
            )

        student = convert(network(0), "bidense", example_inputs=torch.zeros(1, 3, 16, 24))
        augment = Augment(flip=0.5, jitter=0.2)
        train = DataLoader(
            Scenes(14, (16, 24), task="segmentation", augment=augment), 2, shuffle=True,
            num_workers=workers, persistent_workers=workers > 0,
        )
        val = DataLoader(Scenes(4, (16, 24), seed=1, task="segmentation"), 2)
        trainer = Trainer(
            student, teacher=network(1), features=FeatureDistillation(0.1, 0.1), epochs=3, lr=1e-2,
            ema=0.9, flips=True, two_steps=0.4, output_dir=folder, accumulate=accumulate,
            **{"progress": False, **options},
        )
        return trainer, train, val
"""
CHILD = """
    import sys
    from binarize.train import SilentProgress

    class Tell(SilentProgress):
        def step(self, epoch, step, loss):
            print(epoch, step, flush=True)
            sys.stdin.readline()  # goes on when it is told to

    trainer, train, val = make(
        sys.argv[1], int(sys.argv[2]), int(sys.argv[3]),
        save_every=sys.argv[4], resume="auto", progress=Tell(),
    )
    trainer.fit(train, val)
"""
_space: dict[str, Any] = {}
exec(textwrap.dedent(SETUP), _space)
make = _space["make"]


def _numbers(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def _same(ours: nn.Module, theirs: nn.Module) -> None:
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


class _Killed(SilentProgress):
    """Stops after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", params=[1, 3])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer, train, val = make(tmp_path_factory.mktemp("whole"), 0, request.param)
    trainer.fit(train, val)
    return request.param, trainer


# Epochs of 7 steps: in the middle of an update, at the end of an epoch, right after it, and so on.
@pytest.mark.parametrize("steps", [4, 13])
def test_between_steps(whole: Any, tmp_path: Path, steps: int) -> None:
    accumulate, expected = whole
    killed, train, val = make(tmp_path, 0, accumulate, save_every=2, progress=_Killed(steps))
    with pytest.raises(KeyboardInterrupt):
        killed.fit(train, val)
    torch.manual_seed(99)
    resumed, train, val = make(tmp_path, 0, accumulate, save_every="1h", resume="auto")
    if resumed.resume is not None:
        part = torch.load(resumed.resume, weights_only=True).get("part", {"step": 0})
        assert part["step"] % accumulate == 0
    history = resumed.fit(train, val)
    assert _numbers(history) == _numbers(expected.history)
    assert resumed.best == expected.best
    _same(resumed.student, expected.student)


def test_kill_9_at_a_random_moment(whole: Any, tmp_path: Path) -> None:
    accumulate, expected = whole
    workers = 0 if accumulate == 1 else 2
    after = random.randrange(3, 18)
    code = textwrap.dedent(SETUP) + textwrap.dedent(CHILD)
    # Every update is saved, and the last one may be killed while it is.
    words = [sys.executable, "-c", code, str(tmp_path), str(workers), str(accumulate), "1"]
    child = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        for _ in itertools.islice(child.stdout, after):
            child.stdin.write("\n")
            child.stdin.flush()
        child.send_signal(signal.SIGKILL)
        child.stdin.close()
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "last.pt").is_file()
    (tmp_path / ".last.pt.0.part").touch()  # as a process leaves it that is killed while it writes
    resumed, train, val = make(tmp_path, workers, accumulate, save_every=1, resume="auto")
    history = resumed.fit(train, val)
    assert _numbers(history) == _numbers(expected.history), f"killed after {after} steps"
    _same(resumed.student, expected.student)
    assert {file.name for file in tmp_path.iterdir()} == FILES


def test_the_newest_epochs_are_kept(tmp_path: Path) -> None:
    trainer, train, val = make(tmp_path / "kept", 0, 1, keep_checkpoints=2)
    expected = trainer.fit(train, val)
    names = {file.name for file in (tmp_path / "kept").iterdir()}
    assert names == {*FILES, "epoch-0002.pt", "epoch-0003.pt"}
    second = torch.load(tmp_path / "kept" / "epoch-0002.pt", weights_only=True)
    assert len(second["history"]) == 2
    again, train, val = make(tmp_path / "b", 0, 1, resume=tmp_path / "kept" / "epoch-0002.pt")
    assert _numbers(again.fit(train, val)) == _numbers(expected)
    _same(again.student, trainer.student)


def test_the_time_is_that_since_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from binarize.train import checkpoint

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 1
            return self.now

    written: list[int] = []
    kept = checkpoint.write_checkpoint

    def write(path: Path, state: dict[str, Any]) -> None:
        if path.name == "last.pt":
            written.append(state["part"]["step"] if "part" in state else 0)
        kept(path, state)

    monkeypatch.setattr(checkpoint, "time", Clock())
    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    trainer, train, _ = make(tmp_path, 0, 1, save_every="3s")
    trainer.fit(train)
    assert written == [3, 6, 0] * 3  # a second passes with every look at the clock


def test_what_save_every_takes() -> None:
    assert parse_every(None) == (None, None)
    assert parse_every("90s") == (90, None)
    assert parse_every("10min") == (600, None)
    assert parse_every("1.5 h") == (5400, None)
    assert parse_every(20) == parse_every("20") == (None, 20)
    for wrong in ("0min", "ten", "", 0, -1, True, "5 days", 1.5):
        with pytest.raises(BinarizeError, match="save_every"):
            parse_every(wrong)  # type: ignore[arg-type]
    with pytest.raises(BinarizeError, match="needs output_dir"):
        Trainer(nn.Conv2d(3, 6, 1), save_every="10min")
    with pytest.raises(BinarizeError, match="keep_checkpoints"):
        Trainer(nn.Conv2d(3, 6, 1), keep_checkpoints=0)
