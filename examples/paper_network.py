"""Binarize the network of the BiDense paper.

It is an ordinary float network (see ``binarize/cli/paper_network.py``); one call converts it to
what the authors wrote by hand.

    python examples/paper_network.py
    python examples/paper_network.py --task depth --size 416 544
    python examples/paper_network.py --policy reactnet

``binarize table`` counts it by every method of the paper's tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import binarize
from binarize.cli.paper_network import DenseNetwork


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the network and print its report."""
    parser = argparse.ArgumentParser(description="Convert the BiDense paper's network.")
    parser.add_argument("--task", choices=("segmentation", "depth"), default="segmentation")
    parser.add_argument("--classes", type=int, default=151, help="classes of the segmentation")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 480), metavar=("H", "W"))
    parser.add_argument("--policy", default="bidense-released")
    given = parser.parse_args(arguments)
    network = DenseNetwork(0 if given.task == "depth" else given.classes).eval()
    example = torch.zeros(1, 3, *given.size)
    student = binarize.convert(network, given.policy, example_inputs=example)
    print(binarize.report(student, example))


if __name__ == "__main__":
    main()
