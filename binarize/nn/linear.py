"""Binary linear layer.

Shapes: (N, *positions, C_in) to (N, *positions, C_out).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from binarize.nn.base import BinaryLayer, check_floating
from binarize.nn.spec import UnitSpec
from binarize.ops.convolution import Geometry

__all__ = ["BiLinear"]


class BiLinear(BinaryLayer, nn.Linear):
    """Binary linear layer: a 1x1 convolution on channels-last tensors, with the same parts.

    Statistics are over all positions of a sample; the norm is over the channels.

    Args:
        in_features: C_in.
        out_features: C_out.
        unit: The parts by name; BiDense's by default.
        bypass: False omits the bypass whatever ``unit`` says.
        **kwargs: ``device`` and ``dtype`` of the parameters.

    Shapes: (N, *positions, C_in) to (N, *positions, C_out).

    Raises:
        BinarizeError: The input is not floating point.

    Deviation: the released 1-D layers omit the -1 in the scale and use a plain shifted sign,
    centered weights and LayerNorm; this layer is the 2-D block in another layout.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        unit: UnitSpec | None = None,
        bypass: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias=False, **kwargs)
        self._build_unit(unit or UnitSpec(), in_features, out_features, spatial=0, bypass=bypass)

    def forward(self, input: Tensor) -> Tensor:
        """Run the binary layer on a tensor (N, *positions, C_in)."""
        check_floating(input)
        y = self._sum(input, Geometry())
        rows = self._finish(y.reshape(-1, self.out_features), input.reshape(-1, self.in_features))
        return rows.view(y.shape)
