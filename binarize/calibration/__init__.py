"""Fit a converted network to the float network it came from, without training."""

from binarize.calibration.calibrate import calibrate

__all__ = ["calibrate"]
