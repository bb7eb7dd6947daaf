"""Binary layers and the parts they are made of."""

from binarize.nn.activation_binarizers import DistributionAdaptiveBinarizer
from binarize.nn.activations import ShiftedPReLU
from binarize.nn.base import BinaryLayer
from binarize.nn.bypass import ChannelAdaptiveBypass, ShortcutBypass
from binarize.nn.conv import (
    BiConv1d,
    BiConv2d,
    BiConv3d,
    BiConvTranspose1d,
    BiConvTranspose2d,
    BiConvTranspose3d,
)
from binarize.nn.int8 import (
    Int8Conv1d,
    Int8Conv2d,
    Int8Conv3d,
    Int8ConvTranspose1d,
    Int8ConvTranspose2d,
    Int8ConvTranspose3d,
    Int8Layer,
    Int8Linear,
)
from binarize.nn.linear import BiLinear
from binarize.nn.spec import UnitSpec
from binarize.nn.threshold import ThresholdForm
from binarize.nn.weight_binarizers import ScaledSign

__all__ = [
    "BiConv1d",
    "BiConv2d",
    "BiConv3d",
    "BiConvTranspose1d",
    "BiConvTranspose2d",
    "BiConvTranspose3d",
    "BiLinear",
    "BinaryLayer",
    "ChannelAdaptiveBypass",
    "DistributionAdaptiveBinarizer",
    "Int8Conv1d",
    "Int8Conv2d",
    "Int8Conv3d",
    "Int8ConvTranspose1d",
    "Int8ConvTranspose2d",
    "Int8ConvTranspose3d",
    "Int8Layer",
    "Int8Linear",
    "ScaledSign",
    "ShiftedPReLU",
    "ShortcutBypass",
    "ThresholdForm",
    "UnitSpec",
]
