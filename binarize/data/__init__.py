"""Data sets of images with dense targets, and procedural scenes."""

from __future__ import annotations

from binarize.extras import naming_the_extra

with naming_the_extra():
    from binarize.data.augment import Augment
    from binarize.data.balance import balanced_weights
    from binarize.data.collate import PadCollate
    from binarize.data.dense import IGNORE, IMAGENET, DenseDataset
    from binarize.data.edges import label_edges
    from binarize.data.image_depth_folder import ImageDepthFolder
    from binarize.data.image_mask_folder import ImageMaskFolder
    from binarize.data.normals import normals_from_depth
    from binarize.data.registry import dataset_names, dataset_splits, open_dataset
    from binarize.data.sets.ade20k import ADE20K
    from binarize.data.sets.camvid import CamVid
    from binarize.data.sets.cityscapes import Cityscapes
    from binarize.data.sets.kitti import KITTI
    from binarize.data.sets.nyuv2 import NYUv2
    from binarize.data.sets.nyuv2_lists import NYUv2Lists
    from binarize.data.sets.scenes import Scenes
    from binarize.data.sets.voc2012 import VOC2012
    from binarize.data.streams import StreamDataset
    from binarize.data.unlabelled import PartlyLabelled, UnlabelledFolder

__all__ = [
    "ADE20K",
    "IGNORE",
    "IMAGENET",
    "KITTI",
    "VOC2012",
    "Augment",
    "CamVid",
    "Cityscapes",
    "DenseDataset",
    "ImageDepthFolder",
    "ImageMaskFolder",
    "NYUv2",
    "NYUv2Lists",
    "PadCollate",
    "PartlyLabelled",
    "Scenes",
    "StreamDataset",
    "UnlabelledFolder",
    "balanced_weights",
    "dataset_names",
    "dataset_splits",
    "label_edges",
    "normals_from_depth",
    "open_dataset",
]
