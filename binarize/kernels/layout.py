"""The weight layout of the 1-bit kernels, the same for every instruction set.

The layout is a flat uint8 tensor of little-endian numbers, in two parts: words, then tap sums.
Both run over the *phases* of the convolution. A convolution has one phase with all taps. A
transposed convolution is ``prod(stride)`` ordinary convolutions, each of which computes every
``stride``-th output from the taps that reach it.

Words (64 bits, bit i of a word is channel i; a set bit means +1; unused bits are 0):

- dense: ``[group][block of 8 outputs][tap][word][8 outputs]``, words of the group's channels;
- folded: the same, with the taps of a row joined into one bit string (tap-major), so that few
  channels do not leave words empty: ``[group][block][tap without last dimension][word][8]``;
- depthwise: ``[tap][word]``, words of all channels.

Tap sums (int32): ``[t0 + 1][t1 + 1][t2 + 1][C_out]``, entry (i, j, k) the sum of the weight's signs
over the channels and over the taps before i, j and k. Differences of eight of them are the
correction for a window that extends beyond the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.ops.bits import pack_bits, unpack_signs

__all__ = ["VERSION", "Layout", "pack_weight", "unpack_weight"]

VERSION = 1
"""Incremented when the order of the bits changes (``BINARIZE_LAYOUT`` of binarize.h)."""

LANES = 8
WORD = 64


class Layout:
    """Positions and sizes in the layout; see the module's docstring.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel: Taps per spatial dimension, one to three dimensions.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution.
        transposed: Whether it is transposed.

    Attributes:
        phases: Per phase and dimension (always three) the kernel indices, in the order of the
            input positions they read.
        depthwise: Whether every channel has its own filter.
        folded: Whether the taps of the last dimension are folded into the words.
        words: Words per tap and output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        transposed: bool,
    ) -> None:
        self.groups = groups
        self.in_group = in_channels // groups
        self.out_group = out_channels // groups
        self.out_channels = out_channels
        full = [(1,) * (3 - len(v)) + tuple(v) for v in (kernel, stride, dilation)]
        self.phases = _phases(*full, transposed)
        self.depthwise = groups > 1 and self.in_group == 1 and self.out_group == 1
        row = full[0][2]
        dense, folded = _words(self.in_group), _words(self.in_group * row)
        self.folded = not self.depthwise and not transposed and folded < dense * row
        self.words = folded if self.folded else dense

    def counts(self, phase: int) -> tuple[int, int]:
        """Return the number of words and of tap sums of one phase."""
        taps = [len(t) for t in self.phases[phase]]
        sums = prod(t + 1 for t in taps) * self.out_channels
        if self.depthwise:
            return prod(taps) * _words(self.groups), sums
        steps = prod(taps[:2]) if self.folded else prod(taps)
        blocks = -(-self.out_group // LANES)
        return self.groups * blocks * steps * self.words * LANES, sums

    @property
    def bytes(self) -> int:
        """Return the size of the packed weight."""
        counts = [self.counts(p) for p in range(len(self.phases))]
        return sum(8 * words + 4 * sums for words, sums in counts)


def _words(channels: int) -> int:
    return -(-channels // WORD)


@lru_cache(maxsize=256)
def _phases(
    kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], transposed: bool
) -> list[tuple[tuple[int, ...], ...]]:
    if not transposed:
        return [tuple(tuple(range(k)) for k in kernel)]
    # Output o takes input (o + padding - k * dilation) / stride, so a larger k reads further left.
    return [
        tuple(
            tuple(k for k in reversed(range(taps)) if k * d % s == rest)
            for rest, taps, s, d in zip(rests, kernel, stride, dilation, strict=True)
        )
        for rests in product(*(range(s) for s in stride))
    ]


def pack_weight(
    signs: Tensor,
    *,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    transposed: bool = False,
) -> Tensor:
    """Pack the signs of a convolution's weight into the kernels' layout.

    Args:
        signs: Weight of :class:`torch.nn.Conv2d` or the like, (C_out, C_in / groups, *kernel), or
            (C_in, C_out / groups, *kernel) if transposed; negative means -1, all else +1. A bool
            tensor holds the bits themselves. View a linear weight as that of a 1x1 convolution.
        stride: Stride of the convolution, per spatial dimension.
        dilation: Dilation of the convolution, per spatial dimension.
        groups: Groups of the convolution.
        transposed: Whether the convolution is transposed.

    Returns:
        Flat uint8 tensor of :attr:`Layout.bytes` bytes.

    Raises:
        BinarizeError: ``signs`` does not have three to five dimensions, or ``groups`` does not
            divide its channels.
    """
    if signs.dim() not in (3, 4, 5):
        raise BinarizeError(
            "signs",
            tuple(signs.shape),
            "the kernels take convolutions in one to three dimensions",
            "view a linear weight as (C_out, C_in, 1, 1)",
        )
    if groups < 1 or signs.shape[0] % groups:
        raise BinarizeError(
            "groups",
            groups,
            f"{signs.shape[0]} channels are not divisible by it",
            "give the groups of the convolution",
        )
    bits = signs if signs.dtype == torch.bool else ~(signs.detach() < 0)
    kernel = tuple(bits.shape[2:])
    bits = bits.reshape(*bits.shape[:2], *(1,) * (3 - len(kernel)), *kernel)
    bits = bits.unflatten(0, (groups, bits.shape[0] // groups))
    if transposed:
        bits = bits.transpose(1, 2)  # to (groups, outputs, inputs, *kernel)
    layout = Layout(
        bits.shape[2] * groups, bits.shape[1] * groups, kernel, stride, dilation, groups, transposed
    )
    words, sums = [], []
    for taps in layout.phases:
        part = bits
        for dim, chosen in enumerate(taps, start=3):
            if chosen != tuple(range(part.shape[dim])):
                part = part.index_select(dim, torch.tensor(chosen, dtype=torch.int64))
        words.append(_phase_words(part, layout))
        sums.append(_phase_sums(part))
    return torch.cat(words + sums)


def _phase_words(part: Tensor, layout: Layout) -> Tensor:
    if layout.depthwise:
        rows = part.flatten(3)[:, 0, 0].t()  # [tap][channel]
        return _to_bytes(rows).flatten()
    if layout.folded:
        rows = part.permute(0, 1, 3, 4, 5, 2).flatten(4, 5).flatten(2, 3)
    else:
        rows = part.permute(0, 1, 3, 4, 5, 2).flatten(2, 4)
    packed = _to_bytes(rows)  # [group][output][step][byte]
    # Not by F.pad: a phase without taps has an empty dimension, which torch 2.8 cannot pad.
    rest = packed.new_zeros(packed.shape[0], -packed.shape[1] % LANES, *packed.shape[2:])
    packed = torch.cat([packed, rest], 1)
    packed = packed.unflatten(1, (-1, LANES)).unflatten(4, (layout.words, 8))
    return packed.permute(0, 1, 3, 4, 2, 5).flatten()


def _to_bytes(rows: Tensor) -> Tensor:
    """Pack the bits of the last dimension into bytes, padded to whole words."""
    rows = F.pad(rows, (0, -rows.shape[-1] % WORD))
    return pack_bits(rows).view(*rows.shape[:-1], rows.shape[-1] // 8)


def _phase_sums(part: Tensor) -> Tensor:
    sums = 2 * part.sum(2, dtype=torch.int32) - part.shape[2]
    sums = sums.flatten(0, 1).permute(1, 2, 3, 0)
    for dim in range(3):
        sums = sums.cumsum(dim, dtype=torch.int32)
    return F.pad(sums, (0, 0, 1, 0, 1, 0, 1, 0)).contiguous().flatten().view(torch.uint8)


def unpack_weight(
    packed: Tensor, layout: Layout, kernel: Sequence[int], transposed: bool
) -> Tensor:
    """Undo :func:`pack_weight`.

    Args:
        packed: The packed weight.
        layout: Its layout.
        kernel: Taps per spatial dimension.
        transposed: Whether the convolution is transposed.

    Returns:
        Signs as float32, in the shape of the convolution's weight.

    Raises:
        BinarizeError: The number of bytes does not fit the layout.
    """
    if packed.dtype != torch.uint8 or packed.numel() != layout.bytes:
        raise BinarizeError(
            "weight",
            f"{packed.numel()} x {packed.dtype}",
            f"this convolution's packed weight has {layout.bytes} bytes of uint8",
            "give the result of pack_weight",
        )
    full = (1,) * (3 - len(kernel)) + tuple(kernel)
    signs = torch.empty(layout.groups, layout.out_group, layout.in_group, *full)
    start = 0
    for phase, taps in enumerate(layout.phases):
        count = 8 * layout.counts(phase)[0]
        part = packed.flatten()[start : start + count]
        start += count
        sizes = [len(t) for t in taps]
        if not prod(sizes):
            continue
        if layout.depthwise:
            rows = unpack_signs(part, (prod(sizes), 8 * count // prod(sizes)))
            values = rows[:, : layout.groups].t().reshape(layout.groups, 1, 1, *sizes)
        else:
            values = _phase_values(part, layout, sizes)
        where = [torch.tensor(t) for t in taps]
        signs[:, :, :, where[0][:, None, None], where[1][:, None], where[2]] = values
    if transposed:
        signs = signs.transpose(1, 2)
    return signs.flatten(0, 1).reshape(-1, signs.shape[2], *kernel)


def _phase_values(part: Tensor, layout: Layout, sizes: list[int]) -> Tensor:
    steps = prod(sizes[:2]) if layout.folded else prod(sizes)
    blocks = -(-layout.out_group // LANES)
    lanes = part.view(layout.groups, blocks, steps, layout.words, LANES, 8)
    rows = lanes.permute(0, 1, 4, 2, 3, 5).flatten(4).flatten(1, 2)[:, : layout.out_group]
    values = unpack_signs(rows.flatten(), (*rows.shape[:3], rows.shape[3] * 8))
    if layout.folded:
        values = values[..., : sizes[2] * layout.in_group].unflatten(3, (sizes[2], -1))
        return values.permute(0, 1, 4, 2, 3).unflatten(3, sizes[:2])
    return values[..., : layout.in_group].permute(0, 1, 3, 2).unflatten(3, sizes)
