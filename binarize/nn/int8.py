"""8-bit layers, for layers that lose too much with one bit.

Shapes: those of the float layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.nn.base import check_floating
from binarize.nn.conv import convolution_geometry, pre_pads
from binarize.nn.input_range import InputRange
from binarize.nn.treated import StoredParts, TreatedLayer
from binarize.ops.convolution import Geometry
from binarize.ops.rounding import round_weight, rounded_convolution

__all__ = [
    "LARGEST",
    "Int8Conv1d",
    "Int8Conv2d",
    "Int8Conv3d",
    "Int8ConvTranspose1d",
    "Int8ConvTranspose2d",
    "Int8ConvTranspose3d",
    "Int8Layer",
    "Int8Linear",
    "assume_ranges",
]

LARGEST = 63
"""The largest code of a weight. x86 processors without VNNI add pairs of products in 16 bits:
2 · 255 · 63 fits, 2 · 255 · 127 does not. This way, all processors give the same result."""

# Significant bits of a scale: with the 6 bits of a code they fit float32, so loading is exact.
_SCALE_BITS = 16


class Int8Layer(TreatedLayer):
    r"""A layer with 8-bit weights and activations: ``layer(round(x), round(weight))``.

    Weights are symmetric with one scale per output channel o, activations are affine with one range
    per tensor (:class:`~binarize.nn.input_range.InputRange`):

    .. math::
        s_o = \max |W_o| / 63, \qquad \hat W_o = s_o \operatorname{round}(W_o / s_o)

    Bias and everything after the layer use floating point in training. When packed, sums are 32-bit
    integers, and a norm after the layer is folded into its scales. The latent weight's gradient is
    that of :math:`\hat W` (straight-through). See Jacob et al., Quantization and Training of
    Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018.

    Deviation: 127 levels per weight instead of 255, see ``LARGEST``.

    Attributes:
        weight: Latent float weight, as in the float layer.
        bias: As in the float layer.
        input_range: The range of the input.
    """

    input_range: InputRange
    bias: Any
    groups = 1
    transposed = False

    def _start(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        self.weight, self.bias = weight, bias
        self.input_range = InputRange().to(device=weight.device)

    @property
    def weight_bits(self) -> int:
        """8."""
        return 8

    @property
    def activation_bits(self) -> int:
        """8."""
        return 8

    @property
    def coding(self) -> str:
        """Describe the coding; the output channels' dimension depends on the kind of layer."""
        return f"int8, transposed={self.transposed}, groups={self.groups}"

    # Weights

    def _rows(self, weight: Tensor) -> Tensor:
        """Reshape a weight to (output channels, weights of each), copying if necessary."""
        if not self.transposed:
            return weight.flatten(1)
        grouped = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return grouped.flatten(0, 1).flatten(1)

    def _spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Reshape numbers per output channel so that they broadcast to a weight."""
        ones = (1,) * (weight.dim() - 2)
        if not self.transposed:
            return scale.view(-1, 1, *ones)
        per_input = scale.view(self.groups, 1, -1).expand(-1, weight.shape[0] // self.groups, -1)
        return per_input.reshape(weight.shape[0], -1, *ones)

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        """Return scales (C_out), float32; 1 for a channel of zeros."""
        largest = self._rows(weight.detach()).float().abs().amax(1)
        mantissa, exponent = torch.frexp(largest / LARGEST)
        # Rounded up, so no weight is clipped.
        mantissa = torch.ceil(mantissa * 2**_SCALE_BITS) / 2**_SCALE_BITS
        scale = torch.ldexp(mantissa, exponent)
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    @torch.no_grad()
    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the codes of a weight, -63 to 63, in the weight's shape and float32."""
        return round_weight(weight, self._spread(scale, weight), LARGEST).float()

    def rounded_weight(self) -> Tensor:
        """Return the effective weight; its gradient is the latent weight's."""
        weight: Tensor = self.weight
        step = self._spread(self.scale(weight), weight)
        value = (round_weight(weight, step, LARGEST) * step).to(weight.dtype)
        return value + (weight - weight.detach()) if weight.requires_grad else value

    def _fuses(self, x: Tensor) -> bool:
        """Check whether rounding and convolution run as one function, to save memory.

        They do not if the rounding has hooks, which need its input and output.
        """
        part, learned = self.input_range, (x, self.weight, self.bias)
        return (
            torch.is_grad_enabled()
            and any(tensor is not None and tensor.requires_grad for tensor in learned)
            and x.numel() > 0
            and not (part._forward_hooks or part._forward_pre_hooks)
        )

    def _run_fused(self, x: Tensor, geometry: Geometry) -> Tensor:
        weight: Tensor = self.weight
        step = self._spread(self.scale(weight), weight)
        terms = self.input_range.terms(x)
        return rounded_convolution(x, *terms, weight, step, self.bias, geometry, LARGEST)

    # Storage

    def stored_parts(self, weight: Tensor) -> StoredParts:
        """Return dtypes and shapes of codes and scales."""
        channels = weight.shape[1] * self.groups if self.transposed else weight.shape[0]
        return {
            "int8": (torch.int8, tuple(weight.shape)),
            "scale": (torch.float32, (channels,)),
        }

    def packed_weight(self) -> tuple[Tensor, ...]:
        """Return codes (int8, the weight's shape) and scales (C_out)."""
        scale = self.scale(self.weight)
        return self.codes(self.weight, scale).to(torch.int8), scale

    def load_packed_weight(self, *parts: Tensor) -> None:
        """Set the latent weight to the stored one."""
        codes, scale = parts
        with torch.no_grad():
            wide = codes.to(torch.promote_types(self.weight.dtype, torch.float32))
            self.weight.copy_(wide * self._spread(scale.float(), codes).to(wide.device))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits=8"


