"""Measure how much information a 1-bit network's feature maps keep after binarization."""

from binarize.inspection.measure import inspect
from binarize.inspection.numbers import FeatureMap, Inspection, LayerInspection

__all__ = ["FeatureMap", "Inspection", "LayerInspection", "inspect"]
