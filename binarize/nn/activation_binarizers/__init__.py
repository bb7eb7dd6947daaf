"""Activation binarizers, one per file; ``binarize.nn.parts`` names them."""

from binarize.nn.activation_binarizers.ablated import AblatedBinarizer
from binarize.nn.activation_binarizers.adaptive_set import AdaptiveSet
from binarize.nn.activation_binarizers.annealed_sign import AnnealedSign
from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.activation_binarizers.distribution_adaptive import (
    DistributionAdaptiveBinarizer,
)
from binarize.nn.activation_binarizers.elastic_sign import ElasticSign
from binarize.nn.activation_binarizers.learned_levels import LearnedLevels
from binarize.nn.activation_binarizers.magnitude_sign import MagnitudeSign
from binarize.nn.activation_binarizers.redistributed_sign import RedistributedSign
from binarize.nn.activation_binarizers.shifted_sign import ShiftedSign
from binarize.nn.activation_binarizers.sign import Sign

__all__ = [
    "AblatedBinarizer",
    "ActivationBinarizer",
    "AdaptiveSet",
    "AnnealedSign",
    "DistributionAdaptiveBinarizer",
    "ElasticSign",
    "LearnedLevels",
    "MagnitudeSign",
    "RedistributedSign",
    "ShiftedSign",
    "Sign",
]
