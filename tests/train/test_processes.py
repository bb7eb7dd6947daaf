"""Two processes do together what one does alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.train.processes import equalise

SCRIPT = """
    import functools, json, sys
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from binarize.data import Augment, Scenes
    from binarize.train import Trainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, folder, options = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

    class Watch(nn.Module):
        drawn = []

        def forward(self, x):
            if self.training:
                self.drawn.append(torch.rand(()).item())
            return x

    # Norms, and a layer that the forward never calls.
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 6, 1), Watch(),
    )
    network.unused = nn.Linear(2, 2)
    layers = list(network)[:-1]  # without the unused one
    network.forward = lambda x: functools.reduce(lambda x, layer: layer(x), layers, x)

    augment = Augment(flip=0.5, jitter=0.2)
    train = DataLoader(
        Scenes(16, (24, 32), task="segmentation", augment=augment), batch, shuffle=True
    )
    # five samples over two processes: one of them has more than the other
    val = DataLoader(Scenes(5, (24, 32), seed=1, task="segmentation"), 1)
    trainer = Trainer(
        network, task="segmentation", num_classes=6, epochs=2, lr=1e-2, output_dir=folder,
        # Weighted means of halves are not the weighted mean of the whole.
        balance=0, progress=False, **options
    )
    history = trainer.fit(train, val)
    # Each process writes a file: their lines would run into each other.
    rank = trainer.accelerator.process_index
    saved = torch.load(folder + "/last.pt", weights_only=True)["student"]
    with open(f"{folder}/rank{rank}.json", "w") as file:
        json.dump({
            "processes": trainer.accelerator.num_processes,
            "history": history,
            "state": {k: v.flatten().tolist() for k, v in network.state_dict().items()},
            "saved": {k: v.flatten().tolist() for k, v in saved.items()},
            "drawn": Watch.drawn,
            "again": trainer.evaluate(val)["loss"],
        }, file)
"""


def launch(folder: Path, processes: int, batch: int, environment: dict[str, str],
           script: str = SCRIPT, **options: Any) -> list[dict[str, Any]]:  # fmt: skip
    """Train in so many processes, and return what each of them came to."""
    file = folder / "train.py"
    file.write_text(textwrap.dedent(script))
    output = folder / f"{processes}x{batch}"
    output.mkdir()
    # `accelerate launch` starts several CPU processes through MPI only; this is what it runs
    # for GPUs.
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*start, f"--nproc_per_node={processes}"] if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*command, str(file), str(batch), str(output), json.dumps(options)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", **environment},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    # Four batches an epoch: an update of three, and one of the batch that is left.
    environment = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3"}
    (one,) = launch(tmp_path, 1, 4, environment)
    two, other = launch(tmp_path, 2, 2, environment)

    assert (one["processes"], two["processes"]) == (1, 2)
    # Two halves of a batch are one batch, and five images are five, whoever measures them.
    for name, value in one["state"].items():
        assert two["state"][name] == pytest.approx(value, abs=2e-4), name
        # What was measured is what was saved, by whichever process.
        assert two["state"][name] == other["state"][name] == two["saved"][name], name
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for name in ("loss", "val_loss", "lr", "pixAcc", "mIoU"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
    assert two["again"] == pytest.approx(two["history"][-1]["val_loss"], rel=1e-6)
    assert {file.name for file in (tmp_path / "2x2").glob("*.pt")} == {"last.pt", "best.pt"}
    # The same samples, and other noise inside the network.
    assert len(set(two["drawn"])) == len(set(other["drawn"])) == 8
    assert not set(two["drawn"]) & set(other["drawn"])


HEADS = """
    import json, sys
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from binarize.data import StreamDataset
    from binarize.train import MultiTask, SegmentationDistillation, Trainer

    torch.set_num_threads(1)
    batch, folder, options = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

    def network(seed, width, classes=3):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, classes, 1),
        )

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network(0, 8, 6)

        def forward(self, x):
            return dict(zip(("one", "two"), self.body(x).chunk(2, 1)))

    chance = torch.Generator().manual_seed(0)
    source = [
        {
            "image": torch.randint(256, (3, 16, 24), dtype=torch.uint8, generator=chance),
            "mask": torch.randint(3, (16, 24), dtype=torch.uint8, generator=chance),
        }
        for _ in range(12)
    ]
    # Trusting some pixels only, halves of a batch are not its mean.
    distillation = dict.fromkeys(("one", "two"), SegmentationDistillation(trust="all"))
    tasks = dict.fromkeys(("one", "two"), "segmentation")
    trainer = Trainer(
        Heads(), task=MultiTask(tasks, weights="uncertainty"),
        teacher={"one": network(1, 4), "two": [network(2, 4), network(3, 6)]},
        distillation=distillation, epochs=2, lr=1e-2, balance=0, progress=False,
        output_dir=folder, compile=True, **options,
    )
    data = StreamDataset(source, 12, classes=3, shuffle=5, augment=True)
    history = trainer.fit(DataLoader(data, batch))
    rank = trainer.accelerator.process_index
    with open(f"{folder}/rank{rank}.json", "w") as file:
        state = trainer.student.state_dict()
        json.dump({
            "history": history,
            "state": {k: v.flatten().tolist() for k, v in state.items()},
        }, file)
