"""The channel-adaptive full-precision bypass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from binarize.ops.bypass import channel_adaptive_bypass, resample_bypass

__all__ = ["ChannelAdaptiveBypass", "ShortcutBypass", "make_bypass"]

IDENTITY = "identity"


class ChannelAdaptiveBypass(nn.Module):
    """A parameter-free identity path around a binary layer, BiDense Section 3.3.

    Args:
        out_channels: Channels of the layer's output.
        grouping: Channel groups of the fusion-down, ``"contiguous"`` or ``"interleaved"``.
        stride: The convolution's stride, in pixels per spatial dimension.
        surplus: See :func:`binarize.ops.resample_bypass`. With stride 1 and surplus 0 in every
            dimension, the size does not change.
        channel_dim: 1 for feature maps (N, C, *spatial), -1 for channels-last tensors.
    """

    def __init__(
        self,
        out_channels: int,
        *,
        grouping: str = "contiguous",
        stride: Sequence[int] = (),
        surplus: Sequence[int] = (),
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.grouping = grouping
        self.stride = tuple(stride)
        self.surplus = tuple(surplus)
        self.channel_dim = channel_dim
        self.resamples = any(s != 1 for s in self.stride) or any(self.surplus)

    def forward(self, x: Tensor) -> Tensor:
        """Resample ``x`` to the channels and the spatial size of the layer's output."""
        if self.resamples:
            x = resample_bypass(x, self.stride, self.surplus)
        dim = self.channel_dim % x.dim()
        return channel_adaptive_bypass(x, self.out_channels, grouping=self.grouping, dim=dim)

    def extra_repr(self) -> str:
        return f"{self.out_channels}, grouping={self.grouping!r}, stride={self.stride}"


def make_bypass(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    stride: Sequence[int],
    surplus: Sequence[int],
    channel_dim: int,
) -> ChannelAdaptiveBypass | None:
    """Build the bypass of a layer by name.

    Args:
        name: A channel grouping of :class:`ChannelAdaptiveBypass`; or ``"identity"``, the plain
            shortcut of Bi-Real Net, for layers whose output has the shape of their input.
        in_channels: Channels of the layer's input.
        out_channels: Channels of its output.
        stride: Of the convolution; empty for linear and transposed layers.
        surplus: See :func:`binarize.ops.resample_bypass`.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Returns:
        The bypass; ``None`` if the named one does not fit the layer.
    """
    if name != IDENTITY:
        return ChannelAdaptiveBypass(
            out_channels, grouping=name, stride=stride, surplus=surplus, channel_dim=channel_dim
        )
    plain = ChannelAdaptiveBypass(
        out_channels, stride=stride, surplus=surplus, channel_dim=channel_dim
    )
    is_map = channel_dim == 1
    same = in_channels == out_channels and not plain.resamples and (bool(stride) or not is_map)
    return plain if same else None


class ShortcutBypass(ChannelAdaptiveBypass):
    """Replaces a projection shortcut (strided 1x1 convolution and norm).

    Args:
        out_channels: Channels of the projection's output.
        kernel_size: The projection's kernel, in pixels per spatial dimension.
        stride: The projection's stride.
        padding: The projection's zero padding.
        dilation: The projection's dilation.
        grouping: Channel groups of the fusion-down, ``"contiguous"`` or ``"interleaved"``.
    """

    def __init__(
        self,
        out_channels: int,
        *,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        grouping: str = "contiguous",
    ) -> None:
        surplus = [
            2 * p - d * (k - 1) - 1 + s
            for k, s, p, d in zip(kernel_size, stride, padding, dilation, strict=True)
        ]
        super().__init__(out_channels, grouping=grouping, stride=stride, surplus=surplus)
