"""The base class of all 1-bit layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.activation_binarizers import DistributionAdaptiveBinarizer
from binarize.nn.bypass import make_bypass
from binarize.nn.parts import ACTIVATIONS, BINARIZERS, WEIGHTS
from binarize.nn.spec import UnitSpec
from binarize.nn.treated import StoredParts, TreatedLayer
from binarize.nn.weight_binarizers import ScaledSign
from binarize.ops.adaptive_sign import adaptive_convolution
from binarize.ops.convolution import Geometry, binary_convolution, convolve, sample_magnitude

__all__ = ["BinaryLayer", "check_floating"]

_BATCH_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)


def check_floating(x: Tensor) -> None:
    """Raise an error for integer inputs that says how to convert them."""
    if not x.is_floating_point():
        raise BinarizeError(
            "input", x.dtype, "a binary layer needs floating-point input", "convert it: x.float()"
        )


class BinaryLayer(TreatedLayer):
    """A 1-bit layer: ``inner(norm(layer(binarizer(x), quantizer(weight)))) + bypass(x)``.

    Attributes:
        weight: Latent float weight, with the float layer's shape and name (if a weight has several
                latent weights, they are stacked along dimension 0).
        binarizer: Activation binarizer.
        quantizer: Weight binarizer.
        norm: Norm on the output; its bias replaces the layer's.
        inner: Activation before the bypass addition, or ``None``.
        bypass: Full-precision path around the layer, or ``None``.
        spec: The parts by name.
        has_bias: Whether the float layer had a bias.
        site: Dotted name of the layer in the converted network, or empty.
        float_weights: Whether the latent weight is used directly, see :meth:`use_float_weights`.
    """

    has_bias = False
    float_weights = False
    binarizer: Any
    quantizer: Any
    norm: nn.Module
    inner: nn.Module | None
    bypass: nn.Module | None
    spec: UnitSpec

    def _build_unit(
        self,
        spec: UnitSpec,
        in_channels: int,
        out_channels: int,
        *,
        spatial: int,
        scale_dim: int = 0,
        groups: int = 1,
        stride: Sequence[int] = (),
        surplus: Sequence[int] = (),
        bypass: bool = True,
    ) -> None:
        channel_dim = 1 if spatial else -1
        self.spec = spec
        self.binarizer = BINARIZERS[spec.binarizer](
            in_channels, channel_dim=channel_dim, **spec.binarizer_options
        )
        self.quantizer = WEIGHTS[spec.weight](scale_dim, groups, **spec.weight_options)
        self.norm = _BATCH_NORMS[spatial](out_channels)
        self.inner = None
        if spec.inner is not None:
            self.inner = ACTIVATIONS[spec.inner](out_channels, channel_dim=channel_dim)
        self.bypass = None
        if bypass and spec.bypass is not None:
            self.bypass = make_bypass(
                spec.bypass,
                in_channels,
                out_channels,
                stride=stride,
                surplus=surplus,
                channel_dim=channel_dim,
            )
        self.to(device=self.weight.device, dtype=self.weight.dtype)
        self.set_weight(self.weight)

    def _bias(self) -> Any:
        if "norm" not in self._modules:
            raise AttributeError("bias")  # not built yet
        return self.norm.bias if self.has_bias else None

    # Replaces the float layer's bias; ``None`` if that had none.
    bias: Any = property(_bias)

    def set_weight(self, weight: nn.Parameter) -> None:
        """Start from the weight of a float layer.

        Args:
            weight: Of the float layer's shape. It becomes the latent weight itself, unless the
                    weight binarizer uses several latent weights.
        """
        with torch.no_grad():
            latent = self.quantizer.latent(weight)
            if latent is not weight:
                weight = nn.Parameter(latent, requires_grad=weight.requires_grad)
            self.weight = weight
            self.quantizer.start(weight)

    def use_float_weights(self, on: bool) -> None:
        """Use the latent weight directly, with binary activations, for a part of the training.

        Saving and packing ignore this: they always use the binary form. Layers with several latent
        weights per weight stay binary.

        Args:
            on: True to use float weights, False to be binary again.
        """
        self.float_weights = on and self.quantizer.copies == 1

    def _fuses(self) -> bool:
        """Check whether binarizer, quantizer and convolution run as one function, to save memory.

        They do not if the parts have hooks, which need their inputs and outputs.
        """
        binarizer, quantizer = self.binarizer, self.quantizer
        return (
            type(binarizer) is DistributionAdaptiveBinarizer
            and type(quantizer) is ScaledSign
            and not (binarizer._forward_hooks or binarizer._forward_pre_hooks)
            and not (quantizer._forward_hooks or quantizer._forward_pre_hooks)
        )

    def _sum(
        self, x: Tensor, geometry: Geometry, widen: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the sum over binary values.

        Args:
            x: The layer's input.
            geometry: How the kernel moves over the input.
            widen: Pads the binarized feature map in a way that ``geometry`` cannot express.
        """
        if self.float_weights:
            values = self.binarizer(x)
            return convolve(values if widen is None else widen(values), self.weight, geometry)
        whole = bool(self.binarizer.popcount_exact and self.popcount_exact)
        if widen is None and self._fuses():
            threshold, exponent, positions, over = self.binarizer.terms(x)
            scale = self.quantizer.spread(self.quantizer.scale(self.weight), self.weight)
            dims = {"positions": positions, "over": over}
            return adaptive_convolution(
                x, threshold, exponent, self.weight, scale, geometry, **dims, whole=whole
            )
        binary = self.binarizer(x)
        magnitude = sample_magnitude(binary) if whole else None
        binary = binary if widen is None else widen(binary)
        return binary_convolution(binary, self.quantizer(self.weight), geometry, magnitude)

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        """Apply what follows the sum: norm, inner activation, and the bypass of ``x``."""
        self._check_values(y, x)
        y = self.norm(y)
        if self.inner is not None:
            y = self.inner(y)
        if self.bypass is None:
            return y
        path = self._around(x, y)
        # Nothing else reads a batch norm's output, not even its own backward pass.
        owned = self.inner is None and isinstance(self.norm, _BATCH_NORMS)
        return y.add_(path) if owned and y.dtype == path.dtype else y + path

    def _check_values(self, y: Tensor, x: Tensor) -> None:
        """Raise an error in training for a single value per channel, which has no variance."""
        norm: Any = self.norm
        if y.numel() != y.shape[1] or type(norm) not in _BATCH_NORMS:
            return
        if not norm.training and norm.running_mean is not None:
            return
        name = f"layer {self.site!r}" if self.site else type(self).__name__
        raise BinarizeError(
            "input",
            tuple(x.shape),
            f"{name} has a BatchNorm, which needs more than one value per channel in training",
            "use a larger batch or larger images, or keep this layer in float: "
            f"overrides={{{self.site or 'name'!r}: 'keep'}}",
        )

    def _around(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the bypass carries of ``x``, to be added to ``y``."""
        path: Tensor = self.bypass(x)  # type: ignore[misc]
        return path

    @property
    def popcount_exact(self) -> bool:
        """Whether XNOR-popcount with one factor per output channel gives the layer's result."""
        return bool(self.binarizer.popcount_exact and self.quantizer.popcount_exact)

    @property
    def weight_bits(self) -> int:
        """Bits per weight of the layer."""
        return int(self.quantizer.bits)

    @property
    def activation_bits(self) -> int:
        """Bits per value of the layer's input."""
        return int(self.binarizer.bits)

    @property
    def weights(self) -> int:
        """Number of weights of the layer, each of ``weight_bits`` bits."""
        return self.weight.numel() // int(self.quantizer.copies)

    def binary_weight(self) -> tuple[Tensor, Tensor]:
        """Return the effective weight as signs and scale, for layers whose popcount sums are exact.

        Returns:
            Signs (-1 or +1, shape of the effective weight) and a scale that broadcasts to them.

        Raises:
            BinarizeError: Signs and one scale cannot represent the weight.
        """
        if not self.quantizer.popcount_exact:
            raise BinarizeError(
                "weight",
                type(self.quantizer).__name__,
                "its values are not signs times one scale",
                "use layer.quantizer(layer.weight)",
            )
        scale = self.quantizer.spread(self.quantizer.scale(self.weight), self.weight)
        return self.quantizer.signs(self.weight).to(scale.dtype), scale

    @property
    def coding(self) -> str:
        """The weight binarizer with its options."""
        return str(self.quantizer)

    def stored_parts(self, weight: Tensor) -> StoredParts:
        """Bits and scales."""
        size, scales = self.quantizer.packed_sizes(weight)
        return {"bits": (torch.uint8, (size,)), "scale": (weight.dtype, (scales,))}

    def packed_weight(self) -> tuple[Tensor, ...]:
        """Return the weight as it is stored.

        Returns:
            Bits (uint8, see :func:`binarize.ops.pack_signs`) and scales (1-D; empty if buffers of
            the weight binarizer hold them).
        """
        bits, scale = self.quantizer.pack(self.weight)
        return bits, scale

    def load_packed_weight(self, *parts: Tensor) -> None:
        """Set the latent weight so that the effective weight is exactly the stored one.

        Args:
            *parts: Bits and scales, from :meth:`packed_weight`. The weight binarizer's buffers must
                already be those of the stored weight.
        """
        bits, scale = parts
        with torch.no_grad():
            self.weight.copy_(self.quantizer.unpack(bits, scale, self.weight))
