"""From a trained 1-bit network to one that runs on XNOR-popcount kernels."""

from binarize.lower.network import PackedNetwork
from binarize.lower.onnx import export_onnx
from binarize.lower.pack import pack
from binarize.lower.program import PackedPrograms

__all__ = ["PackedNetwork", "PackedPrograms", "export_onnx", "pack"]
