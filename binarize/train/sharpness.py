"""Sharpness-aware minimisation: weights in flat regions of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Sharpness"]


class Sharpness:
    r"""Moves weights to where the loss is largest nearby, and back.

    .. math::
        \hat w = w + \rho \, \frac{g(w)}{\lVert g(w) \rVert_2}, \qquad
        w \leftarrow w - \eta \, g(\hat w)

    with g the gradient of the batch's loss and the norm over all parameters (Foret, Kleiner,
    Mobahi, Neyshabur 2021, "Sharpness-aware minimization for efficiently improving
    generalization", Algorithm 1). Each process, and each batch of an accumulated update, moves by
    its own gradient, which the authors call m-sharpness. A step costs two passes.

    Args:
        network: The network; the first pass leaves its norms' statistics unchanged.
        radius: ρ, positive.
    """

    def __init__(self, network: nn.Module, radius: float) -> None:
        self.radius = radius
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._norms: Sequence[nn.Module] = [
            m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)
        ]
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def move(self, loss: Callable[[], Tensor]) -> None:
        """Move the weights uphill.

        Args:
            loss: Computes the loss whose gradient gives the direction.
        """
        with torch.enable_grad(), self._statistics_unchanged():
            gradients = torch.autograd.grad(loss(), self._parameters, allow_unused=True)
        known = [g for g in gradients if g is not None]
        if not known:
            return
        norm = torch.stack([g.float().norm() for g in known]).norm()
        factor = self.radius / norm.clamp(min=1e-12)
        self._kept = [p.detach().clone() for p in self._parameters]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                parameter.add_(gradient * factor)

    @torch.no_grad()
    def restore(self) -> None:
        """Move the weights back, to the same bits."""
        for parameter, kept in zip(self._parameters, self._kept, strict=bool(self._kept)):
            parameter.copy_(kept)
        self._kept = []

    @contextmanager
    def _statistics_unchanged(self) -> Iterator[None]:
        before = [{name: b.clone() for name, b in norm.named_buffers()} for norm in self._norms]
        try:
            yield
        finally:
            for norm, buffers in zip(self._norms, before, strict=True):
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])
