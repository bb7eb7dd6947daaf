"""What is shown during a training."""

from __future__ import annotations

import io
import re
import sys

import pytest

from binarize.train import LineProgress, RichProgress, SilentProgress
from binarize.train.progress import open_progress

RECORD = {"epoch": 2, "loss": 0.51234, "lr": 0.001, "seconds": 3.25, "mIoU": 0.4, "IoU": [0.1]}


def test_a_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    show = LineProgress()
    show.begin(25, 3, 0)
    show.step(2, 1, 0.5)
    show.evaluate(1, 2)
    show.epoch(RECORD)
    show.end()
    assert capsys.readouterr() == ("", "epoch 2/25  loss 0.5123  mIoU 0.4  3.2 s\n")


def test_a_live_display() -> None:
    from rich.console import Console

    stream = io.StringIO()
    show = RichProgress(Console(file=stream, force_terminal=True, width=120, color_system=None))
    show.begin(2, 3, 0)
    show.step(1, 1, 0.75)
    show.step(1, 2, None)
    show.evaluate(1, 4)
    show.epoch({**RECORD, "epoch": 1})
    show.end()
    show.end()
    shown = stream.getvalue()
    assert "epoch   1/2  loss 0.5123  mIoU 0.4" in shown
    assert re.search(r"training .* 2/6", shown)
    assert re.search(r"evaluate .* 1/4", shown)
    assert "left" in shown


def test_an_evaluation_alone() -> None:
    from rich.console import Console

    stream = io.StringIO()
    show = RichProgress(Console(file=stream, force_terminal=True, width=120, color_system=None))
    show.evaluate(1, 2)
    show.evaluate(2, 2)
    show.end()
    assert re.search(r"evaluate .* 2/2", stream.getvalue())


def test_what_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(open_progress(None)) is LineProgress
    assert type(open_progress(False)) is SilentProgress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert type(open_progress(None)) is RichProgress
    own = SilentProgress()
    assert open_progress(own) is own
