"""The parts of a binary layer, by their names in rule files."""

from __future__ import annotations

from typing import Any

from binarize.nn import activation_binarizers as activations
from binarize.nn import weight_binarizers as weights
from binarize.nn.activations import HardTanh, Maxout, NoActivation, ShiftedPReLU

__all__ = ["ACTIVATIONS", "BINARIZERS", "BYPASSES", "NORMS", "TRANSPOSED_SCALES", "WEIGHTS"]

# Called with (channels, channel_dim=..., **options).
BINARIZERS: dict[str, Any] = {
    "ablated-dab": activations.AblatedBinarizer,
    "adaptive-set": activations.AdaptiveSet,
    "annealed-sign": activations.AnnealedSign,
    "dab": activations.DistributionAdaptiveBinarizer,
    "elastic-sign": activations.ElasticSign,
    "learned-levels": activations.LearnedLevels,
    "magnitude-sign": activations.MagnitudeSign,
    "redistributed-sign": activations.RedistributedSign,
    "shifted-sign": activations.ShiftedSign,
    "sign": activations.Sign,
}

# Called with (dim, groups, **options).
WEIGHTS: dict[str, Any] = {
    "adaptive-set": weights.AdaptiveSetWeight,
    "balanced-sign": weights.BalancedSign,
    "binary-bases": weights.BinaryBases,
    "binary-cells": weights.BinaryCells,
    "channel-centred-sign": weights.ChannelCentredSign,
    "layer-centred-sign": weights.LayerCentredSign,
    "learned-levels": weights.LearnedLevelsWeight,
    "scaled-sign": weights.ScaledSign,
    "sign": weights.SignWeight,
    "tensor-sign": weights.TensorSign,
}

# Called with (channels, channel_dim=..., **options).
ACTIVATIONS: dict[str, Any] = {
    "hardtanh": HardTanh,
    "identity": NoActivation,
    "maxout": Maxout,
    "shifted-prelu": ShiftedPReLU,
}

BYPASSES = ("contiguous", "interleaved", "identity")
NORMS = ("batch",)
TRANSPOSED_SCALES = ("output-channel", "input-channel")
