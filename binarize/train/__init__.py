"""Train binary networks: tasks, distillation, the trainer, BatchNorm recalibration."""

from __future__ import annotations

from binarize.extras import naming_the_extra

with naming_the_extra():
    from binarize.train.classification import Classification, ClassificationDistillation
    from binarize.train.depth import Depth, DepthDistillation
    from binarize.train.features import FeatureDistillation
    from binarize.train.multilabel import MultiLabel
    from binarize.train.progress import (
        Callback,
        CSVLog,
        EarlyStopping,
        LineProgress,
        Progress,
        RichProgress,
        SilentProgress,
    )
    from binarize.train.recalibrate import recalibrate, unfold_norms
    from binarize.train.recipes import Recipe, load_recipe
    from binarize.train.segmentation import Segmentation, SegmentationDistillation
    from binarize.train.tasks import Distillation, Task, open_task
    from binarize.train.trainer import Trainer

__all__ = [
    "CSVLog",
    "Callback",
    "Classification",
    "ClassificationDistillation",
    "Depth",
    "DepthDistillation",
    "Distillation",
    "EarlyStopping",
    "FeatureDistillation",
    "LineProgress",
    "MultiLabel",
    "Progress",
    "Recipe",
    "RichProgress",
    "Segmentation",
    "SegmentationDistillation",
    "SilentProgress",
    "Task",
    "Trainer",
    "load_recipe",
    "open_task",
    "recalibrate",
    "unfold_norms",
]