def assume_ranges(network: nn.Module) -> None:
    """Give a range to 8-bit layers that have observed none, where values do not matter, in place.

    Args:
        network: The network.
    """
    for layer in network.modules():
        if isinstance(layer, Int8Layer) and not layer.input_range.is_observed:
            layer.input_range.observe(torch.tensor([-1.0, 1.0], device=layer.weight.device))


class _Int8ConvNd(Int8Layer):
    """Takes its geometry from torch's convolution, the next class in the MRO."""

    spatial: int

    def __init__(
        self, *args: Any, pre_padding: str | Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pre_padding = pre_padding
        self._start(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Run the layer on feature maps (N, C_in, *spatial)."""
        check_floating(input)
        conv: Any = self
        batched = input.dim() == self.spatial + 2
        if batched and conv.padding_mode == "zeros" and self._fuses(input):
            return self._run_fused(input, convolution_geometry(self, input))
        x = self.input_range(input)
        pads = pre_pads(self, x.shape[-self.spatial :])
        x = F.pad(x, pads) if any(pads) else x
        y: Tensor = conv._conv_forward(x, self.rounded_weight(), self.bias)
        return y


class Int8Conv2d(_Int8ConvNd, nn.Conv2d):
    """2-D 8-bit convolution; see :class:`Int8Layer`.

    Args:
        *args: As in :class:`torch.nn.Conv2d`.
        **kwargs: As in :class:`torch.nn.Conv2d`.
        pre_padding: Zero padding before the convolution's own: a tuple as in
            ``torch.nn.functional.pad``, or ``"same"`` for TensorFlow's SAME.

    Raises:
        BinarizeError: The input is not floating point.
    """

    spatial = 2


class Int8Conv1d(_Int8ConvNd, nn.Conv1d):
    """1-D 8-bit convolution; see :class:`Int8Conv2d`."""

    spatial = 1


class Int8Conv3d(_Int8ConvNd, nn.Conv3d):
    """3-D 8-bit convolution; see :class:`Int8Conv2d`."""

    spatial = 3


class _Int8ConvTransposeNd(Int8Layer):
    """Takes its geometry from torch's transposed convolution."""

    spatial: int
    transposed = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start(self.weight, self.bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Run the layer on feature maps (N, C_in, *spatial)."""
        check_floating(input)
        conv: Any = self
        extra = conv._output_padding(
            input,
            output_size,
            conv.stride,
            conv.padding,
            conv.kernel_size,
            self.spatial,
            conv.dilation,
        )
        if input.dim() == self.spatial + 2 and self._fuses(input):
            place = conv.stride, conv.padding, conv.dilation
            return self._run_fused(input, Geometry(*place, True, tuple(extra), conv.groups))
        run: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.spatial - 1]
        weight = self.rounded_weight()
        how = conv.stride, conv.padding, extra, conv.groups, conv.dilation
        y: Tensor = run(self.input_range(input), weight, self.bias, *how)
        return y


class Int8ConvTranspose2d(_Int8ConvTransposeNd, nn.ConvTranspose2d):
    """2-D 8-bit transposed convolution; see :class:`Int8Layer`.

    Args:
        *args: As in :class:`torch.nn.ConvTranspose2d`.
        **kwargs: As in :class:`torch.nn.ConvTranspose2d`.

    Raises:
        BinarizeError: The input is not floating point.
    """

    spatial = 2


class Int8ConvTranspose1d(_Int8ConvTransposeNd, nn.ConvTranspose1d):
    """1-D 8-bit transposed convolution; see :class:`Int8ConvTranspose2d`."""

    spatial = 1


class Int8ConvTranspose3d(_Int8ConvTransposeNd, nn.ConvTranspose3d):
    """3-D 8-bit transposed convolution; see :class:`Int8ConvTranspose2d`."""

    spatial = 3


class Int8Linear(Int8Layer, nn.Linear):
    """8-bit linear layer; see :class:`Int8Layer`.

    Args:
        *args: As in :class:`torch.nn.Linear`.
        **kwargs: As in :class:`torch.nn.Linear`.

    Raises:
        BinarizeError: The input is not floating point.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Run the layer on a tensor (*positions, C_in)."""
        check_floating(input)
        if self._fuses(input):
            return self._run_fused(input, Geometry())
        return F.linear(self.input_range(input), self.rounded_weight(), self.bias)
