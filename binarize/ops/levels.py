"""LQ-Net's quantization to the levels spanned by a basis, and the fit of the basis.

Shapes: values are (rows, n), a basis is (rows, bits), levels and codes are ordered by level.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fitted_basis", "level_table", "middle_points", "nearest_level"]

# Weight of the old basis in the moving average, and regularization of a fit towards it.
_KEEP, _PULL = 0.9, 1e-4


def level_table(basis: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the :math:`2^b` levels :math:`v^\top e`, :math:`e \in \{-1, 1\}^b`, ascending.

    Args:
        basis: v, (rows, bits).

    Returns:
        Levels (rows, 2^bits) and their codes (rows, 2^bits, bits) of -1 and +1.
    """
    bits = basis.shape[1]
    numbers = torch.arange(2**bits, device=basis.device)
    # Not by shifts: ONNX has none of signed integers.
    powers = 2 ** torch.arange(bits, device=basis.device)
    codes = numbers[:, None] // powers % 2 * 2 - 1
    codes = codes.to(basis.dtype)
    # Term by term, like the reconstruction of a stored weight, so that both round alike.
    levels = codes[:, 0] * basis[:, :1]
    for bit in range(1, bits):
        levels = levels + codes[:, bit] * basis[:, bit : bit + 1]
    levels, order = levels.sort(dim=1, stable=True)
    return levels, codes[order]


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of each value's nearest level; ties go to the upper one (sign(0) = +1).

    Args:
        values: (rows, n).
        levels: (rows, count), ascending.

    Returns:
        Integers (rows, n).
    """
    return torch.searchsorted(middle_points(levels), values.contiguous(), right=True)


def middle_points(levels: Tensor) -> Tensor:
    """Return the thresholds between neighboring levels.

    Args:
        levels: (rows, count), ascending.

    Returns:
        (rows, count - 1).
    """
    return ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()


def fitted_basis(values: Tensor, chosen: Tensor, codes: Tensor, basis: Tensor) -> Tensor:
    r"""One step of LQ-Net's alternating fit, Eq. 7, and its moving average.

    With the codes B fixed, the least-squares basis is :math:`(B^\top B)^{-1} B^\top x`; a small
    multiple of the identity keeps it near the old basis where the codes do not determine it. The
    result is 0.9 times the old basis plus 0.1 times that.

    Args:
        values: x, (rows, n).
        chosen: Index of each value's level, (rows, n).
        codes: Codes of the levels, (rows, levels, bits).
        basis: The old basis, (rows, bits).

    Returns:
        The new basis, (rows, bits).
    """
    rows, count = values.shape[0], max(values.shape[1], 1)
    wide = torch.promote_types(basis.dtype, torch.float32)
    values, codes, old = values.to(wide), codes.to(wide), basis.to(wide)
    # Sums per level suffice: values of one level share their code.
    zeros = values.new_zeros(rows, codes.shape[1])
    share = zeros.scatter_add(1, chosen, torch.ones_like(values)) / count
    total = zeros.scatter_add(1, chosen, values) / count
    gram = torch.einsum("rl,rli,rlj->rij", share, codes, codes)
    right = torch.einsum("rl,rli->ri", total, codes)
    pull = _PULL * torch.eye(codes.shape[2], dtype=wide, device=values.device)
    fresh = torch.linalg.solve(gram + pull, right + _PULL * old)
    return (_KEEP * old + (1 - _KEEP) * fresh).to(basis.dtype)
