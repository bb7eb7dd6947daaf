"""The 1-bit kernels: one operator, its weight layout, a native and a reference implementation."""

from binarize.kernels.call import UnitCall
from binarize.kernels.geometry import output_size
from binarize.kernels.layout import Layout, pack_weight, unpack_weight
from binarize.kernels.ops import run_unit, unit

__all__ = [
    "Layout",
    "UnitCall",
    "output_size",
    "pack_weight",
    "run_unit",
    "unit",
    "unpack_weight",
]
