"""The normal equations of a binary layer's sums, accumulated batch by batch.

Shape legend: P positions (rows), n inputs of an output (channels of a group times kernel), g
groups, m outputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.nn.conv import pre_pads

__all__ = ["LARGEST", "Equations", "as_columns", "as_weight", "input_rows"]

LARGEST = 12_288
"""The most inputs of an output whose normal equations are solved: 600 MB for the matrix."""

# Elements of the rows that are laid out at a time.
_CHUNK = 2**24
# Most passes of the coordinate descent, and inputs between two exact gradients.
_SWEEPS, _BLOCK = 6, 64


def as_columns(layer: Any, weight: Tensor) -> Tensor:
    """Return a weight of a layer as (g, n, m), to be multiplied by :func:`input_rows`."""
    if isinstance(layer, nn.Linear):
        return weight.t()[None]
    grouped = weight.unflatten(0, (layer.groups, -1))
    if layer.transposed:
        # (g, in, m, *kernel): a transposed convolution is one by the mirrored kernel.
        kernel = list(range(3, grouped.dim()))
        return grouped.flip(kernel).movedim(2, -1).flatten(1, -2)
    return grouped.flatten(2).transpose(1, 2)


def as_weight(layer: Any, columns: Tensor) -> Tensor:
    """Return what :func:`as_columns` made of a weight to the weight's shape."""
    shape = layer.weight.shape
    if isinstance(layer, nn.Linear):
        return columns[0].t()
    if layer.transposed:
        inner = (shape[0] // layer.groups, *shape[2:])
        grouped = columns.unflatten(1, inner).movedim(-1, 2)
        return grouped.flip(list(range(3, grouped.dim()))).reshape(shape)
    return columns.transpose(1, 2).reshape(shape)


def input_rows(layer: Any, binary: Tensor, size: Any) -> Iterator[tuple[slice, Tensor]]:
    """Lay out what each output of a layer sums over.

    Args:
        layer: A binary layer.
        binary: Its binarized input.
        size: Spatial size of its output; for a linear layer any.

    Yields:
        Samples as a slice, and their rows (g, P, n), positions in the output's order.
    """
    if isinstance(layer, nn.Linear):
        yield slice(None), binary.reshape(1, -1, binary.shape[-1])
        return
    x = _spread(layer, binary, size) if layer.transposed else _padded(layer, binary)
    spatial = len(layer.kernel_size)
    strides = (1,) * spatial if layer.transposed else layer.stride
    per_sample = math.prod(size) * math.prod(layer.kernel_size) * binary.shape[1]
    step = max(1, _CHUNK // max(per_sample, 1))
    for start in range(0, len(x), step):
        part = x[start : start + step].contiguous()
        sample, channel, *steps = part.stride()
        shape = (len(part), part.shape[1], *size, *layer.kernel_size)
        moves = [s * by for s, by in zip(steps, strides, strict=True)]
        taps = [s * by for s, by in zip(steps, layer.dilation, strict=True)]
        windows = part.as_strided(shape, (sample, channel, *moves, *taps))
        grouped = windows.unflatten(1, (layer.groups, -1))
        # (N, g, c, *size, *kernel) to (g, N, *size, c, *kernel).
        order = [1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial)]
        rows = grouped.permute(order).flatten(2 + spatial).flatten(1, 1 + spatial)
        yield slice(start, start + len(part)), rows


def _padded(layer: Any, binary: Tensor) -> Tensor:
    pads = pre_pads(layer, binary.shape[2:])
    if any(pads):
        binary = F.pad(binary, pads)
    around = layer._reversed_padding_repeated_twice
    if layer.padding_mode == "zeros":
        return F.pad(binary, around)
    return F.pad(binary, around, mode=layer.padding_mode)


def _spread(layer: Any, binary: Tensor, size: Any) -> Tensor:
    """The input of the convolution by the mirrored kernel: with zeros between the values."""
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    lengths = [(n - 1) * s + 1 for n, s in zip(binary.shape[2:], layer.stride, strict=True)]
    x = binary.new_zeros(*binary.shape[:2], *lengths)
    places: Any = (..., *(slice(None, None, s) for s in layer.stride))
    x[places] = binary
    pads: list[int] = []
    sides = zip(reach, layer.padding, lengths, size, strict=True)
    for r, p, length, wanted in reversed(list(sides)):
        pads += [r - p, wanted + r - length - (r - p)]
    return F.pad(x, pads)


class Equations:
    """Least squares of a layer's sums against given values, with an intercept per output.

    While there are fewer rows than inputs, as in the deep layers of a network, the rows themselves
    are kept, which takes less memory and less time than their normal equations.

    Args:
        columns: A weight as (g, n, m).
    """

    def __init__(self, columns: Tensor) -> None:
        groups, inputs, outputs = columns.shape
        # The matrix may be large, and is solved well within single precision.
        self._dtype = torch.promote_types(columns.dtype, torch.float32)
        self.count = 0
        self._few: list[tuple[Tensor, Tensor]] = []
        self._gram = self._cross = torch.empty(0)
        self._input = columns.new_zeros(groups, inputs, dtype=torch.float64)
        self._value = columns.new_zeros(groups, outputs, dtype=torch.float64)
        self._shape = columns.shape

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Take in rows (g, P, n) and the values (g, P, m) to match."""
        rows, values = rows.to(self._dtype), values.to(self._dtype)
        self.count += rows.shape[1]
        self._input += rows.sum(1, dtype=torch.float64)
        self._value += values.sum(1, dtype=torch.float64)
        self._few.append((rows, values))
        if self.count > self._shape[1]:
            self._multiply()

    def _multiply(self) -> None:
        """Turn rows into products."""
        if not self._gram.numel():
            groups, inputs, outputs = self._shape
            self._gram = self._few[0][0].new_zeros(groups, inputs, inputs)
            self._cross = self._few[0][0].new_zeros(groups, inputs, outputs)
        for rows, values in self._few:
            self._gram += rows.mT @ rows
            self._cross += rows.mT @ values
        self._few = []

    def finish(self) -> None:
        """Take means off, when all rows are in."""
        self._input /= self.count
        self._value /= self.count
        mean, value = (x.to(self._dtype)[:, None] for x in (self._input, self._value))
        if self._few:
            rows, values = (torch.cat(parts, 1) for parts in zip(*self._few, strict=True))
            self._few = [(rows - mean, values - value)]
            return
        self._gram /= self.count
        self._cross /= self.count
        for group in range(len(mean)):  # in place: the matrix may be large
            self._gram[group].addr_(mean[group, 0], mean[group, 0], alpha=-1)
            self._cross[group].addr_(mean[group, 0], value[group, 0], alpha=-1)

    def solve(self, start: Tensor, pull: float) -> Tensor:
        r"""Return the weight that fits best, drawn towards another one.

        For each group, with centred rows A and values T, a weight :math:`W_0` to draw to, and
        :math:`\alpha_o` the factor with which its output o fits best:

        .. math::
            \min_W \lVert A W - T \rVert^2 + \lambda \lVert W - W_0 \alpha \rVert^2, \qquad
            \lambda = \rho \, \overline{\operatorname{diag}(A^\top A)}

        Args:
            start: :math:`W_0`, (g, n, m).
            pull: :math:`\rho`, above 0.

        Returns:
            The weight, (g, n, m).
        """
        start = self._scaled(start)
        return torch.stack([self._solve(g, weight, pull) for g, weight in enumerate(start)])

    def _solve(self, group: int, start: Tensor, pull: float) -> Tensor:
        if self._few:
            rows, values = (x[group] for x in self._few[0])
            strength = pull * rows.square().sum() / rows.shape[1]
            gram = rows @ rows.t()
        else:
            gram = self._gram[group]
            strength = pull * gram.diagonal().mean()
        kept = gram.diagonal().clone()
        gram.diagonal().add_(strength)
        factorized, failed = torch.linalg.cholesky_ex(gram)
        gram.diagonal().copy_(kept)
        if failed:  # the inputs never vary
            return start
        if self._few:
            rest = torch.cholesky_solve(values - rows @ start, factorized)
            return start + rows.t() @ rest
        return torch.cholesky_solve(self._cross[group] + strength * start, factorized)

    def signs(self, weight: Tensor, start: Tensor, pull: float) -> Tensor:
        r"""Return signs that fit better than those of a weight, with one factor per output.

        Rounding each weight of :meth:`solve` to its sign ignores that inputs are correlated. From
        there, coordinate descent flips one sign after the other where that lowers

        .. math::
            \lVert \alpha_o A s - t \rVert^2 + \lambda \lVert \alpha_o s - W_0 \rVert^2, \qquad
            s \in \{-1, 1\}^n

        (with :math:`W_0` scaled as there), the factor fitted again after each pass over all inputs.

        Args:
            weight: The weight whose signs to start from, (g, n, m).
            start: As for :meth:`solve`.
            pull: As for :meth:`solve`.

        Returns:
            -1 and +1, (g, n, m).
        """
        start = self._scaled(start)
        signs = torch.where(weight < 0, -1.0, 1.0).to(self._dtype)
        return torch.stack([self._descend(g, signs[g], start[g], pull) for g in range(len(signs))])

    def _descend(self, group: int, signs: Tensor, start: Tensor, pull: float) -> Tensor:
        rows = values = torch.empty(0)
        if self._few:
            rows, values = (x[group] for x in self._few[0])
            strength = pull * rows.square().sum() / rows.shape[1]
            cross = rows.t() @ values + strength * start
        else:
            gram = self._gram[group]
            strength = pull * gram.diagonal().mean()
            cross = self._cross[group] + strength * start
        if strength <= 0:  # the inputs never vary
            return signs
        inputs = len(signs)
        for _ in range(_SWEEPS):
            sums = rows @ signs if self._few else gram @ signs
            size = (sums.square() if self._few else signs * sums).sum(0) + strength * inputs
            factor = (cross * signs).sum(0) / size
            signs = torch.where(factor < 0, -signs, signs)
            sums = torch.where(factor < 0, -sums, sums)
            factor = factor.abs()
            flips = 0
            for first in range(0, inputs, _BLOCK):
                block = slice(first, min(first + _BLOCK, inputs))
                if self._few:
                    near = rows[:, block].t() @ rows[:, block]
                    slope = rows[:, block].t() @ sums
                else:
                    near = gram[block, block]
                    slope = gram[block] @ signs
                ours, wanted, before = signs[block], cross[block], signs[block].clone()
                for i, own in enumerate(near.diagonal().tolist()):
                    gain = factor * (own - ours[i] * slope[i]) + ours[i] * wanted[i]
                    change = torch.where(gain < 0, -2 * ours[i], 0.0)
                    slope.addr_(near[i], change)
                    ours[i] += change
                flips += int((ours != before).sum())
                if self._few:
                    sums = sums.addmm_(rows[:, block], ours - before)
            if not flips:
                break
        return signs

    def _scaled(self, start: Tensor) -> Tensor:
        """Return a weight times the factor with which each output fits best."""
        start = start.to(self._dtype)
        _, variance, _, both = self.moments(start)
        factor = both / torch.where(variance > 0, variance, 1.0)
        return start * factor.view(len(start), 1, -1).to(self._dtype)

    def moments(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the sums of a weight have in common with the values.

        Args:
            columns: The weight, (g, n, m).

        Returns:
            As :meth:`binarize.calibration.fits.Moments.result`, (g * m) each.
        """
        mean = (self._input[:, None] @ columns.double())[:, 0]
        columns = columns.to(self._dtype)
        if self._few:
            rows, values = self._few[0]
            sums = (rows @ columns).double()
            variance, both = sums.square().mean(1), (sums * values).mean(1)
        else:
            variance = (columns * (self._gram @ columns)).sum(1).clamp(min=0)
            both = (columns * self._cross).sum(1)
        return tuple(x.double().flatten() for x in (mean, variance, self._value, both))  # type: ignore[return-value]
