"""Shapes from torch's C++ are those of its Python: compared in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.nn.functional as F
from torch import nn
from shapes import prefer_native_shapes

def told(y):
    return [(tuple(t.shape), t.dtype) for t in (y if isinstance(y, (tuple, list)) else [y])]

x = torch.zeros(2, 6, 9, 8, device="meta")
row, per_channel = torch.zeros(8, device="meta"), torch.zeros(6, device="meta")
half, whole = x.half(), torch.zeros(2, 6, 9, 8, dtype=torch.long, device="meta")
stats = torch.zeros(6, device="meta"), torch.ones(6, device="meta")
weight = torch.zeros(4, 6, 3, 3, device="meta")
CALLS = {
    "add": lambda: x + row, "promote": lambda: half + whole, "add float": lambda: whole + 0.5,
    "relu": lambda: F.relu(half), "where": lambda: torch.where(x > 0, x, row.half()),
    "where number": lambda: torch.where(x > 0, x, 0.0),
    "where whole": lambda: torch.where(row > 0, whole, half),
    "batch norm": lambda: F.batch_norm(x, *stats), "training": lambda: F.batch_norm(x, *stats,
    training=True), "layer norm": lambda: torch.native_layer_norm(x, [9, 8], None, None, 1e-5),
    "zeros like": lambda: torch.zeros_like(x, dtype=torch.bool), "mean": lambda: x.mean((2, 3)),
    "var mean": lambda: torch.var_mean(x, 1), "pool": lambda: F.max_pool2d(x, 2, 2, 1),
    "convolution": lambda: F.conv2d(x, weight, stride=2), "gelu": lambda: F.gelu(x),
    "cat": lambda: torch.cat([x, half], 1), "resize": lambda: F.interpolate(x, scale_factor=2.0),
    "copysign": lambda: torch.copysign(x, row), "softmax": lambda: x.softmax(1),
    "prelu": lambda: F.prelu(x, per_channel), "attention": lambda: F.scaled_dot_product_attention(
    x, x, x), "pad": lambda: F.pad(x, (1, 2, 1, 0), mode="reflect"), "sort": lambda: x.sort(1),
}

def gradients():
    torch.manual_seed(0)
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.PReLU(5),
            nn.LayerNorm([7, 6]), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))
    net(x).sum().backward()
    return [tuple(p.grad.shape) for p in net.parameters()]

before = {name: told(call()) for name, call in CALLS.items()}, gradients()
prefer_native_shapes()
after = {name: told(call()) for name, call in CALLS.items()}, gradients()
for name in before[0]:
    assert before[0][name] == after[0][name], (name, before[0][name], after[0][name])
assert before[1] == after[1]

import time
start = time.process_time()
for _ in range(100):
    torch.copysign(x, row)
print("seconds", time.process_time() - start)
"""


def test_native_shapes_are_the_same_and_cost_less() -> None:
    command = [sys.executable, "-c", SCRIPT, str(CHECKOUT / "tools")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # In Python a call takes some tenths of a millisecond.
    assert float(done.stdout.split()[-1]) < 100 * 1e-4
