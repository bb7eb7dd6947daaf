"""Write files in the container formats of today, with the outputs of the networks they hold.

Usage, from the top of the checkout, **before** a format changes (the release that changes it has
to read what this one wrote; a new name keeps the old files)::

    python tests/golden/make_files.py file_format_1 [POLICY]

It writes ``<name>.safetensors`` (a 1-bit network), ``<name>_programs.safetensors`` (its packed
programs) and ``<name>.npz`` (an image, and what both answer). ``network`` builds the float one.
The policy is bidense; deploy has 8-bit layers, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import torch
from torch import nn

import binarize

FOLDER = Path(__file__).parent


def network() -> nn.Module:
    """The float network that was converted; its weights do not matter."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 6, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 3, 1),
    )


def main(name: str, policy: str = "bidense") -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 10, 14)
    student = binarize.convert(network(), policy, example_inputs=image)
    student(image)  # the norms have seen something
    student.eval()
    packed = binarize.pack(student, example_inputs=image)
    binarize.save(student, FOLDER / f"{name}.safetensors")
    binarize.save(packed, FOLDER / f"{name}_programs.safetensors")
    with torch.no_grad():
        numpy.savez_compressed(
            FOLDER / f"{name}.npz",
            image=image.numpy(),
            simulated=student(image).numpy(),
            packed=packed(image).numpy(),
        )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
