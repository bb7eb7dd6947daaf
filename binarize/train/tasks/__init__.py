"""What can be learnt: loss, metrics, decoding and distillation of each kind of prediction."""

from binarize.train.tasks.classification import Classification, ClassificationDistillation
from binarize.train.tasks.depth import Depth, DepthDistillation
from binarize.train.tasks.edges import Edges, EdgesDistillation
from binarize.train.tasks.multilabel import MultiLabel
from binarize.train.tasks.multitask import MultiTask, MultiTaskDistillation
from binarize.train.tasks.normals import Normals, NormalsDistillation
from binarize.train.tasks.protocol import Distillation, Task
from binarize.train.tasks.registry import open_task, task_names
from binarize.train.tasks.segmentation import Segmentation, SegmentationDistillation

__all__ = [
    "Classification",
    "ClassificationDistillation",
    "Depth",
    "DepthDistillation",
    "Distillation",
    "Edges",
    "EdgesDistillation",
    "MultiLabel",
    "MultiTask",
    "MultiTaskDistillation",
    "Normals",
    "NormalsDistillation",
    "Segmentation",
    "SegmentationDistillation",
    "Task",
    "open_task",
    "task_names",
]
