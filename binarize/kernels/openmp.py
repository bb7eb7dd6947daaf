"""Find the OpenMP runtime that torch has loaded, so that the kernels share its threads."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["runner", "threads"]

_RUNTIMES = ("libgomp", "libiomp5", "libomp")
_ON_WINDOWS = "libiomp5md.dll"  # known to binarize_parallel in api.cpp, too
_state = {"forked": False}


@lru_cache(maxsize=1)
def runner(library: Any) -> tuple[int, str]:
    """Return the address of a function that runs another on several threads, and whose they are.

    That is ``GOMP_parallel`` of the OpenMP runtime. On Windows, runtimes do not have it, and the
    library of the kernels has one that uses theirs.

    Args:
        library: The library of the kernels; None if there is none.

    Returns:
        (0, reason) if there is none; the kernels then run in the calling thread.
    """
    if sys.platform == "win32":
        if library is None or not _has_loaded(_ON_WINDOWS):
            return 0, f"torch has not loaded {_ON_WINDOWS}"
        return _address(library.binarize_parallel), _ON_WINDOWS
    loaded = sorted(p for p in _loaded() if os.path.basename(p).startswith(_RUNTIMES))
    # torch's bundled copy takes precedence over other packages'.
    home = str(Path(torch.__file__).parent.parent)
    for path in sorted(loaded, key=lambda p: ("/torch" not in p, not p.startswith(home))):
        try:
            return _address(ctypes.CDLL(path).GOMP_parallel), path
        except (OSError, AttributeError):
            continue
    return 0, "torch has loaded no OpenMP runtime with GOMP_parallel"


def threads() -> int:
    """Return the number of threads for a call: torch's, but one in a forked child.

    OpenMP's threads do not survive a fork; waiting for them would hang.
    """
    return 1 if _state["forked"] else torch.get_num_threads()


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _loaded() -> Iterable[str]:
    """Return the files of the libraries in this process."""
    if sys.platform == "darwin":
        system = ctypes.CDLL(None)
        system._dyld_get_image_name.restype = ctypes.c_char_p
        names = (system._dyld_get_image_name(i) for i in range(system._dyld_image_count()))
        # None: unloaded in the meantime.
        return {os.fsdecode(name) for name in names if name is not None}
    try:
        lines = os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines()
    except OSError:
        return ()
    return {line.split(None, 5)[5] for line in lines if line.count("/") > 0}


def _has_loaded(name: str) -> bool:
    kernel: Any = ctypes.CDLL("kernel32")
    kernel.GetModuleHandleW.restype = ctypes.c_void_p
    kernel.GetModuleHandleW.argtypes = [ctypes.c_wchar_p]
    return bool(kernel.GetModuleHandleW(name))


def _after_fork() -> None:
    _state["forked"] = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
