"""``binarize::shifted_prelu``: the activation after a float layer in one pass, with its means.

After a binary layer, the activation is part of the layer's kernel; see :mod:`binarize.kernels.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reference", "shifted_prelu"]

_LIBRARY = torch.library.Library("binarize", "FRAGMENT")
_LIBRARY.define(
    "shifted_prelu(Tensor x, Tensor? shift, Tensor slope, Tensor? out_shift, int channel_dim,"
    " bool want_means) -> (Tensor, Tensor)",
    tags=[torch.Tag.pt2_compliant_tag],
)


def reference(
    x: Tensor,
    shift: Tensor | None,
    slope: Tensor,
    out_shift: Tensor | None,
    channel_dim: int,
    want_means: bool,
) -> tuple[Tensor, Tensor]:
    """Return PReLU_c(x + shift_c) + out_shift_c, and its means (N, C) over all other dimensions."""
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    y = x if shift is None else x + shift.view(shape)
    y = torch.where(y > 0, y, y * slope.view(shape))
    if out_shift is not None:
        y = y + out_shift.view(shape)
    if not want_means:
        return y, y.new_empty(0)
    return y, y.movedim(channel_dim, 1).flatten(2).mean(2)


@torch.library.register_fake("binarize::shifted_prelu", lib=_LIBRARY)
def _fake(
    x: Tensor,
    shift: Tensor | None,
    slope: Tensor,
    out_shift: Tensor | None,
    channel_dim: int,
    want_means: bool,
) -> tuple[Tensor, Tensor]:
    means = (x.shape[0], x.shape[channel_dim]) if want_means else (0,)
    return torch.empty_like(x), x.new_empty(means)


_LIBRARY.impl("shifted_prelu", reference, "CompositeExplicitAutograd")

shifted_prelu = torch.ops.binarize.shifted_prelu.default
