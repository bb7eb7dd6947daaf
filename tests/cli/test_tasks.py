"""Further tasks in the shell: trained, listed, run, removed."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from torch import Tensor

import binarize
from binarize.cli.app import build_parser
from binarize.cli.output import Output
from binarize.cli.sources import open_source
from binarize.cli.view import _open
from binarize.errors import FileError
from tests.cli.conftest import SCENES, SMALL, Run, call


@pytest.fixture(scope="module")
def shared(binary_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1-bit segmentation network with a depth network that shares its bits."""
    folder = tmp_path_factory.mktemp("shared")
    file = binary_run / "binary.safetensors"
    assert call("train", "--model", file, *SCENES, "--task", "depth", "--epochs", 1,
                "--add-task", "depth", "--task-flips", "5%", "--task-agree", 2,
                "--output", folder / "run", "--quiet") == 0  # fmt: skip
    return folder / "run" / "binary.safetensors"


def test_file_has_both(run: Run, shared: Path, binary_run: Path) -> None:
    (task,) = binarize.tasks(shared)
    assert task.name == "depth"
    assert task.flips <= 0.05 * task.weights
    listed = run("tasks", shared, "--json")
    assert listed.code == 0
    base = (binary_run / "binary.safetensors").stat().st_size
    assert listed.json["base"] == base
    assert listed.json["bytes"] == shared.stat().st_size == base + task.bytes
    shown = run("tasks", shared, "--layers")
    assert "depth" in shown.out
    assert f"{task.bytes:,}" in shown.out
    assert f"{listed.json['alone']:,}" in shown.out
    assert listed.json["float"] > listed.json["alone"] > listed.json["bytes"]
    assert all(layer in shown.out for layer in task.layers)
    answer = run("train", *SMALL, *SCENES, "--output", shared.parent)
    assert answer.code == 1
    assert "already holds a run" in answer.err


def heads(file: Path) -> list[Tensor]:
    """Weights of the last layer of the base and of the task."""
    networks = [open_source(f"{file}{part}").network for part in ("", "#depth")]
    return [[p for p in net.parameters() if p.dim() == 4][-1] for net in networks]


def test_a_page_shows_the_task(shared: Path) -> None:
    def page(reference: str) -> str:
        args = build_parser().parse_args(["view", reference])
        answer = _open(args, Output(quiet=True))("", {})
        return html.unescape(answer.body.decode())

    shapes = [tuple(weight.shape) for weight in heads(shared)]
    assert shapes[0] != shapes[1]
    for part, shape in zip(("", "#depth"), shapes, strict=True):
        found = page(f"{shared}{part}")
        assert [f">{'×'.join(map(str, one))}<" in found for one in shapes] == [
            one == shape for one in shapes
        ]
    with pytest.raises(FileError, match="has no task 'dept'"):
        page(f"{shared}#dept")


def test_shares_and_operations(run: Run, shared: Path, tmp_path: Path) -> None:
    """On images of a data set, per layer, in numbers, as a table and as a figure."""
    out = tmp_path / "out"
    answer = run("tasks", shared, "--data", "scenes", "--size", "32x24", "--limit", 2, "--layers",
                 "--output", out, "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    made = answer.json
    assert made["batches"] == 2
    assert made["files"] == [str(out / name) for name in ("tasks.json", "tasks.png", "tasks.svg")]
    ops = made["ops"]
    assert ops["alone"] == sum(ops["networks"].values())
    assert ops["alone"] / 2 < ops["one_pass"] <= ops["alone"] < ops["float"]
    (task,) = made["tasks"]
    assert set(task["inputs"]) == set(task["layers"])
    first, *_ = task["inputs"].values()
    assert 0 <= first[0] <= first[1]
    shown = run("tasks", shared, "--operations")
    assert f"{ops['one_pass']:,.0f}" in shown.out
    assert "differing" not in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "x.jpg", "--data", "scenes"), "give either images or a data set"),
        (("--limit", "0"), "limit=0: must be at least 1"),
    ],
)
def test_wrong_options(run: Run, shared: Path, words: tuple[str, ...], message: str) -> None:
    answer = run("tasks", shared, *words)
    assert answer.code == 1
    assert message in answer.err


@pytest.mark.parametrize("packed", [(), ("--packed",)])
def test_commands_take_the_task(run: Run, shared: Path, packed: tuple[str, ...]) -> None:
    both = [run("eval", f"{shared}{part}", *SCENES, *packed, "--json") for part in ("#depth", "")]
    assert [answer.code for answer in both] == [0, 0], both[0].err
    depth, base = (str(answer.json) for answer in both)
    assert "δ1" in depth
    assert "δ1" not in base
    assert "mIoU" in base


def test_report_and_pack_take_the_task(run: Run, shared: Path, tmp_path: Path) -> None:
    report = run("report", f"{shared}#depth", "--json")
    assert report.code == 0, report.err
    packed = run("pack", f"{shared}#depth", "-o", tmp_path / "depth.safetensors")
    assert packed.code == 0, packed.err
    bench = run("bench", f"{shared}#depth", "--size", "32x24", "--rounds", 1, "--json")
    assert bench.code == 0, bench.err


def test_remove(run: Run, shared: Path, binary_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(shared.read_bytes())
    assert run("tasks", copy, "--remove", "depth").code == 0
    assert copy.read_bytes() == (binary_run / "binary.safetensors").read_bytes()
    again = run("tasks", copy, "--remove", "depth")
    assert again.code == 1
    assert "it has no task 'depth'" in again.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--add-task", "depth"), "add-task='depth': needs a converted network whose bits it"),
        (("--add-task", "a/b"), "add-task='a/b': must be a word without '/', other than"),
        (("--task-flips", "1%"), "task-flips=0.01: needs a further task; give --add-task NAME"),
        (("--task-agree", "1"), "task-agree=1.0: needs a further task; give --add-task NAME"),
        (("--add-task", "a", "--task-agree", "0"), "task-agree=0.0: must be positive; leave it o"),
    ],
)
def test_mistakes(run: Run, words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    answer = run("train", *SMALL, *SCENES, "--output", tmp_path / "out", *words)
    assert answer.code == 1
    assert message in answer.err
    assert not (tmp_path / "out").exists()


def test_float_file_has_no_bits_to_share(run: Run, float_run: Path, tmp_path: Path) -> None:
    answer = run("train", "--model", float_run / "float.safetensors", *SCENES,
                 "--add-task", "depth", "--output", tmp_path / "out")  # fmt: skip
    assert answer.code == 1
    assert "binarize.convert did not make it" in answer.err


def test_unknown_task(run: Run, shared: Path) -> None:
    answer = run("eval", f"{shared}#edges", *SCENES)
    assert answer.code == 1
    assert "it has no task 'edges'; use one of depth" in answer.err


@pytest.mark.parametrize("share", ["2", "-1%", "x", "1%%"])
def test_wrong_shares(run: Run, share: str, tmp_path: Path) -> None:
    answer = run("train", *SMALL, *SCENES, f"--task-flips={share}", "--output", tmp_path / "out")
    assert answer.code == 2
    assert "is not a share such as 1% or 0.01" in answer.err
