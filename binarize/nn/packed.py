"""Packed layers: the inference form of binary layers and their activations.

Shapes: those of the original layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from binarize.kernels.activation import shifted_prelu
from binarize.kernels.layout import pack_weight
from binarize.kernels.native import counting
from binarize.kernels.ops import run_unit
from binarize.nn.activations import ShiftedPReLU
from binarize.nn.base import BinaryLayer, check_floating
from binarize.nn.conv import same_padding
from binarize.nn.folding import folded_norm, folded_padding, obstacle_to_counting
from binarize.nn.likeness import WeightOfOld, likeness, make_alike, mixed
from binarize.nn.treated import TreatedLayer
from binarize.nn.weight_binarizers import ScaledSign
from binarize.ops.bits import unpack_bits

__all__ = [
    "PackedActivation",
    "PackedLinear",
    "PackedUnit",
    "Single",
    "StoredWeight",
    "fitted_output_padding",
    "pack_layer",
    "packed_activation",
]


def pack_layer(layer: BinaryLayer, bits: Tensor, scale: Tensor) -> nn.Module:
    """Pack a binary layer.

    Args:
        layer: The layer; it stays unchanged. Its latent weight is not read and may have no values.
        bits: Signs of its weight, see :meth:`BinaryLayer.packed_weight`.
        scale: Scales of its weight, from the same method.

    Returns:
        A :class:`PackedUnit` or :class:`PackedLinear`, which counts bits. If that would not give
        the layer's result, a copy of the layer that stores its weight as bits
        (:class:`StoredWeight`) and computes in floating point.
    """
    if obstacle_to_counting(layer) is not None:
        twin: Any = _without_weight(layer)
        twin.quantizer = StoredWeight(layer, bits, scale)
    else:
        cls = PackedLinear if isinstance(layer, nn.Linear) else PackedUnit
        twin = cls(layer, bits, scale)
        make_alike(twin, layer, _float_class(layer))
    return twin.eval()


def _float_class(layer: BinaryLayer) -> Any:
    """Return the class of the float layer that a binary layer replaced."""
    return next(cls for cls in type(layer).__mro__ if not issubclass(cls, TreatedLayer))


def _without_weight(layer: BinaryLayer) -> Any:
    """Copy a layer without its latent weight."""
    twin: Any = copy.deepcopy(layer, {id(layer.weight): nn.Parameter(torch.empty(0))})
    twin.weight = None
    cls: Any = type(layer)
    twin.__class__ = mixed(WeightOfOld, cls, cls.__name__)
    twin.remember(layer)
    return twin


class Single(nn.Module):
    """Keeps its numbers in float32, as the kernels require, whatever the network's dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_type(value: Tensor) -> Tensor:
            result = fn(value)
            return result if result.dtype == value.dtype else value.to(result.device)

        return super()._apply(keep_type, recurse)

    def hold(self, **values: Tensor | None) -> None:
        """Register copies of tensors as buffers."""
        for name, value in values.items():
            if value is not None:
                value = value.detach().clone()
                value = value.float() if value.is_floating_point() else value
            self.register_buffer(name, value)


