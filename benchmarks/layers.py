"""Find where a packed network diverges from its float simulation, layer by layer.

    python benchmarks/layers.py paper

For every binary layer of a network of ``networks.py``, in execution order: one minus the cosine
between the packed layer's output and the simulation's, first for the same input, then each in its
own network. Last come the cosines of the networks' outputs, and of the simulation against its
double-precision version.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from networks import NETWORKS, Case
from torch import Tensor

from binarize.nn import BinaryLayer


def off(a: Tensor, b: Tensor) -> float:
    return 1 - F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=list(NETWORKS))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        case = Case(given.network, Path(folder))
        student, packed = case.subject.student, case.subject.packed.network
        twins = dict(packed.named_modules())
        same: list[float] = []
        outputs: dict[str, list[Tensor]] = defaultdict(list)
        rows: list[tuple[float, float, str]] = []

        def compare(name: str) -> Any:
            def hook(module: Any, args: Any, output: Tensor) -> None:
                same.append(off(twins[name](*args), output))
                outputs[name].append(output)

            return hook

        def note(name: str) -> Any:
            def hook(module: Any, args: Any, output: Tensor) -> None:
                rows.append((same[len(rows)], off(output, outputs[name].pop(0)), name))

            return hook

        names = [n for n, m in student.named_modules() if isinstance(m, BinaryLayer)]
        modules = dict(student.named_modules())
        hooks = [modules[name].register_forward_hook(compare(name)) for name in names]
        wanted = student(case.image)
        for hook in hooks:
            hook.remove()
        for name in names:
            twins[name].register_forward_hook(note(name))
        found = packed(case.image)
        print(f"{'same input':>12} {'own input':>12}")
        for one, two, name in rows:
            print(f"{one:12.1e} {two:12.1e}  {name}")
        double = copy.deepcopy(student).double()(case.image.double())
        print(f"output: {off(found, wanted):.3f}; simulation against double precision: ", end="")
        print(f"{off(wanted, double):.3f}")


if __name__ == "__main__":
    main()
