"""Distillation from feature maps, and what all distillation losses share."""

from binarize.train.distillation.features import FeatureDistillation, FeatureTerm
from binarize.train.distillation.schedule import SCHEDULES, anneal

__all__ = ["SCHEDULES", "FeatureDistillation", "FeatureTerm", "anneal"]