class PackedUnit(WeightOfOld, Single):
    """A binary convolution, plain or transposed, on the XNOR-popcount kernel: one kernel call.

    ``y = gain * alpha * popcount sum + offset + bypass``: the norm and the weight scale are folded
    into gain and offset; the binarizer is given by its :class:`ThresholdForm`.

    Args:
        layer: The layer to pack, in eval mode.
        bits: Signs of its weight, see :meth:`BinaryLayer.packed_weight`.
        scale: Scales of its weight, from the same method.

    Shapes: (N, C_in, *spatial) to (N, C_out, *spatial of the convolution's output).

    Attributes:
        kernel: The kernel function; an exporter may set it to an equivalent in plain torch.

    Raises:
        BinarizeError: The input is not floating point.
    """

    bits: Tensor
    gain: Tensor
    threshold: Tensor
    kernel: Any = staticmethod(run_unit)

    def __init__(self, layer: Any, bits: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.remember(layer)
        spatial = max(layer.weight.dim() - 2, 2 if isinstance(layer, nn.Linear) else 1)
        ones = (1,) * spatial
        shape = (*layer.weight.shape, *ones)[: 2 + spatial]
        self.transposed: bool = getattr(layer, "transposed", False)
        self.kernel_size = tuple(getattr(layer, "kernel_size", ones))
        self.stride = tuple(getattr(layer, "stride", ones))
        self.dilation = tuple(getattr(layer, "dilation", ones))
        self.output_padding = tuple(getattr(layer, "output_padding", (0,) * spatial))
        self.groups: int = getattr(layer, "groups", 1)
        self.padding_mode: str = getattr(layer, "padding_mode", "zeros")
        self.pads, self.offset_of_bypass = folded_padding(layer, spatial)
        self.same = getattr(layer, "pre_padding", None) == "same"
        # The kernel's activation follows the bypass: an inner one keeps both out of the kernel.
        self.inner = packed_activation(layer.inner)
        self.around = None if layer.inner is None else layer.bypass
        inside = layer.inner is None and layer.bypass is not None
        self.bypass = str(layer.bypass.grouping) if inside else "none"
        form = layer.binarizer.threshold_form()
        gain, offset = folded_norm(layer.norm)
        gain = gain * _factors(layer, scale).detach().double()
        self.hold(
            bits=pack_weight(
                unpack_bits(bits, shape),
                stride=self.stride,
                dilation=self.dilation,
                groups=self.groups,
                transposed=self.transposed,
            ),
            gain=gain if form.factor is None else gain * form.factor.double(),
            offset=offset,
            mean_gain=form.k,
            threshold=form.b,
            flip=form.flip,
            exponent=form.exponent,
        )

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Run the binary layer on a feature map (N, C_in, *spatial)."""
        return self._finish(self._count(input, output_size), input)

    def _finish(self, y: Tensor, input: Tensor) -> Tensor:
        """Apply what the kernel does not: an activation before the bypass."""
        y = y if self.inner is None else self.inner(y)
        return y if self.around is None else y + self.around(input)

    def _count(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        check_floating(input)
        padding = self._pad_to_same(input) if self.same else self.pads
        output_padding: Any = self.output_padding
        if output_size is not None:
            output_padding = fitted_output_padding(self, input, output_size, self.pads)
        y, _ = self.kernel(
            [input.float()],
            [1],
            [],
            self.bits,
            self.gain,
            self.offset,
            self.mean_gain,
            self.threshold,
            self.flip,
            self.exponent,
            self.kernel_size,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.transposed,
            output_padding,
            self.bypass,
            self.offset_of_bypass,
            [],
            None,
            None,
            None,
            False,
        )
        return y.to(input.dtype)

    @property
    def counting(self) -> str:
        """How its bits are counted here, see :func:`binarize.kernels.native.counting`."""
        convolution = self.kernel_size, self.stride, self.dilation, self.groups, self.transposed
        return counting(self.threshold.numel(), self.gain.numel(), *convolution)

    def _pad_to_same(self, x: Tensor) -> list[int]:
        """Return the padding, which here depends on the size."""
        padding = list(self.pads)
        for d, (kernel, stride) in enumerate(zip(self.kernel_size, self.stride, strict=True)):
            effective_kernel = self.dilation[d] * (kernel - 1) + 1
            before, after = same_padding(x.shape[2 + d], effective_kernel, stride)
            padding[2 * d] += before
            padding[2 * d + 1] += after
        return padding

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        if f"{prefix}weight" in state_dict:  # the name in earlier versions
            state_dict[f"{prefix}bits"] = state_dict.pop(f"{prefix}weight")
        super()._load_from_state_dict(state_dict, prefix, *others)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "weight" in state["_buffers"]:  # from an earlier version
            state["_buffers"]["bits"] = state["_buffers"].pop("weight")
            state["pads"] = state["padding"]
        super().__setstate__(state)

    def extra_repr(self) -> str:
        channels = f"{self.threshold.numel()}, {self.gain.numel()}"
        return f"{channels}, kernel_size={self.kernel_size}, stride={self.stride}"


def fitted_output_padding(
    conv: Any, x: Tensor, output_size: list[int], pads: list[int]
) -> list[int]:
    """Return the output padding that gives a transposed convolution the requested size.

    Args:
        conv: The packed convolution.
        x: Its input.
        output_size: The requested size.
        pads: Padding before and after each dimension.
    """
    unbound: Any = _ConvTransposeNd._output_padding
    sizes = conv.stride, pads[::2], conv.kernel_size, len(conv.stride), conv.dilation
    return unbound(conv, x, output_size, *sizes)


class PackedLinear(PackedUnit):
    """A binary linear layer on the XNOR-popcount kernel: a 1x1 convolution, channels last.

    Args:
        layer: As for :class:`PackedUnit`.
        bits: As for :class:`PackedUnit`.
        scale: As for :class:`PackedUnit`.

    Shapes: (N, *positions, C_in) to (N, *positions, C_out).

    Raises:
        BinarizeError: The input is not floating point.
    """

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Run the binary layer on a tensor (N, *positions, C_in)."""
        # A view if the positions are contiguous; (N, C_in, positions, 1).
        rows = input.unsqueeze(1) if input.dim() == 2 else input.flatten(1, -2)
        y = self._count(rows.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        return self._finish(y.reshape(*input.shape[:-1], self.gain.numel()), input)


class PackedActivation(Single):
    """A shifted PReLU in one pass over its feature map.

    Args:
        activation: The activation to pack.

    Shapes: any, with the channels in the dimension that ``activation`` expects.
    """

    slope: Tensor
    kernel: Any = staticmethod(shifted_prelu)

    def __init__(self, activation: ShiftedPReLU) -> None:
        super().__init__()
        self.channel_dim = activation.channel_dim
        self.hold(shift=activation.shift, slope=activation.slope, out_shift=activation.out_shift)
        if likeness(type(activation)) is not type(activation):
            make_alike(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a feature map; same shape and dtype."""
        y, _ = self.kernel(
            x.float(), self.shift, self.slope, self.out_shift, self.channel_dim, False
        )
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.slope.numel()}, out_shift={self.out_shift is not None}"


class StoredWeight(nn.Module):
    """Binary weights stored as bits and unpacked at each use.

    It replaces the weight binarizer of layers whose result counting bits would not give.

    Args:
        layer: The layer; its latent weight is not read.
        bits: Its weight, from :meth:`BinaryLayer.packed_weight`.
        scale: Its scales, from the same method.

    Attributes:
        reason: Why the layer does not count bits.
        popcount_exact: As the layer's own.
    """

    bits: Tensor
    scale: Tensor

    def __init__(self, layer: BinaryLayer, bits: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.quantizer: Any = layer.quantizer
        self.shape = tuple(layer.weight.shape)
        self.reason = obstacle_to_counting(layer)
        self.popcount_exact = bool(self.quantizer.popcount_exact)
        self.register_buffer("bits", bits.clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, weight: None = None) -> Tensor:
        """Return the effective weight, as the layer's own binarizer does."""
        like = _shell(self.shape, self.scale)
        if type(self.quantizer) is ScaledSign:
            # The quantizer maps signs times their scale to themselves.
            scale = self.quantizer.spread(self.scale, like)
            return unpack_bits(self.bits, self.shape).to(scale) * (2 * scale) - scale
        binary: Tensor = self.quantizer(self.quantizer.unpack(self.bits, self.scale, like))
        return binary


def _shell(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor of some shape that takes no memory."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(shape)


def _factors(layer: Any, scale: Tensor) -> Tensor:
    """Return the factors of the signs, which buffers of the weight binarizer may hold."""
    if scale.numel():
        return scale
    factors: Tensor = layer.quantizer.scale(_shell(tuple(layer.weight.shape), scale))
    return factors


def packed_activation(activation: nn.Module | None) -> nn.Module | None:
    """Return the packed form of a shifted PReLU; other activations are returned unchanged."""
    if isinstance(activation, ShiftedPReLU):
        return PackedActivation(activation)
    return activation
