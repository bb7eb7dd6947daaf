"""What the system tells about the processor and its memory."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["free_memory", "processor_cores", "processor_features", "processor_name"]


def processor_name() -> str:
    """Return the processor's name as its maker writes it; where unknown, its architecture."""
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
    elif sys.platform == "win32":
        name = _registered("ProcessorNameString")
    else:
        name = _listed("model name")
    return name or platform.processor() or platform.machine()


def processor_features() -> set[str]:
    """Return what the processor can do, by the names that Linux uses; empty where unknown."""
    return set((_listed("flags") or _listed("Features")).split())


def processor_cores() -> int | None:
    """Return the cores that this process may use, possibly fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def free_memory() -> int | None:
    """Return the bytes of memory that are free; where unknown all of them, or None."""
    free = _listed("MemAvailable", "/proc/meminfo").split()
    if free:
        return 1024 * int(free[0])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _listed(name: str, file: str = "/proc/cpuinfo") -> str:
    """The first value of that name in one of Linux's lists."""
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    rows = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in rows if key.strip() == name), "")


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _registered(name: str) -> str:
    key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    try:
        registry: Any = importlib.import_module("winreg")
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, key) as folder:
            return str(registry.QueryValueEx(folder, name)[0]).strip()
    except (ImportError, OSError):
        return ""
