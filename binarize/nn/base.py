"""What all 1-bit layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.binarizers import BINARIZERS
from binarize.nn.bypass import ChannelAdaptiveBypass
from binarize.nn.spec import UnitSpec
from binarize.nn.weights import WEIGHTS
from binarize.ops.bits import pack_signs, unpack_signs

__all__ = ["BinaryLayer", "check_floating"]

_BATCH_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)


def check_floating(x: Tensor) -> None:
    """Refuse integer images with a message that says what to do."""
    if not x.is_floating_point():
        raise BinarizeError(
            "input", x.dtype, "a binary layer needs floating-point input", "convert it: x.float()"
        )


class BinaryLayer(nn.Module):
    """A 1-bit layer: ``norm(layer(binarizer(x), quantizer(weight))) + bypass(x)``.

    Attributes:
        weight: Latent float weight; shape and name are those of the float layer's.
        binarizer: Activation binarizer.
        quantizer: Weight binarizer.
        norm: Norm on the output; its bias stands in for the layer's.
        bypass: Full-precision path around the layer, or ``None``.
        spec: The parts by name.
    """

    weight: Any
    binarizer: Any
    quantizer: Any
    norm: nn.Module
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
        self.quantizer = WEIGHTS[spec.weight](scale_dim, groups)
        self.norm = _BATCH_NORMS[spatial](out_channels)
        self.bypass = None
        if bypass and spec.bypass is not None:
            self.bypass = ChannelAdaptiveBypass(
                out_channels,
                grouping=spec.bypass,
                stride=stride,
                surplus=surplus,
                channel_dim=channel_dim,
            )
        self.to(device=self.weight.device, dtype=self.weight.dtype)

    @property
    def popcount_exact(self) -> bool:
        """Whether XNOR-popcount with one factor per output channel gives this layer's result."""
        return bool(self.binarizer.popcount_exact and self.quantizer.popcount_exact)

    def binary_weight(self) -> tuple[Tensor, Tensor]:
        """The weight in use, as signs and scale.

        Returns:
            Signs (-1 or +1, shape of ``weight``) and a scale that broadcasts to them.
        """
        scale = self.quantizer.spread(self.quantizer.scale(self.weight), self.weight)
        return torch.where(self.weight.detach() < 0, -1.0, 1.0).to(scale.dtype), scale

    def packed_weight(self) -> tuple[Tensor, Tensor]:
        """The weight as it is stored.

        Returns:
            Bits (uint8, see :func:`binarize.ops.pack_signs`) and scales (1-D).
        """
        return pack_signs(self.weight), self.quantizer.scale(self.weight)

    def load_packed_weight(self, bits: Tensor, scale: Tensor) -> None:
        """Set the latent weight to signs times scale; it binarizes to exactly these two.

        Args:
            bits: From :meth:`packed_weight`.
            scale: From :meth:`packed_weight`.
        """
        with torch.no_grad():
            signs = unpack_signs(bits, self.weight.shape, self.weight.dtype).to(self.weight.device)
            self.weight.copy_(signs * self.quantizer.spread(scale.to(signs), signs))
