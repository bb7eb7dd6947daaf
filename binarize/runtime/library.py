"""Locate the operator library for ONNX Runtime."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from binarize.errors import FileError

__all__ = ["library"]

# On Linux and macOS, and on Windows: CMakeLists.txt.
_NAMES = ("libbinarize_ort.so", "binarize_ort.dll")


def library() -> Path:
    """Return the operator library's path, for ``SessionOptions.register_custom_ops_library``.

    The environment variable ``BINARIZE_OPERATORS`` overrides it, for example with a sanitizer
    build.

    Raises:
        FileError: The package was installed without it.
    """
    if os.environ.get("BINARIZE_OPERATORS"):
        return Path(os.environ["BINARIZE_OPERATORS"])
    # An editable install keeps the library separate from the sources.
    folders = [Path(path) for path in sys.modules[__package__ or "binarize.runtime"].__path__]
    found = [folder / name for folder in folders for name in _NAMES if (folder / name).is_file()]
    if not found:
        raise FileError(
            "library",
            _NAMES[0],
            "this installation has no operator library: no C++ compiler worked when it was built",
            "install a C++ compiler and CMake, then install the package again",
        )
    return found[0]
