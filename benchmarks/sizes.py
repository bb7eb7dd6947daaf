"""What a new input size costs a packed network: a folder of images that all differ in size.

    python benchmarks/sizes.py --sizes 40

Prints, in milliseconds of one thread's processor time: a usual call, the first calls of the sizes
that get a program each, the call that records the general program, and the median first and second
call of every later size. The float network runs the same sizes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

import binarize


def milliseconds(call: Callable[[Tensor], object], image: Tensor) -> float:
    start = time.thread_time()
    call(image)
    return 1000 * (time.thread_time() - start)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--policy", default="bidense")
    parser.add_argument("--sizes", type=int, default=40, help="how many sizes (default 40)")
    parser.add_argument("--pixels", type=int, default=160, help="mean side of an image")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = smp.Unet(args.encoder, encoder_weights=None, classes=11).eval()
    example = torch.randn(1, 3, args.pixels, args.pixels)
    student = binarize.prepare_student(network, args.policy, [torch.randn(2, 3, 64, 64)])
    packed = binarize.pack(student.eval())
    draw = random.Random(0)
    low, high = args.pixels * 3 // 4, args.pixels * 5 // 4
    sizes = {(draw.randint(low, high), draw.randint(low, high)) for _ in range(args.sizes)}
    milliseconds(packed, example)
    usual = statistics.median(milliseconds(packed, example) for _ in range(9))
    print(f"usual call at {args.pixels}x{args.pixels}: {usual:.1f}")
    first, later, floating = [], [], []
    for height, width in sizes:
        image = torch.randn(1, 3, height, width)
        first.append(milliseconds(packed, image))
        later.append(statistics.median(milliseconds(packed, image) for _ in range(3)))
        floating.append(milliseconds(network, image))
    print("first calls:", ", ".join(f"{each:.0f}" for each in first[:4]))
    rest = [a / b for a, b in zip(first[4:], later[4:], strict=True)]
    print(f"later sizes: first call {statistics.median(first[4:]):.1f}, "
          f"usual {statistics.median(later[4:]):.1f}, ratio {statistics.median(rest):.2f} "
          f"(at most {max(rest):.2f}), float {statistics.median(floating[4:]):.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
