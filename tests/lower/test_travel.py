"""Packed networks are copied, pickled, compiled and exported."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import binarize
from binarize.nn import BiConv2d, BiLinear


class Plain(nn.Module):
    """Of an importable class, so that it pickles."""

    def __init__(self) -> None:
        super().__init__()
        self.down = BiConv2d(3, 8, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.rows = BiLinear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.down(x)).permute(0, 2, 3, 1)
        return self.rows(y) + 1


class FloatPlain(Plain):
    """The same in plain torch, which not every version of it exports for all sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.rows = nn.Linear(8, 6)


def exports(model: nn.Module, x: torch.Tensor, sizes: dict[int, Any]) -> bool:
    try:
        torch.export.export(model, (x,), dynamic_shapes=(sizes,), strict=False)
    except torch._dynamo.exc.UserError:
        return False
    return True


def test_copy_and_pickle(shop: SimpleNamespace) -> None:
    network = shop.student(shop.UNet(), example_inputs=torch.zeros(1, 3, 8, 8))
    packed = binarize.pack(network)
    x = torch.randn(1, 3, 8, 8)
    wanted = packed(x)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(packed),
        pickle.loads(pickle.dumps(packed)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(twin(x), wanted)
        assert twin.binarize_plan == packed.binarize_plan
        assert not twin.training
    assert file.getbuffer().nbytes < 60_000
    fresh = binarize.pack(shop.student(shop.UNet()))
    fresh(x)
    fresh.load_state_dict(packed.state_dict())
    assert torch.allclose(fresh(x), wanted, atol=1e-5)


def test_compiles_whole(shop: SimpleNamespace) -> None:
    packed = binarize.pack(shop.train_like(Plain()))
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(1, 3, 8, 8), (2, 3, 7, 9)]:
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), packed(x))


def test_exported_program_in_a_fresh_process(shop: SimpleNamespace, tmp_path: Path) -> None:
    packed = binarize.pack(shop.train_like(Plain()))
    x = torch.randn(2, 3, 9, 8)
    sizes = {
        0: torch.export.Dim("n"),
        2: torch.export.Dim("h", min=4),
        3: torch.export.Dim("w", min=4),
    }
    shapes = (sizes,) if exports(FloatPlain().eval(), x, sizes) else None
    program = torch.export.export(packed, (x,), dynamic_shapes=shapes, strict=False)
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("binarize.unit.default") == 2
    torch.export.save(program, tmp_path / "packed.pt2")
    if shapes:
        x = torch.randn(3, 3, 7, 12)
    torch.save((x, packed(x)), tmp_path / "example.pt")
    code = (
        "import torch, binarize.kernels; "
        "program = torch.export.load('packed.pt2').module(); "
        "x, wanted = torch.load('example.pt'); "
        "torch.testing.assert_close(program(x), wanted); print('alike')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "alike\n", done.stderr
