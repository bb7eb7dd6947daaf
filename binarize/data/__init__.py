"""Data sets of images with dense targets, and procedural scenes."""

from __future__ import annotations

from binarize.extras import naming_the_extra

with naming_the_extra():
    from binarize.data.augment import Augment
    from binarize.data.balance import balanced_weights
    from binarize.data.camvid import CamVid
    from binarize.data.dense import IGNORE, IMAGENET, DenseDataset
    from binarize.data.edges import label_edges
    from binarize.data.image_depth_folder import ImageDepthFolder
    from binarize.data.image_mask_folder import ImageMaskFolder
    from binarize.data.normals import normals_from_depth
    from binarize.data.nyuv2 import NYUv2
    from binarize.data.registry import dataset_names, open_dataset
    from binarize.data.scenes import Scenes
    from binarize.data.unlabelled import PartlyLabelled, UnlabelledFolder

__all__ = [
    "IGNORE",
    "IMAGENET",
    "Augment",
    "CamVid",
    "DenseDataset",
    "ImageDepthFolder",
    "ImageMaskFolder",
    "NYUv2",
    "PartlyLabelled",
    "Scenes",
    "UnlabelledFolder",
    "balanced_weights",
    "dataset_names",
    "label_edges",
    "normals_from_depth",
    "open_dataset",
]
