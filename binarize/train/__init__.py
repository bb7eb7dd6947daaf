"""Train binary networks: tasks, distillation, the trainer, BatchNorm recalibration."""

from __future__ import annotations

from binarize.extras import naming_the_extra

with naming_the_extra():
    from binarize.train.agreement import Agreement
    from binarize.train.bop import Bop
    from binarize.train.distillation.features import FeatureDistillation
    from binarize.train.norms import recalibrate, unfold_norms
    from binarize.train.progress.callbacks import Callback, CSVLog, EarlyStopping
    from binarize.train.progress.displays import (
        LineProgress,
        Progress,
        RichProgress,
        SilentProgress,
    )
    from binarize.train.recipes import Recipe, load_recipe
    from binarize.train.tasks.classification import Classification, ClassificationDistillation
    from binarize.train.tasks.depth import Depth, DepthDistillation
    from binarize.train.tasks.edges import Edges, EdgesDistillation
    from binarize.train.tasks.multilabel import MultiLabel
    from binarize.train.tasks.multitask import MultiTask, MultiTaskDistillation
    from binarize.train.tasks.normals import Normals, NormalsDistillation
    from binarize.train.tasks.protocol import Distillation, Task
    from binarize.train.tasks.registry import open_task
    from binarize.train.tasks.segmentation import Segmentation, SegmentationDistillation
    from binarize.train.trainer import Trainer

__all__ = [
    "Agreement",
    "Bop",
    "CSVLog",
    "Callback",
    "Classification",
    "ClassificationDistillation",
    "Depth",
    "DepthDistillation",
    "Distillation",
    "EarlyStopping",
    "Edges",
    "EdgesDistillation",
    "FeatureDistillation",
    "LineProgress",
    "MultiLabel",
    "MultiTask",
    "MultiTaskDistillation",
    "Normals",
    "NormalsDistillation",
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
