"""Find the OpenMP runtime that torch has loaded, so that the kernels share its threads."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["runner", "threads"]

_RUNTIMES = ("libgomp", "libiomp5", "libomp")
_state = {"forked": False}


@lru_cache(maxsize=1)
def runner() -> tuple[int, str]:
    """Return the address of ``GOMP_parallel`` and its library.

    Returns:
        (0, reason) if there is none; the kernels then run in the calling thread.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, "this system does not list loaded libraries"
    paths = {line.split(None, 5)[5] for line in lines if line.count("/") > 0}
    loaded = sorted(p for p in paths if os.path.basename(p).startswith(_RUNTIMES))
    # torch's bundled copy takes precedence over other packages'.
    home = str(Path(torch.__file__).parent.parent)
    for path in sorted(loaded, key=lambda p: ("/torch" not in p, not p.startswith(home))):
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0, path
    return 0, "torch has loaded no OpenMP runtime with GOMP_parallel"


def threads() -> int:
    """Return the number of threads for a call: torch's, but one in a forked child.

    OpenMP's threads do not survive a fork; waiting for them would hang.
    """
    return 1 if _state["forked"] else torch.get_num_threads()


def _after_fork() -> None:
    _state["forked"] = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
