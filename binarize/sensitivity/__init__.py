"""Find the sensitive layers: binarize one at a time and measure the effect on the output."""

from binarize.sensitivity.measure import Study, sensitivity

__all__ = ["Study", "sensitivity"]
