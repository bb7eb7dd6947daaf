"""Run an exported 1-bit network in ONNX Runtime, without PyTorch.

It needs numpy and onnxruntime only, and Pillow where image files are read.
"""

from __future__ import annotations

from binarize.runtime.library import library
from binarize.runtime.session import Session

__all__ = ["Session", "library"]
