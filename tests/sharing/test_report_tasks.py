"""The report of a file's tasks: flips, differing inputs, bytes, operations."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import FileError, ModelError
from binarize.nn import BinaryLayer
from binarize.sharing.differences import differing_inputs
from tests.sharing.test_add_task import SIZE, Net, X, base_of, calls


class Chain(nn.Module):
    """A stem, two binary layers and a head, whose operations are easy to write down."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(torch.relu(self.one(torch.relu(self.stem(x)))))
        out: Tensor = self.head(x)
        return out


PIXELS = SIZE[2] * SIZE[3]
STEM, LAYER, HEAD = PIXELS * 3 * 8 * 9, PIXELS * 8 * 8 * 9, PIXELS * 8


def nudged(task: Any) -> Any:
    """A task whose numbers differ from the base's wherever they may, as after training."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return task.eval()


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return base_of(Chain())


def saved(path: Path, base: Any, **tasks: Any) -> Path:
    binarize.save(base, path)
    for name, task in tasks.items():
        binarize.save(task, path, task=name)
    return path


def test_bytes_and_operations_in_closed_form(base: Any, tmp_path: Path) -> None:
    shared = nudged(binarize.add_task(base, 7, shared=["stem", "one"]))
    own = nudged(binarize.add_task(base, 5))
    file = saved(tmp_path / "net.safetensors", base, shared=shared, own=own)

    made = binarize.report_tasks(file, Chain())

    each = STEM + 2 * LAYER / 64
    assert made.ops == {
        "base": each + 4 * HEAD,
        "own": each + 5 * HEAD,
        "shared": each + 7 * HEAD,
    }
    assert made.alone_ops == 3 * each + 16 * HEAD
    # One's own bias keeps the stem from being common; the shared one runs once, with what follows.
    assert made.one_pass_ops == made.alone_ops - STEM - LAYER / 64
    assert made.float_ops == 3 * (STEM + 2 * LAYER) + 16 * HEAD
    assert made.bytes == file.stat().st_size == made.base_bytes + sum(t.bytes for t in made.tasks)
    assert made.alone_bytes == made.base_bytes + sum(t.alone_bytes for t in made.tasks)
    assert made.inputs is None
    assert made.differing("own") is None


def test_equal_networks_run_once(base: Any, tmp_path: Path) -> None:
    twin = binarize.add_task(base, flips=0).eval()
    made = binarize.report_tasks(saved(tmp_path / "net.safetensors", base, twin=twin), Chain())

    assert made.one_pass_ops == made.ops["base"] == made.alone_ops / 2


def test_common_operations_are_those_of_one_pass(base: Any, tmp_path: Path) -> None:
    """The packed network of all tasks calls as many layers as the count says."""
    shared = nudged(binarize.add_task(base, shared=["stem", "one"]))
    file = saved(tmp_path / "net.safetensors", base, shared=shared)
    made = binarize.report_tasks(file, Chain())
    together: Any = binarize.load(file, Chain(), task=["base", "shared"], packed=True)
    together(X)

    assert calls(together) == 3
    assert made.one_pass_ops == made.alone_ops - STEM - LAYER / 64


def test_numbers_that_a_forward_reads_itself(tmp_path: Path) -> None:
    """A layer's weight that the forward passes to a function keeps two networks apart."""

    class Direct(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.conv2d(x, self.stem.weight, self.stem.bias, padding=1)
            out: Tensor = self.head(self.two(torch.relu(self.one(torch.relu(x)))))
            return out

    base = base_of(Direct())
    twin = binarize.add_task(base, flips=0).eval()
    other = copy.deepcopy(twin)
    with torch.no_grad():
        other.stem.bias.add_(1)  # type: ignore[union-attr,operator]
    path = saved(tmp_path / "net.safetensors", base, twin=twin)
    equal = binarize.report_tasks(path, Direct())
    assert equal.one_pass_ops == equal.ops["base"]
    changed = binarize.report_tasks(saved(path, base, other=other), Direct())
    assert changed.one_pass_ops == changed.alone_ops


def test_differing_inputs_are_counted(base: Any, tmp_path: Path) -> None:
    """One layer's threshold moves: its input's bits differ there, and what follows."""
    task: Any = binarize.add_task(base, flips=0)
    with torch.no_grad():
        for name, parameter in task.one.binarizer.named_parameters():
            if name == "beta" or parameter.dim() == 1:
                parameter.add_(0.3)
    task.eval()
    made = binarize.report_tasks(
        saved(tmp_path / "net.safetensors", base, moved=task), Chain(), batches=[X, X[:1]]
    )

    def bits(network: Any, name: str, x: Tensor) -> Tensor:
        seen = []
        layer = network.get_submodule(name)
        hook = layer.binarizer.register_forward_hook(lambda m, a, y: seen.append(y >= 0))
        with torch.no_grad():
            network(x)
        hook.remove()
        return seen[0]

    assert made.batches == 2
    assert made.layers == ("one", "two")
    for name in made.layers:
        pairs = [(bits(base, name, x), bits(task, name, x)) for x in (X, X[:1])]
        differing = sum(int((a != b).sum()) for a, b in pairs)
        values = sum(a.numel() for a, _ in pairs)
        assert made.inputs["moved"][name] == (differing, values)
        assert made.differing("moved", name) == differing / values
    assert 0 < made.differing("moved", "one") < 1
    total = made.inputs["moved"].values()
    assert made.differing("moved") == sum(d for d, _ in total) / sum(n for _, n in total)
    assert not any(m.binarizer._forward_hooks for m in task.modules() if isinstance(m, BinaryLayer))


def test_a_layer_that_runs_twice_and_one_with_another_shape() -> None:
    base = base_of(Net())
    twin = binarize.add_task(base).eval()
    other = binarize.add_task(base).eval()
    other.grouped.stride = (1, 1)  # type: ignore[union-attr]
    other.grouped.bypass = None  # type: ignore[union-attr]
    found, count = differing_inputs(base, {"twin": twin}, [X])
    assert count == 1
    assert found["twin"]["twice"] == (0, 2 * 2 * 16 * 16 * 24)
    assert all(differing == 0 for differing, _ in found["twin"].values())
    shapes, _ = differing_inputs(base, {"other": other}, [X])
    assert "up" not in shapes["other"]
    assert "grouped" in shapes["other"]


def test_it_is_written_and_drawn(base: Any, tmp_path: Path) -> None:
    odd = nudged(binarize.add_task(base, 7))
    file = saved(tmp_path / "net.safetensors", base, **{"$odd name$": odd})
    made = binarize.report_tasks(file, Chain(), batches=[X])
    written = made.save(tmp_path / "out")
    assert [path.name for path in written] == ["tasks.json", "tasks.png", "tasks.svg"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in written[2].read_text(encoding="utf-8")
    numbers = json.loads(written[0].read_text(encoding="utf-8"))
    assert numbers["ops"]["one_pass"] == made.one_pass_ops
    assert numbers["tasks"][0]["inputs"]["one"] == list(made.inputs["$odd name$"]["one"])
    text = str(made)
    assert "float networks, one per task" in text
    assert "$odd name$" in text
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        made.save(tmp_path / "file")


def test_a_file_without_tasks(base: Any, tmp_path: Path) -> None:
    made = binarize.report_tasks(
        saved(tmp_path / "net.safetensors", base), Chain(), batches=[X[:0], X]
    )
    assert made.one_pass_ops == made.alone_ops == made.ops["base"]
    assert made.tasks == ()
    assert len(str(made).splitlines()) == 2
    made.save(tmp_path / "out")


def test_unknown_operations_stay_unknown(tmp_path: Path) -> None:
    class Recurrent(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.two(torch.relu(self.one(torch.relu(self.stem(x)))))
            x = self.rows(x.mean(2).transpose(1, 2))[0].transpose(1, 2)[:, :, None]
            out: Tensor = self.head(x)
            return out

    base = base_of(Recurrent())
    twin = binarize.add_task(base).eval()
    made = binarize.report_tasks(saved(tmp_path / "net.safetensors", base, twin=twin), Recurrent())
    assert made.alone_ops is None
    assert made.one_pass_ops is None
    assert made.float_ops is None
    assert "unknown" in str(made)


def test_mistakes(base: Any, tmp_path: Path) -> None:
    file = saved(tmp_path / "net.safetensors", base)
    with pytest.raises(FileError, match="does not say how to build its network"):
        binarize.report_tasks(file)
    with pytest.raises(ModelError, match=r"batches=\[\(1, 5, 4, 4\)\]: the network's forward"):
        binarize.report_tasks(file, Chain(), batches=[torch.zeros(1, 5, 4, 4)])
