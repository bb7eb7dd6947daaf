"""The packed latency of each layer under each treatment, on this machine."""

from binarize.latency.measure import profile
from binarize.latency.numbers import LayerLatency, Profile

__all__ = ["LayerLatency", "Profile", "profile"]
