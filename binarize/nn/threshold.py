"""Activation binarizers as data: the form that packed layers run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["ThresholdForm"]


@dataclass(frozen=True)
class ThresholdForm:
    r"""Values that are one number per sample times a sign, plus a constant.

    A binarizer is one such form, or the sum of several.

    For sample n, channel c and position p, with :math:`\bar x_{nc}` the mean over the positions:

    .. math::
        t_{nc} = k_c \, \bar x_{nc} + b_c, \qquad
        s_{ncp} = +1 \text{ if not } x_{ncp} < t_{nc} \text{, else } -1, \qquad
        B = \alpha_n \cdot s + o

    In channels with ``flip`` the comparison is ``not x > t``. NaN is +1 either way. With ``more``
    thresholds, s is the product of the signs for all thresholds. The sample's
    factor, with the mean over all elements of the sample, is one of

    - ``"constant"``: :math:`\alpha_n = f`;
    - ``"exponential"``: :math:`\alpha_n = f \exp(a (\overline{|x - t|} - 1))`;
    - ``"magnitude"``: :math:`\alpha_n = f \, \overline{|x - t|}`.

    Attributes:
        b: Constant part of the threshold, (C,). It may be infinite: a channel of constant sign.
        k: Part of the threshold that is proportional to the mean, (C,); ``None`` is 0.
        flip: Channels that are +1 below their threshold, (C,) bool; ``None`` if there are none.
        scale: ``"constant"``, ``"exponential"`` or ``"magnitude"``.
        exponent: a, one element; only with ``"exponential"``.
        factor: f, one element; ``None`` is 1.
        offset: o, one element; ``None`` is 0. With zero padding, it does not factor out of the sum
            as one number per output channel: it is absent at the border.
        more: Further thresholds, (count,). If there are any, b is the same in all channels, the
            scale constant, and there is neither k nor ``flip``.

    All tensors are detached.
    """

    b: Tensor
    k: Tensor | None = None
    flip: Tensor | None = None
    scale: str = "constant"
    exponent: Tensor | None = None
    factor: Tensor | None = None
    offset: Tensor | None = None
    more: Tensor | None = None
