"""The channel-adaptive full-precision bypass as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from binarize.ops.bypass import channel_adaptive_bypass, resample_bypass

__all__ = ["ChannelAdaptiveBypass", "ShortcutBypass"]


class ChannelAdaptiveBypass(nn.Module):
    """Parameter-free identity path around a binary layer, BiDense Section 3.3.

    Args:
        out_channels: Channels of the layer's output.
        grouping: Channel groups of the fusion-down, ``"contiguous"`` or ``"interleaved"``.
        resample: How a map of another size is brought to the output's: ``"pool"``, ``"crop"`` or
            ``"nearest"`` (see :func:`binarize.ops.resample_bypass`); ``None`` where sizes agree.
        channel_dim: 1 for maps (N, C, *spatial), -1 for channels-last tensors.
    """

    def __init__(
        self,
        out_channels: int,
        *,
        grouping: str = "contiguous",
        resample: str | None = None,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.grouping = grouping
        self.resample = resample
        self.channel_dim = channel_dim

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Carry ``x`` to ``out_channels`` channels and spatial ``size``."""
        if self.resample is not None:
            x = resample_bypass(x, size, mode=self.resample)
        dim = self.channel_dim % x.dim()
        return channel_adaptive_bypass(x, self.out_channels, grouping=self.grouping, dim=dim)

    def extra_repr(self) -> str:
        return f"{self.out_channels}, grouping={self.grouping!r}, resample={self.resample!r}"


class ShortcutBypass(nn.Module):
    """Stands where a projection shortcut (strided 1x1 convolution and norm) stood.

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
        super().__init__()
        self.geometry = tuple(zip(kernel_size, stride, padding, dilation, strict=True))
        self.bypass = ChannelAdaptiveBypass(out_channels, grouping=grouping, resample="pool")

    def forward(self, x: Tensor) -> Tensor:
        """Pool and fuse ``x`` to the shape that the projection would have returned."""
        size = [
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, (kernel, stride, padding, dilation) in zip(
                x.shape[2:], self.geometry, strict=True
            )
        ]
        return self.bypass(x, size)
