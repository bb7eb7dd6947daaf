r"""A binary layer as a sum of counted planes.

With activations :math:`B = \sum_k u_k s_k + o` and weights :math:`W_o = \sum_j f_{jo} E_{jo} + c_o`
(all s and E are -1 or +1; padding adds zeros), a layer's sum is

.. math::
    \sum_{k, j} u_k f_{jo} \operatorname{count}(s_k, E_{jo})
    + c_o \sum_k u_k \operatorname{count}(s_k, 1)
    + o \sum_{t \text{ inside}} \overline W_{ot}

with :math:`\overline W_{ot}` the sum of the weight's tap t over the input channels of o's group.
Counts are whole numbers, and exact; each is multiplied with one number, the norm's gain times
:math:`u_k f_{jo}`. The products are added one by one in the order of the first sum, k outside. The
last one takes the norm's addend and the bypass, then the others together with the last two terms.

Shapes: those of the original layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from binarize.kernels.reference import convolve
from binarize.nn.folding import folded_norm, kernel_padding_mode, layer_padding
from binarize.nn.planes import WeightPlanes
from binarize.nn.single import Single
from binarize.nn.threshold import ThresholdForm

__all__ = ["OtherPlanes", "Plane", "PlanesOfLayer", "planes_of", "thresholds"]


@dataclass(frozen=True)
class Plane:
    """One term of a layer's sum: signs of activations, counted with signs of weights.

    Attributes:
        form: The activations' signs and factor; without an offset.
        signs: The weight's signs as bool, in the shape of its weight.
        gain: Factor of the count, one per output channel, in float64.
    """

    form: ThresholdForm
    signs: Tensor
    gain: Tensor


@dataclass(frozen=True)
class PlanesOfLayer:
    """A layer's sum after its norm.

    Attributes:
        planes: Its terms, (activation planes, weight planes).
        windows: Terms that count the activations' signs alone, one per activation plane and one
            output channel per group; empty if the weight has no constant part.
        window_gain: Factor of the sum of ``windows`` for each output channel, in float64.
        taps: What the constant part of the activations adds for each tap inside the feature map,
            (*kernel, C_out) in float64; ``None`` if it is 0, or if all taps are always inside and
            ``offset`` has it.
        offset: Constant, one per output channel, in float64.
    """

    planes: list[list[Plane]]
    windows: list[Plane]
    window_gain: Tensor
    taps: Tensor | None
    offset: Tensor

    @property
    def last(self) -> Plane:
        """The term that is added last."""
        return self.planes[-1][-1]

    @property
    def is_single(self) -> bool:
        """Whether there is nothing else."""
        return [len(row) for row in self.planes] == [1] and not self.windows and self.taps is None


def planes_of(layer: Any, weight: WeightPlanes) -> PlanesOfLayer:
    """Return a binary layer's sum, see the module's docstring.

    Args:
        layer: The layer, in eval mode; it has no obstacle to counting.
        weight: Its weight.
    """
    # The last plane carries the bypass, which reads the feature map itself.
    forms = sorted(layer.binarizer.threshold_forms(), key=lambda form: form.more is None)
    plain = [replace(form, offset=None) for form in forms]
    gain, offset = folded_norm(layer.norm)
    factors = weight.factors.double() * gain
    planes = [
        [Plane(form, s, f) for s, f in zip(weight.signs, factors, strict=True)] for form in plain
    ]
    windows, constant = [], torch.zeros_like(gain)
    if weight.offset is not None:
        constant = weight.offset.double() * gain
        groups = getattr(layer, "groups", 1)
        ones = weight.signs.new_ones(_one_output(layer, weight.signs.shape[1:]))
        windows = [Plane(form, ones, gain.new_ones(groups)) for form in plain]
    lifts = [form.offset.double() for form in forms if form.offset is not None]
    taps = None
    if lifts:
        taps = sum(lifts) * _taps(layer, weight, factors, constant)
        if _is_inside(layer, taps.dim() - 1):
            offset, taps = offset + taps.reshape(-1, taps.shape[-1]).sum(0), None
    return PlanesOfLayer(planes, windows, constant, taps, offset)


def _one_output(layer: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a weight with one output channel per group."""
    if getattr(layer, "transposed", False):
        return (shape[0], 1, *shape[2:])
    return (getattr(layer, "groups", 1), *shape[1:])


def _taps(layer: Any, weight: WeightPlanes, factors: Tensor, constant: Tensor) -> Tensor:
    """Sum the weight, times the norm's gain, over its input channels: (*kernel, C_out)."""
    signs = 2.0 * weight.signs.double() - 1
    if getattr(layer, "transposed", False):
        signs = signs.unflatten(1, (layer.groups, -1))  # (planes, groups, inputs, outputs, *kernel)
        column = [layer.groups, -1]
    else:
        column = [-1, 1]
    inputs, sums = signs.shape[2], signs.sum(2, keepdim=column[1] == 1)
    column += [1] * (sums.dim() - 3)
    weighted = (sums * factors.view(len(factors), *column)).sum(0)
    return (weighted + inputs * constant.view(column)).flatten(0, 1).movedim(0, -1)


