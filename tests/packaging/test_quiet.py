"""Library code writes nothing to the standard streams; what it has to say, it logs."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes

PACKAGE = Path(binarize.__file__).parent
# Binds the error stream for users who ask for a display, moves an engine's own output, and reads a
# command's.
STREAMS = {"train/progress/displays.py", "bench/engines.py", "processor.py"}


def library() -> list[Path]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    return [file for file in files if "cli" not in file.relative_to(PACKAGE).parts]


def test_only_the_command_line_prints() -> None:
    for file in library():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), file
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
                assert str(file.relative_to(PACKAGE)) in STREAMS, file


def test_every_step_is_silent_and_training_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "binarize")
    batches = DataLoader(Scenes(4, size=(16, 16), seed=0), batch_size=2)
    teacher = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Conv2d(8, Scenes.num_classes, 1),
    )
    x = torch.rand(1, 3, 16, 16)
    str(binarize.plan(teacher, example_inputs=x))
    student = binarize.prepare_student(teacher, "bidense", batches)
    trainer = binarize.Trainer(student, teacher=teacher, task="segmentation", epochs=2)
    trainer.fit(batches, batches)
    trainer.evaluate(batches)
    str(binarize.report(student, x))
    binarize.save(student, tmp_path / "s.safetensors")
    packed = binarize.pack(binarize.load(tmp_path / "s.safetensors", teacher))
    packed(x)
    binarize.save(packed, tmp_path / "p.safetensors")
    assert capfd.readouterr() == ("", "")
    told = [record.getMessage() for record in caplog.records if record.name == "binarize.train"]
    assert [line.split("  ")[0] for line in told] == ["epoch 1/2", "epoch 2/2"]