"""


@pytest.mark.slow
def test_two_processes_compiled_on_a_stream_with_teachers_by_head(tmp_path: Path) -> None:
    (one,) = launch(tmp_path, 1, 4, {}, script=HEADS)
    two, other = launch(tmp_path, 2, 2, {}, script=HEADS)
    assert two["state"] == other["state"]
    for name, value in one["state"].items():
        assert two["state"][name] == pytest.approx(value, abs=2e-4), name
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for name in ("loss", "distillation"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
        assert theirs["task_weights"] == pytest.approx(mine["task_weights"], rel=1e-4)


INSIDE = """
    import json, shutil, sys
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from binarize.train import checkpoint
    from binarize.data import Scenes
    from binarize.nn import Int8Conv2d
    from binarize.train import FeatureDistillation, Trainer

    folder, resume = sys.argv[1], sys.argv[2] or None
    torch.set_num_threads(1)
    kept = checkpoint.write_checkpoint

    def write(path, state):
        kept(path, state)
        if "part" in state and len(state["history"]) == 1:
            shutil.copy(path, folder + "/inside.pt")

    checkpoint.write_checkpoint = write

    def network(seed, width):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            Int8Conv2d(width, 6, 1), nn.Upsample(scale_factor=2),  # each observes its own half
        )

    student = network(0, 4)
    trainer = Trainer(
        student, teacher=network(1, 6), features=FeatureDistillation(layers="2"), num_classes=6,
        epochs=2, lr=1e-2, balance=0, progress=False, output_dir=folder, resume=resume,
        overwrite=True, save_every=1 if resume is None else "1h",
    )
    history = trainer.fit(DataLoader(Scenes(12, (16, 24), task="segmentation"), 2, shuffle=True))
    last = torch.load(folder + "/last.pt", weights_only=True)
    rank = trainer.accelerator.process_index
    with open(f"{folder}/rank{rank}{'b' if resume else 'a'}.json", "w") as file:
        json.dump({
            "loss": [record["loss"] for record in history],
            "distillation": [record["distillation"] for record in history],
            "state": [v.tolist() for v in student.state_dict().values()],
            "projection": [v.tolist() for v in last["features"].values()],
        }, file)
"""


@pytest.mark.slow
def test_two_processes_go_on_inside_an_epoch(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(INSIDE))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for resume in ("", str(tmp_path / "inside.pt")):
        done = subprocess.run(
            [*start, str(script), str(tmp_path), resume],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    whole, other, resumed = (
        json.loads((tmp_path / f"rank{name}.json").read_text()) for name in ("0a", "1a", "0b")
    )
    assert whole == other
    assert whole["projection"]
    assert resumed["state"] == whole["state"]
    # Going on, both have the first one's projections: they must have had the same before.
    assert resumed["projection"] == whole["projection"]
    # Sums of both processes are added in another order.
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert resumed["distillation"] == pytest.approx(whole["distillation"], rel=1e-5)


def test_buffers_of_all_processes_become_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seen from the second of two processes; the first one's values are 3.
    summed = []

    def all_reduce(value: Tensor) -> None:
        summed.append(value.dtype)
        value += 3

    def broadcast(value: Tensor, source: int) -> None:
        assert source == 0
        value.fill_(3)

    for name, function in (("all_reduce", all_reduce), ("broadcast", broadcast)):
        monkeypatch.setattr(torch.distributed, name, function)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr("binarize.train.processes.is_distributed", lambda: True)
    buffers = [torch.ones(2, dtype=each) for each in (torch.float32, torch.bfloat16, torch.int64)]
    equalise(buffers)
    assert [buffer.tolist() for buffer in buffers] == [[2, 2], [2, 2], [3, 3]]
    assert summed == [torch.float32, torch.float32]  # sums in bfloat16 would be coarse
