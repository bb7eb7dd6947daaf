"""Peak memory of a process."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

__all__ = ["peak_of_this_process"]


def peak_of_this_process() -> int | None:
    """Return the peak resident memory of this process in bytes; ``None`` if unknown."""
    try:
        # Not getrusage on Linux: there a process inherits its parent's peak.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    if found is not None:
        return int(found[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "win32":
        return _peak_on_windows()
    return None


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


def _peak_on_windows() -> int | None:
    kernel: Any = ctypes.CDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    found = _Counters(size=ctypes.sizeof(_Counters))
    known = kernel.K32GetProcessMemoryInfo(
        kernel.GetCurrentProcess(), ctypes.byref(found), found.size
    )
    return found.peak if known else None
