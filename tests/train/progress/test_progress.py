"""What is shown during a training."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest

from binarize.train import LineProgress, RichProgress, SilentProgress
from binarize.train.progress.displays import describe, open_progress, report_images, report_note

RECORD = {"epoch": 2, "loss": 0.51234, "lr": 0.001, "seconds": 3.25, "mIoU": 0.4, "IoU": [0.1]}


@pytest.mark.parametrize("logged", [True, False])
def test_a_line_per_epoch(
    logged: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "binarize")
    show = LineProgress(None if logged else sys.stderr)
    show.begin(25, 3, 0)
    show.step(2, 1, 0.5)
    show.evaluate(1, 2)
    show.epoch(RECORD)
    show.end()
    line = "epoch 2/25  loss 0.5123  mIoU 0.4  3.2 s"
    assert capsys.readouterr() == ("", "" if logged else f"{line}\n")
    assert caplog.record_tuples == [("binarize.train", logging.INFO, line)] * logged


def test_a_long_epoch_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("binarize.train.progress.displays.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    show = LineProgress(stream, every=60)
    show.begin(3, 100, 1)  # a resumed run: what was done before says nothing of the speed
    for step in range(1, 101):
        now[0] += 2.0
        show.images(8)
        show.step(2, step, 0.5)
        if step == 50:
            now[0] += 100.0
            show.evaluate(1, 1)
    show.epoch(RECORD)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epoch 2/3  step 30/100  loss 0.5  4 images/s  6 min left"
    assert [line.split("  ")[1] for line in lines[1:-1]] == ["step 51/100", "step 81/100"]
    assert all("  4 images/s  " in line for line in lines[:-1])  # the evaluation is left out
    assert lines[-1].startswith("epoch 2/3  loss 0.5123")


def test_displays_of_ones_own_need_no_more_than_the_protocol() -> None:
    class _Own:
        def step(self, epoch: int, step: int, loss: float | None) -> None: ...

    report_images(_Own(), 8)
    report_note(_Own(), "a line")
    show = LineProgress(io.StringIO())
    report_note(show, "a line")
    assert show.stream.getvalue() == "a line\n"  # type: ignore[union-attr]


def test_a_live_display() -> None:
    from rich.console import Console

    stream = io.StringIO()
    show = RichProgress(Console(file=stream, force_terminal=True, width=120, color_system=None))
    show.begin(2, 3, 0)
    show._clock.mark -= 2.0
    show.images(8)
    show.step(1, 1, 0.75)
    show.step(1, 2, None)
    show.note("resuming after epoch 0 of 2")
    show.evaluate(1, 4)
    show.epoch({**RECORD, "epoch": 1})
    show.end()
    show.end()
    shown = stream.getvalue()
    assert "epoch 1/2  loss 0.5123  mIoU 0.4" in shown
    assert re.search(r"training .* 2/6", shown)
    assert re.search(r"evaluate .* 1/4", shown)
    assert "left" in shown
    assert "img/s" in shown
    assert "resuming after epoch 0 of 2" in shown


SEGMENTATION = {
    "epoch": 3, "loss": 0.51234, "distillation": 0.0123456, "lr": 0.001, "seconds": 1234.5,
    "val_loss": 0.61234, "mIoU": 0.41234, "pixAcc": 0.81234, "IoU": [0.1],
}  # fmt: skip
DEPTH = {
    "epoch": 3, "loss": 0.51234, "distillation": 0.01234, "lr": 0.001, "seconds": 9.5,
    "val_loss": 0.61234, "δ1": 0.71234, "δ2": 0.81234, "δ3": 0.91234, "AbsRel": 0.21234,
    "RMSE": 0.81234, "SqRel": 0.11234, "RMSElog": 0.21234, "log10": 0.071234,
}  # fmt: skip


@pytest.mark.parametrize("width", [64, 80, 200])
@pytest.mark.parametrize("record", [SEGMENTATION, DEPTH], ids=["segmentation", "depth"])
def test_no_line_is_wider_than_the_terminal(record: dict, width: int) -> None:
    from rich.console import Console

    stream = io.StringIO()
    show = RichProgress(Console(file=stream, force_terminal=True, width=width, color_system=None))
    show.begin(100, 9_999, 0)
    for step in range(1, 4):
        show.step(100, step, 1.2345e-05)
    show.evaluate(9_999, 9_999)
    show.epoch(record)
    show.end()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", stream.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    (told,) = (line for line in lines if line.startswith("epoch   3/100"))
    assert "loss 0.5123" in told
    assert f"  {record['seconds']:.1f} s" in told
    best = "mIoU 0.4123" if "mIoU" in record else "δ1 0.7123"
    assert best in told
    whole = width == 200
    assert all((name in told) == whole for name in ("distillation", "val_loss"))


def test_what_is_left_out_of_a_line() -> None:
    parts = ("loss 0.5123  ", "distillation 0.01235  ", "val_loss 0.6123  ", "mIoU 0.4123  ",
             "pixAcc 0.8123  ", "1234.5 s")  # fmt: skip
    assert describe(SEGMENTATION) == "".join(parts)
    assert describe(SEGMENTATION, len("".join(parts))) == "".join(parts)
    without = [part for part in parts if "distillation" not in part]
    assert describe(SEGMENTATION, len("".join(parts)) - 1) == "".join(without)
    assert describe(SEGMENTATION, 40) == "loss 0.5123  mIoU 0.4123  1234.5 s"
    assert describe(SEGMENTATION, 3) == "1234.5 s"


def test_an_evaluation_alone() -> None:
    from rich.console import Console

    stream = io.StringIO()
    show = RichProgress(Console(file=stream, force_terminal=True, width=120, color_system=None))
    show.evaluate(1, 2)
    show.evaluate(2, 2)
    show.end()
    assert re.search(r"evaluate .* 2/2", stream.getvalue())


def test_what_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, stream in ((None, None), (True, sys.stderr)):
        show = open_progress(wanted)
        assert type(show) is LineProgress
        assert show.stream is stream
    assert type(open_progress(False)) is SilentProgress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert type(open_progress(None)) is RichProgress
    own = SilentProgress()
    assert open_progress(own) is own
