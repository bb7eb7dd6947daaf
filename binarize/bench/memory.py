"""Peak memory of a process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

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
    return None
