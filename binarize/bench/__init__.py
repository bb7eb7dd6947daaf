"""Benchmark the versions of a network on this machine: speed, size and memory."""

from binarize.bench.memory import peak_of_this_process
from binarize.bench.results import Measured, relative_speed
from binarize.bench.timing import time_interleaved
from binarize.bench.versions import VERSIONS, Subject, Version

__all__ = [
    "VERSIONS",
    "Measured",
    "Subject",
    "Version",
    "peak_of_this_process",
    "relative_speed",
    "time_interleaved",
]