def _is_inside(layer: Any, spatial: int) -> bool:
    """Check whether no window of a layer reaches beyond its feature map, or into zeros there."""
    if isinstance(layer, nn.Linear):
        return True
    if layer.transposed:
        return False
    zeros = kernel_padding_mode(layer) == "zeros"
    padded = layer.pre_padding == "same" or any(layer_padding(layer, spatial))
    return not (zeros and padded)


class OtherPlanes(Single):
    """What a packed layer adds to the last plane of its sum.

    Args:
        layer: The layer, for its groups.
        given: Its sum.
        unit: Makes the packed unit that counts one plane.

    Shapes: (N, C_in, *spatial) to (N, C_out, *spatial of the convolution's output).
    """

    window_gain: Tensor
    taps: Tensor | None

    def __init__(
        self, layer: Any, given: PlanesOfLayer, unit: Callable[[Plane], nn.Module]
    ) -> None:
        super().__init__()
        self.groups: int = getattr(layer, "groups", 1)
        self.thresholds = [thresholds(row[0].form) for row in given.planes]
        rows = [*given.planes[:-1], given.planes[-1][:-1]]
        self.planes = nn.ModuleList(nn.ModuleList(map(unit, row)) for row in rows)
        self.windows = nn.ModuleList(map(unit, given.windows))
        self.hold(window_gain=given.window_gain, taps=given.taps)

    def forward(
        self, x: Tensor, owner: Any, output_size: list[int] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Count the other planes.

        Args:
            x: The layer's input in float32.
            owner: The packed unit of the last plane.
            output_size: Of a transposed convolution, or ``None``.

        Returns:
            What the last plane reads, and what is to be added to it.
        """
        read = x
        total: list[Tensor] = []
        window: list[Tensor] = []
        rows: Any = zip(self.thresholds, self.planes, strict=True)
        windows: Any = list(self.windows)
        for i, (several, units) in enumerate(rows):
            read = parity(x, several) if len(several) > 1 else x
            for unit in units:
                total = [unit.count(read, output_size, total)]
            for unit in windows[i : i + 1]:
                window = [unit.count(read, output_size, window)]
        return read, total + self._constant(x, window, owner, output_size)

    def _constant(
        self, x: Tensor, window: list[Tensor], owner: Any, output_size: list[int] | None
    ) -> list[Tensor]:
        """Return what the constant parts of weights and activations contribute, if they do.

        In memory it is channels last, as the kernel reads it.
        """
        border = None if self.taps is None else self._border(x, owner, output_size)
        if not window:
            if border is None:
                return []
            return [border.movedim(-1, 0).expand(x.shape[0], *[-1] * (x.dim() - 1))]
        sums = window[0].movedim(1, -1).unsqueeze(-1)
        gain = self.window_gain.view(self.groups, -1)
        if border is None:
            spread = sums * gain
        else:
            spread = torch.addcmul(border.unflatten(-1, gain.shape), sums, gain)
        return [spread.flatten(-2).movedim(-1, 1)]

    def _border(self, x: Tensor, owner: Any, output_size: list[int] | None) -> Tensor:
        """Sum the taps inside the feature map: (*spatial of the output, C_out)."""
        stride, padding, dilation, _, mode, transposed, extra = owner.geometry(x, output_size)
        total: Any = self.taps
        dims = len(stride)
        for d in reversed(range(dims)):
            kernel, length = total.shape[dims - 1], x.shape[2 + d]
            one = torch.eye(kernel, dtype=x.dtype, device=x.device).unsqueeze(
                0 if transposed else 1
            )
            pads, each = padding[2 * d : 2 * d + 2], slice(d, d + 1)
            how = stride[each], pads, dilation[each], 1, mode, transposed, extra[each]
            # Whether each output reads a pixel at each tap: (taps, outputs).
            inside = convolve(x.new_ones(1, 1, length), one, *how)[0]
            rest = total.movedim(dims - 1, 0)
            total = (inside.T @ rest.flatten(1)).unflatten(1, rest.shape[1:])
        return total  # type: ignore[no-any-return]


def thresholds(form: ThresholdForm) -> list[float]:
    """Return a form's thresholds if all channels have the same ones, else one of them."""
    return [float(form.b[0]), *([] if form.more is None else form.more.tolist())]


def parity(x: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return 1 where an even number of thresholds, two or more, lies above ``x``, else 0."""
    *rest, last = thresholds
    odd = x < rest[0]
    for threshold in rest[1:]:
        odd = odd ^ (x < threshold)
    # NaN is below no threshold.
    return torch.eq(odd, x < last).to(x.dtype)
