"""LQ-Net's activations: a few bits with learned values."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.levels import fitted_basis, level_table, middle_points, nearest_level
from binarize.ops.straight_through import clip, straight_through

__all__ = ["MAX_BITS", "LearnedLevels", "check_bits"]

MAX_BITS = 8
# The range of the initial levels: 3/4 of a normal distribution lie below it.
_QUARTILE = 0.6745


class LearnedLevels(ActivationBinarizer):
    r"""The nearest of the levels :math:`v^\top e`, :math:`e \in \{-1, 1\}^b`, one basis per layer.

    Zhang et al., LQ-Nets, Eqs. 2-7. The basis v is not a parameter: in training mode, it is a
    moving average (0.9) of least-squares fits to the feature map. Surrogate gradient: 1 up to the
    outermost levels (inclusive), else 0.

    Args:
        channels: C, at least 1.
        bits: b, 1 to 8.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Initial values: v_i = 2^i * 2 * 0.6745 / (2^b - 1). State: the buffer ``basis``. Counted: b
    operations of one bit for each bit of the weight.

    With more than one bit, a packed layer's sum is made of one count for each pair of bits.

    Deviations: the released code uses codes {0, 1} for activations, always after a ReLU; here
    they are signed, as in the paper's Eq. 2. Halfway between two levels, the upper one is taken.

    Raises:
        BinarizeError: ``channels`` is below 1 or ``bits`` is not 1 to 8.
    """

    basis: Tensor

    def __init__(self, channels: int, *, bits: int = 1, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        check_bits(bits)
        self.bits = bits
        self.register_buffer("basis", torch.empty(bits))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        step = 2 * _QUARTILE / (2**self.bits - 1)
        self.basis.copy_(step * 2.0 ** torch.arange(self.bits))

    @property
    def popcount_exact(self) -> bool:
        """Only with one bit; more bits take several counts."""
        return self.bits == 1

    def threshold_form(self) -> ThresholdForm | None:
        if self.bits != 1:
            return None
        return ThresholdForm(b=torch.zeros(self.channels), factor=self.basis)

    def threshold_forms(self) -> tuple[ThresholdForm, ...]:
        """Return one form per bit, whose sign changes between two levels where the bit does."""
        if self.bits == 1:
            return super().threshold_forms()
        levels, codes = level_table(self.basis[None])
        middles = middle_points(levels)[0]
        forms = []
        for bit in range(self.bits):
            code = codes[0, :, bit]
            first, *_ = turns = middles[code[1:] != code[:-1]]
            forms.append(
                ThresholdForm(
                    b=first.expand(self.channels),
                    # Above all thresholds, the sign is +1.
                    factor=self.basis[bit] * code[-1],
                    more=turns[1:] if len(turns) > 1 else None,
                )
            )
        return tuple(forms)

    def level_index(self, values: Tensor) -> Tensor:
        """Return the index of the level, 0 to ``2 ** bits - 1``."""
        levels, _ = level_table(self.basis[None])
        flat = values.detach().reshape(1, -1).to(levels.dtype)
        return nearest_level(flat, levels).view(values.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a feature map; same shape and dtype."""
        basis = self.basis.clone()[None]  # the fit below changes the buffer
        levels, codes = level_table(basis)
        with torch.no_grad():
            values = x.detach().reshape(1, -1).to(levels.dtype)
            chosen = nearest_level(values, levels)
            if self.training and x.numel():
                self.basis.copy_(fitted_basis(values, chosen, codes, basis)[0])
            hard = levels[0][chosen].view(x.shape).to(x.dtype)
        edge = levels[0].abs().max().to(x.dtype)
        return straight_through(hard, clip(x, -edge, edge))

    def extra_repr(self) -> str:
        return f"{self.channels}, bits={self.bits}"


def check_bits(bits: int) -> None:
    """Reject numbers of bits for which there is no table of levels."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= MAX_BITS:
        raise BinarizeError(
            "bits", bits, f"must be a whole number from 1 to {MAX_BITS}", "give for example 3"
        )
