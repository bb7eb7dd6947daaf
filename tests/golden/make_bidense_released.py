"""Copy the numbers of the released BiDense layers into a small compressed file.

Usage, from the top of the checkout::

    python tests/golden/make_bidense_released.py ../shared/reference/bidense_released.npz

The same input always gives the same bytes. What the keys mean is told in README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy

TARGET = Path(__file__).with_name("bidense_released.npz")


def wanted(key: str) -> bool:
    # The gradient fed in is the same in both modes; a batch counter is no number of the method.
    return not (key.endswith(("eval/gy", "num_batches_tracked")))


def main(source: str) -> None:
    with numpy.load(source) as numbers:
        for key in numbers.files:
            if key.endswith("eval/gy"):
                twin = numbers[key.replace("eval", "train")]
                if not numpy.array_equal(numbers[key], twin):
                    raise SystemExit(f"{key} differs from its twin of train mode; keep both")
        kept = {key: numbers[key] for key in sorted(numbers.files) if wanted(key)}
    numpy.savez_compressed(TARGET, **kept)
    print(f"{TARGET}: {len(kept)} arrays, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
