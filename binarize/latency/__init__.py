"""What each layer costs packed, under each treatment, on the machine at hand."""

from binarize.latency.measure import profile
from binarize.latency.numbers import LayerLatency, Profile

__all__ = ["LayerLatency", "Profile", "profile"]
