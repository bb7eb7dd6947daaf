"""Packed layers: the inference form of binary layers and their activations.

Shapes: those of the original layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from binarize.kernels.activation import shifted_prelu
from binarize.kernels.call import UnitCall
from binarize.kernels.layout import pack_weight
from binarize.kernels.native import counting
from binarize.kernels.ops import run_unit
from binarize.nn.activations import ShiftedPReLU
from binarize.nn.base import BinaryLayer, check_floating
from binarize.nn.conv import same_padding
from binarize.nn.folding import folded_padding, kernel_padding_mode, obstacle_to_counting
from binarize.nn.likeness import WeightOfOld, likeness, make_alike, mixed
from binarize.nn.packed_planes import OtherPlanes, Plane, planes_of
from binarize.nn.single import Single
from binarize.nn.treated import TreatedLayer
from binarize.nn.weight_binarizers import ScaledSign
from binarize.ops.bits import unpack_bits

__all__ = [
    "PackedActivation",
    "PackedLinear",
    "PackedUnit",
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
        quantizer: Any = layer.quantizer
        planes = planes_of(layer, quantizer.planes(bits, scale, _shell(layer.weight.shape, scale)))
        cls = PackedLinear if isinstance(layer, nn.Linear) else PackedUnit
        twin = cls(layer, planes.last, planes.offset, whole=True)
        if not planes.is_single:
            twin.rest = OtherPlanes(layer, planes, lambda plane: PackedUnit(layer, plane))
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


class PackedUnit(WeightOfOld, Single):
    """A binary convolution, plain or transposed, on the XNOR-popcount kernel.

    ``y = gain * alpha * popcount sum + offset + bypass``: the norm and the weight scale are folded
    into gain and offset; the binarizer is given by its :class:`ThresholdForm`. That is one kernel
    call. The sums of some layers have more planes, which ``rest`` counts and this call adds, see
    :mod:`binarize.nn.packed_planes`.

    Args:
        layer: The layer to pack, in eval mode.
        plane: What to count.
        offset: Constant to add, one per output channel; 0 by default.
        whole: Whether to apply what follows the layer's sum: its bypass and inner activation.

    Shapes: (N, C_in, *spatial) to (N, C_out, *spatial of the convolution's output).

    Attributes:
        kernel: The kernel function; an exporter may set it to an equivalent in plain torch.
        rest: The other planes, or ``None``.

    Raises:
        BinarizeError: The input is not floating point.
    """

    bits: Tensor
    gain: Tensor
    offset: Tensor
    mean_gain: Tensor | None
    threshold: Tensor
    flip: Tensor | None
    exponent: Tensor | None
    kernel: Any = staticmethod(run_unit)

    def __init__(
        self, layer: Any, plane: Plane, offset: Tensor | None = None, whole: bool = False
    ) -> None:
        super().__init__()
        self.remember(layer)
        spatial = max(layer.weight.dim() - 2, 2 if isinstance(layer, nn.Linear) else 1)
        ones = (1,) * spatial
        self.transposed: bool = getattr(layer, "transposed", False)
        self.kernel_size = tuple(getattr(layer, "kernel_size", ones))
        self.stride = tuple(getattr(layer, "stride", ones))
        self.dilation = tuple(getattr(layer, "dilation", ones))
        self.output_padding = tuple(getattr(layer, "output_padding", (0,) * spatial))
        self.groups: int = getattr(layer, "groups", 1)
        self.padding_mode = kernel_padding_mode(layer)
        self.pads, self.offset_of_bypass = folded_padding(layer, spatial)
        self.same = getattr(layer, "pre_padding", None) == "same"
        self.rest: nn.Module | None = None
        form, gain = plane.form, plane.gain
        several = form.more is not None
        # The kernel's activation follows the bypass: an inner one keeps both out of the kernel. So
        # does a map of signs in the place of the feature map that the bypass reads.
        self.inner = packed_activation(layer.inner) if whole else None
        outside = layer.inner is not None or several
        self.around = layer.bypass if whole and outside else None
        inside = whole and not outside and layer.bypass is not None
        self.bypass = str(layer.bypass.grouping) if inside else "none"
        self.hold(
            bits=pack_weight(
                plane.signs.reshape((*plane.signs.shape, *ones)[: 2 + spatial]),
                stride=self.stride,
                dilation=self.dilation,
                groups=self.groups,
                transposed=self.transposed,
            ),
            gain=gain if form.factor is None else gain * form.factor.double(),
            offset=torch.zeros_like(gain) if offset is None else offset,
            mean_gain=form.k,
            threshold=torch.full_like(form.b, 0.5) if several else form.b,
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
        x, others = input.float(), []
        if self.rest is not None:
            x, others = self.rest(x, self, output_size)
        return self.count(x, output_size, others).to(input.dtype)

    def count(
        self, x: Tensor, output_size: list[int] | None = None, others: Sequence[Tensor] = ()
    ) -> Tensor:
        """Count the plane.

        Args:
            x: The feature map in float32.
            output_size: Of a transposed convolution.
            others: Feature maps to add to the result.
        """
        stride, padding, dilation, groups, padding_mode, transposed, output_padding = self.geometry(
            x, output_size
        )
        call = UnitCall(
            sources=[x],
            upsample=[1],
            means=[],
            weight=self.bits,
            gain=self.gain,
            offset=self.offset,
            mean_gain=self.mean_gain,
            threshold=self.threshold,
            flip=self.flip,
            exponent=self.exponent,
            kernel=self.kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            transposed=transposed,
            output_padding=output_padding,
            bypass=self.bypass,
            bypass_offset=self.offset_of_bypass,
            residuals=list(others),
            act_shift=None,
            act_slope=None,
            act_out_shift=None,
            want_means=False,
        )
        y, _ = self.kernel(*call)
        return y  # type: ignore[no-any-return]

    def geometry(self, x: Tensor, output_size: list[int] | None = None) -> tuple[Any, ...]:
        """Return how the convolution moves over an input.

        Args:
            x: The input.
            output_size: Of a transposed convolution.

        Returns:
            Stride, padding, dilation, groups, padding mode, whether it is transposed, and output
            padding, as the kernel takes them.
        """
        padding = self._pad_to_same(x) if self.same else self.pads
        output_padding: Any = self.output_padding
        if output_size is not None:
            output_padding = fitted_output_padding(self, x, output_size, self.pads)
        how = self.dilation, self.groups, self.padding_mode, self.transposed
        return self.stride, padding, *how, output_padding

    @property
    def counts(self) -> int:
        """Number of planes that are counted, its own included."""
        return sum(isinstance(module, PackedUnit) for module in self.modules())

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
        if "rest" not in state["_modules"]:
            state.setdefault("rest", None)  # earlier versions had no layers with several planes
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
        plane: As for :class:`PackedUnit`.
        offset: As for :class:`PackedUnit`.
        whole: As for :class:`PackedUnit`.

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


def packed_activation(activation: nn.Module | None) -> nn.Module | None:
    """Return the packed form of a shifted PReLU; other activations are returned unchanged."""
    if isinstance(activation, ShiftedPReLU):
        return PackedActivation(activation)
    return activation
