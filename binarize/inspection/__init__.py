"""What binarization leaves of the maps of a 1-bit network, measured on images."""

from binarize.inspection.measure import inspect
from binarize.inspection.numbers import FeatureMap, Inspection, LayerInspection

__all__ = ["FeatureMap", "Inspection", "LayerInspection", "inspect"]
