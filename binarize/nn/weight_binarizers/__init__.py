"""Weight binarizers, one per file; ``binarize.nn.parts`` names them."""

from binarize.nn.weight_binarizers.adaptive_set import AdaptiveSetWeight
from binarize.nn.weight_binarizers.balanced import BalancedSign
from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.nn.weight_binarizers.binary_bases import BinaryBases
from binarize.nn.weight_binarizers.cells import BinaryCells
from binarize.nn.weight_binarizers.channel_centred import ChannelCentredSign
from binarize.nn.weight_binarizers.flipped_sign import FlippedSign
from binarize.nn.weight_binarizers.layer_centred import LayerCentredSign
from binarize.nn.weight_binarizers.learned_levels import LearnedLevelsWeight
from binarize.nn.weight_binarizers.scaled_sign import ScaledSign
from binarize.nn.weight_binarizers.sign import SignWeight
from binarize.nn.weight_binarizers.tensor_sign import TensorSign

__all__ = [
    "AdaptiveSetWeight",
    "BalancedSign",
    "BinaryBases",
    "BinaryCells",
    "ChannelCentredSign",
    "FlippedSign",
    "LayerCentredSign",
    "LearnedLevelsWeight",
    "ScaledSign",
    "SignWeight",
    "TensorSign",
    "WeightBinarizer",
]
