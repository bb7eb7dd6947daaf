"""LQ-Net's weights: a few bits with learned values for every output channel."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.nn.activation_binarizers.learned_levels import check_bits
from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.ops.bits import unpack_signs
from binarize.ops.levels import fitted_basis, level_table, nearest_level
from binarize.ops.straight_through import straight_through

__all__ = ["LearnedLevelsWeight"]

_QUARTILE = 0.6745


class LearnedLevelsWeight(WeightBinarizer):
    r"""The nearest of the levels :math:`v_o^\top e`, :math:`e \in \{-1, 1\}^b`, a basis per slice.

    Zhang et al., LQ-Nets, Eqs. 2-7. The basis v is not a parameter: in training mode, it is a
    moving average (0.9) of least-squares fits to the latent weight. Surrogate gradient: 1
    everywhere.

    Args:
        dim: See :class:`~binarize.nn.weight_binarizers.base.WeightBinarizer`.
        groups: As in that class.
        bits: b, 1 to 8.

    Initial values: v_i = 2^i * 0.6745 * deviation / 2^(b - 1) of the slice, as in the source for
    its initial weights. State: the buffer ``basis``, (slices, b). Counted: b parameters
    of one bit per weight.

    Deviation: halfway between two levels, the upper one is taken.

    Raises:
        BinarizeError: ``bits`` is not 1 to 8.
    """

    basis: Tensor

    has_planes = True

    def __init__(self, dim: int = 0, groups: int = 1, *, bits: int = 1) -> None:
        super().__init__(dim, groups)
        check_bits(bits)
        self.bits = bits

    @property
    def popcount_exact(self) -> bool:  # type: ignore[override]
        """Only with one bit; more bits take several counts."""
        return self.bits == 1

    def start(self, weight: Tensor) -> None:
        rows = self._rows(weight.detach())
        size = rows.square().mean(1, keepdim=True).sqrt()
        steps = 2.0 ** torch.arange(self.bits, device=rows.device, dtype=rows.dtype)
        self.register_buffer("basis", size * steps * (_QUARTILE / 2 ** (self.bits - 1)))

    def _rows(self, weight: Tensor) -> Tensor:
        """Return the slices as rows: (slices, weights)."""
        grouped, over = self.slices(weight)
        kept = [0, self.dim + 1]
        return grouped.permute(*kept, *over).reshape(-1, self.slice_size(weight))

    def _unrow(self, rows: Tensor, weight: Tensor) -> Tensor:
        grouped, over = self.slices(weight)
        order = [0, self.dim + 1, *over]
        back = [order.index(d) for d in range(grouped.dim())]
        return rows.view([grouped.shape[d] for d in order]).permute(back).reshape(weight.shape)

    def scale(self, weight: Tensor) -> Tensor:
        """Return the basis: (slices,) with one bit, else (bits, slices)."""
        return self.basis[:, 0] if self.bits == 1 else self.basis.t()

    def signs(self, weight: Tensor) -> Tensor:
        """Return signs, with several bits (bits, *shape); their sum times basis is the weight."""
        levels, codes = level_table(self.basis)
        chosen = nearest_level(self._rows(weight.detach()).to(levels.dtype), levels)
        picked = codes.gather(1, chosen[:, :, None].expand(-1, -1, self.bits))
        planes = [self._unrow(picked[:, :, bit], weight) for bit in range(self.bits)]
        return planes[0] if self.bits == 1 else torch.stack(planes)

    def stored_scale(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        planes = unpack_signs(bits, (self.bits, *like.shape), like.dtype).to(like.device)
        rows = self._rows(planes[0]) * self.basis[:, :1]
        for bit in range(1, self.bits):
            rows = rows + self._rows(planes[bit]) * self.basis[:, bit : bit + 1]
        return self._unrow(rows, like)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize ``weight``."""
        basis = self.basis.clone()  # the fit below changes the buffer
        levels, codes = level_table(basis)
        rows = self._rows(weight.detach()).to(levels.dtype)
        chosen = nearest_level(rows, levels)
        if self.training:
            self.basis.copy_(fitted_basis(rows, chosen, codes, basis))
        hard = self._unrow(levels.gather(1, chosen), weight)
        return straight_through(hard.to(weight.dtype), weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"
