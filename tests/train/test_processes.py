"""Two processes do together what one does alone."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
    import json, sys
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from binarize.data import Scenes
    from binarize.train import Trainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1))
    network.unused = nn.Linear(2, 2)  # a layer that the forward never calls
    network.forward = lambda x: network[2](network[1](network[0](x)))
    batch, folder = int(sys.argv[1]), sys.argv[2]
    train = DataLoader(Scenes(16, (24, 32), task="segmentation"), batch, shuffle=True)
    # five samples over two processes: one of them has more than the other
    val = DataLoader(Scenes(5, (24, 32), seed=1, task="segmentation"), 1)
    trainer = Trainer(network, epochs=2, output_dir=folder, progress=False)
    history = trainer.fit(train, val)
    if trainer.accelerator.is_main_process:
        print(json.dumps({
            "processes": trainer.accelerator.num_processes,
            "history": history,
            "weight": network[0].weight.flatten().tolist(),
        }))
"""


@pytest.mark.slow
def test_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    monkeypatch.setattr(sys, "argv", [str(script), "4", str(tmp_path / "one")])
    runpy.run_path(str(script))
    one = json.loads(capsys.readouterr().out)

    # `accelerate launch` starts several CPU processes through MPI only; this is what it runs
    # for GPUs.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(script), "2", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout.strip().splitlines()[-1])

    assert (one["processes"], two["processes"]) == (1, 2)
    # Two halves of a batch are one batch, and five images are five, whoever measures them.
    assert two["weight"] == pytest.approx(one["weight"], abs=1e-4)
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for name in ("loss", "val_loss", "lr", "pixAcc", "mIoU"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
    assert {file.name for file in (tmp_path / "two").iterdir()} == {"last.pt", "best.pt"}
