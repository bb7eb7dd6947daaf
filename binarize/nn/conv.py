"""Binary convolutions, plain and transposed, in one to three dimensions.

Shapes: (N, C_in, *spatial) to (N, C_out, *spatial of the convolution's output).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.nn.base import BinaryLayer, check_floating
from binarize.nn.spec import UnitSpec
from binarize.ops.convolution import Geometry

__all__ = [
    "BiConv1d",
    "BiConv2d",
    "BiConv3d",
    "BiConvTranspose1d",
    "BiConvTranspose2d",
    "BiConvTranspose3d",
    "convolution_geometry",
    "pre_pads",
    "same_padding",
]


def same_padding(length: int, effective_kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding of one dimension, before and after, in pixels.

    Args:
        length: Of the feature map.
        effective_kernel: Pixels that the kernel spans, ``dilation * (kernel - 1) + 1``.
        stride: Of the convolution.
    """
    # Avoids negative numbers, which other languages than Python divide differently.
    total = max(((length + stride - 1) // stride - 1) * stride + effective_kernel - length, 0)
    return total // 2, total - total // 2


def pre_pads(conv: Any, size: Sequence[int]) -> list[int]:
    """Return the padding before a convolution's own, as :func:`torch.nn.functional.pad` takes it.

    Args:
        conv: A convolution with ``pre_padding``: ``None``, a tuple, or ``"same"``.
        size: Of the feature map.
    """
    if not isinstance(conv.pre_padding, str):
        return list(conv.pre_padding or ())
    pads: list[int] = []
    sides = zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    for length, kernel, stride, dilation in reversed(list(sides)):
        pads += same_padding(length, dilation * (kernel - 1) + 1, stride)
    return pads


def convolution_geometry(conv: Any, x: Tensor) -> Geometry:
    """Return a convolution's geometry including its zero padding.

    Args:
        conv: A convolution with ``pre_padding``, see :func:`pre_pads`.
        x: Its input (N, C_in, *spatial).
    """
    none = (0,) * len(conv.stride)
    pads, own = pre_pads(conv, x.shape[2:]), none
    if conv.padding_mode == "zeros" and conv.padding == "same":
        around = conv._reversed_padding_repeated_twice
        pads = [a + b for a, b in zip_longest(pads, around, fillvalue=0)]
    elif conv.padding_mode == "zeros" and conv.padding != "valid":
        own = conv.padding
    return Geometry(conv.stride, own, conv.dilation, False, none, conv.groups, pads)


class _BiConvNd(BinaryLayer):
    """Takes its geometry from torch's convolution, the next class in the MRO."""

    spatial: int

    def __init__(
        self,
        *args: Any,
        unit: UnitSpec | None = None,
        bypass: bool = True,
        pre_padding: str | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, bias=False, **kwargs)
        self.pre_padding = pre_padding
        conv: Any = self
        self._build_unit(
            unit or UnitSpec(),
            conv.in_channels,
            conv.out_channels,
            spatial=self.spatial,
            stride=conv.stride,
            surplus=self._surplus(),
            bypass=bypass,
        )

    def _surplus(self) -> list[int]:
        """Return the surplus for the bypass, see :func:`binarize.ops.resample_bypass`."""
        conv: Any = self
        if isinstance(self.pre_padding, str):
            # With SAME padding, H pixels give ceil(H / stride) outputs for any kernel.
            return [s - 1 for s in conv.stride]
        effective_kernel = [
            d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)
        ]
        if conv.padding == "same":
            padding = [r - 1 for r in effective_kernel]
        else:
            single = (0,) * self.spatial if conv.padding == "valid" else conv.padding
            padding = [2 * p for p in single]
        pre_padding = list(self.pre_padding or ())
        for d in range(self.spatial):
            # Pairs are in the order of torch.nn.functional.pad: last dimension first.
            padding[d] += sum(int(p) for p in pre_padding[2 * (self.spatial - 1 - d) :][:2])
        return [p - r + s for p, r, s in zip(padding, effective_kernel, conv.stride, strict=True)]

    @property
    def popcount_exact(self) -> bool:
        """As in the base class; in a depthwise convolution, scales per channel factor out, too."""
        conv: Any = self
        depthwise = conv.groups == conv.in_channels
        return (self.binarizer.popcount_exact or depthwise) and self.quantizer.popcount_exact

    def forward(self, input: Tensor) -> Tensor:
        """Run the binary layer on a feature map (N, C_in, *spatial)."""
        check_floating(input)
        conv: Any = self
        geometry = convolution_geometry(self, input)
        if conv.padding_mode == "zeros":
            return self._finish(self._sum(input, geometry), input)
        how: list[Any]
        *how, pads = geometry

        def widen(binary: Tensor) -> Tensor:
            binary = F.pad(binary, list(pads))
            return F.pad(binary, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)

        return self._finish(self._sum(input, Geometry(*how), widen), input)

    def _around(self, x: Tensor, y: Tensor) -> Tensor:
        path = super()._around(x, y)
        if isinstance(self.pre_padding, str) and torch.compiler.is_exporting():
            # Both have the same size for every input, which an export cannot prove.
            path = F.interpolate(path, size=y.shape[2:], mode="nearest")
        return path


class BiConv2d(_BiConvNd, nn.Conv2d):
    """2-D binary convolution, the BiDense block (Section 3.4, Fig. 2).

    ``y = norm(conv(binarizer(x), scale * sign(weight))) + bypass(x)``. Zero padding adds zeros
    to the binarized feature map; other padding modes repeat binarized values.

    Args:
        *args: ``in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups, padding_mode, device, dtype`` as in :class:`torch.nn.Conv2d`. There is no
            ``bias``: the norm has one.
        **kwargs: The same by keyword.
        unit: The parts by name; BiDense's by default.
        bypass: False omits the bypass whatever ``unit`` says.
        pre_padding: Zero padding around the binarized feature map before the convolution's own: a
            tuple as in ``torch.nn.functional.pad`` (it may be asymmetric), or ``"same"`` for
            TensorFlow's SAME, which depends on the size and also works with a stride.

    Shapes: (N, C_in, H, W) to (N, C_out, H', W') of the convolution.

    Raises:
        BinarizeError: The input is not floating point.
    """

    spatial = 2


class BiConv1d(_BiConvNd, nn.Conv1d):
    """1-D binary convolution; see :class:`BiConv2d`."""

    spatial = 1


class BiConv3d(_BiConvNd, nn.Conv3d):
    """3-D binary convolution; see :class:`BiConv2d`."""

    spatial = 3


class _BiConvTransposeNd(BinaryLayer):
    """Takes its geometry from torch's transposed convolution."""

    spatial: int

    def __init__(
        self, *args: Any, unit: UnitSpec | None = None, bypass: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, bias=False, **kwargs)
        conv: Any = self
        unit = unit or UnitSpec()
        per_output = unit.transposed_scale == "output-channel"
        self._build_unit(
            unit,
            conv.in_channels,
            conv.out_channels,
            spatial=self.spatial,
            scale_dim=1 if per_output else 0,
            groups=conv.groups if per_output else 1,
            bypass=bypass,
        )

    @property
    def popcount_exact(self) -> bool:
        """As in the base class; a scale per input channel stays inside the channel sum."""
        # Without super(): Dynamo of torch 2.8 does not find a property that way.
        parts = bool(self.binarizer.popcount_exact and self.quantizer.popcount_exact)
        return parts and self.spec.transposed_scale == "output-channel"

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Run the binary layer on a feature map (N, C_in, *spatial)."""
        check_floating(input)
        conv: Any = self
        output_padding = conv._output_padding(
            input,
            output_size,
            conv.stride,
            conv.padding,
            conv.kernel_size,
            self.spatial,
            conv.dilation,
        )
        y = self._sum(
            input,
            Geometry(
                conv.stride, conv.padding, conv.dilation, True, tuple(output_padding), conv.groups
            ),
        )
        if self.bypass is not None:
            input = F.interpolate(input, size=y.shape[2:], mode="nearest")
        return self._finish(y, input)


class BiConvTranspose2d(_BiConvTransposeNd, nn.ConvTranspose2d):
    """2-D binary transposed convolution; its bypass is resampled to the nearest neighbor.

    Args:
        *args: ``in_channels, out_channels, kernel_size, stride, padding,
            output_padding, groups, dilation, device, dtype`` as in
            :class:`torch.nn.ConvTranspose2d`. There is no ``bias``: the norm has one.
        **kwargs: The same by keyword.
        unit: The parts by name; BiDense's by default.
        bypass: False omits the bypass whatever ``unit`` says.

    Shapes: (N, C_in, H, W) to (N, C_out, H', W') of the transposed convolution.

    Raises:
        BinarizeError: The input is not floating point.
    """

    spatial = 2


class BiConvTranspose1d(_BiConvTransposeNd, nn.ConvTranspose1d):
    """1-D binary transposed convolution; see :class:`BiConvTranspose2d`."""

    spatial = 1


class BiConvTranspose3d(_BiConvTransposeNd, nn.ConvTranspose3d):
    """3-D binary transposed convolution; see :class:`BiConvTranspose2d`."""

    spatial = 3
