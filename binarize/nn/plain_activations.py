"""Parameter-free activations, for methods that binarize at a fixed zero.

After a ReLU, a sign at 0 is +1 everywhere, so such methods do not use ReLUs.
"""

from __future__ import annotations

from torch import nn

__all__ = ["HardTanh", "NoActivation"]


class HardTanh(nn.Hardtanh):
    """``min(max(x, -1), 1)`` between norm and sign, as in BNN, XNOR-Net, DoReFa-Net and IR-Net.

    Args:
        channels: Number of channels; any.
        channel_dim: Where they are; any.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__()


class NoActivation(nn.Identity):
    """No activation: in Bi-Real Net the signs are the only nonlinearity.

    Args:
        channels: Number of channels; any.
        channel_dim: Where they are; any.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__()
