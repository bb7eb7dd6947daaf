r"""``binarize::unit``, the 1-bit runtime's operator, as registered with torch.

It fuses a binary convolution with its prologue and epilogue, because passes over float feature
maps, not popcounts, would otherwise dominate the run time:

.. math::
    t'_{nc} = k_c \bar x_{nc} + b_c, \qquad t = t' - 2^{-18} |t'|, \qquad
    \alpha_n = \exp\bigl(a (\overline{|x_n - t_n|} - 1)\bigr), \qquad
    y = \mathrm{act}\bigl(g_o \alpha_n \textstyle\sum \operatorname{sign}(x - t)
    \operatorname{sign}(w) + d_o + \mathrm{bypass}(x) + \textstyle\sum r\bigr)

Thresholds that depend on a mean lie slightly below it, see :mod:`binarize.ops.ties`. ``means``
holds each source's means per sample and channel, or an empty tensor if they are unknown; an empty
list means that all are unknown. Unknown means are computed in double precision. With ``y_scale``,
the result is written as codes for an 8-bit layer (:mod:`binarize.kernels.int8`), and the means are
those of the values before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize.kernels import native, reference
from binarize.kernels.call import UnitCall

__all__ = ["is_watched", "run_unit", "unit"]

_LIBRARY = torch.library.Library("binarize", "DEF")
_LIBRARY.define(f"unit{UnitCall.schema()}", tags=[torch.Tag.pt2_compliant_tag])


@torch.library.register_fake("binarize::unit", lib=_LIBRARY)
def _fake(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    call = UnitCall(*arguments, **named)
    first = call.sources[0]
    out = call.result_size()
    samples, channels = first.shape[0], call.gain.shape[0]
    # Channels last by strides: a contiguous tensor of symbolic sizes would add guards.
    strides = [channels]
    for length in reversed(out):
        strides.insert(0, strides[0] * length)
    kind = first.dtype if call.y_scale is None else torch.uint8
    shape = samples, channels, *out
    y = first.new_empty_strided(shape, (strides[0], 1, *strides[1:]), dtype=kind)
    return y, first.new_empty((samples, channels) if call.want_means else (0,))


# Every device has the plain implementation; on the CPU the native one replaces it, and falls back
# to the plain one without a library.
_LIBRARY.impl("unit", reference.unit, "CompositeExplicitAutograd")
_LIBRARY.impl("unit", native.unit, "CPU")

unit = torch.ops.binarize.unit.default


def is_watched() -> bool:
    """Return whether operator calls are intercepted: fake tensors, tracers, transforms."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def run_unit(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Run ``binarize::unit``, bypassing torch's dispatcher if nothing intercepts it.

    The dispatcher takes half of a small call's time. While torch traces, compiles, exports or
    profiles, and for tensor sub-classes and other devices, the call goes through it as usual.

    Args:
        *arguments: The fields of a :class:`binarize.kernels.call.UnitCall`.

    Returns:
        The feature map and its means.
    """
    first = arguments[0][0]
    if (
        torch.compiler.is_compiling()
        or type(first) is not Tensor
        or not first.is_cpu
        or is_watched()
        or torch._C._autograd._profiler_enabled()
    ):
        return unit(*arguments)
    return native.unit(*arguments)
