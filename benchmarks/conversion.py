"""Time and memory of a conversion against the size of the network.

Prints a table: layers, weights, processor time of :func:`binarize.convert`, and peak memory besides
the network itself and the returned copy, relative to the network.

    python benchmarks/conversion.py                        # chains of residual blocks, then timm's
    python benchmarks/conversion.py --names resnet50 --size 224

Each row is measured in its own process; memory is the resident set, sampled every 2 ms.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

CHAINS = ["chain:25", "chain:50", "chain:100", "chain:200", "chain:400"]
NAMES = ["resnet18", "resnet152", "convnext_base", "tf_efficientnet_l2", "regnety_2560"]
MIB = 2**20


def chain(blocks: int) -> Any:
    from torch import Tensor, nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(16)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))

    stem, head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1)
    return nn.Sequential(stem, *(Block() for _ in range(blocks)), head)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def bytes_of(model: Any) -> int:
    tensors = {id(x): x for x in (*model.parameters(), *model.buffers())}
    return sum(x.numel() * x.element_size() for x in tensors.values())


def measure(name: str, size: int, pipe: Any) -> None:
    import timm
    import torch
    from torch import nn

    import binarize

    torch.set_num_threads(1)
    kind, _, count = name.partition(":")
    small = chain(2)
    binarize.convert(small, example_inputs=torch.zeros(1, 3, 32, 32))  # triggers late imports
    if kind == "chain":
        model = chain(int(count))
    else:
        # Values do not matter, and initialising a billion weights is slow.
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        model = model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(1)
    image = torch.zeros(1, 3, size, size)
    top, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            top[0] = max(top[0], resident())
            time.sleep(0.002)

    start = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu, wall = time.process_time(), time.perf_counter()
    student = binarize.convert(model, example_inputs=image)
    row = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    done.set()
    watcher.join()
    own, copied = bytes_of(model), bytes_of(student)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    pipe.send(
        {
            **row,
            "network": name,
            "layers": len(layers),
            "mib": own / MIB,
            "beyond": max(top[0] - start - copied, 0) / MIB,
            "total": (own + max(top[0] - start - copied, 0)) / own,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=[*CHAINS, *NAMES])
    parser.add_argument("--size", type=int, default=224, help="side of the example image")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    print(
        "| network | layers | float MiB | cpu s | wall s | besides the copy, MiB | of the network |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in options.names:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=measure, args=(name, options.size, theirs))
        worker.start()
        theirs.close()
        row = ours.recv()
        worker.join()
        rows.append(row)
        print(
            f"| {name} | {row['layers']} | {row['mib']:.0f} | {row['cpu']:.1f} | {row['wall']:.1f} "
            f"| {row['beyond']:.0f} | {row['total']:.2f} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
