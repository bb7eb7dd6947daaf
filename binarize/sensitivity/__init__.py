"""Which layers hurt: binarize one at a time, and measure what that does to the output."""

from binarize.sensitivity.measure import Study, sensitivity

__all__ = ["Study", "sensitivity"]
