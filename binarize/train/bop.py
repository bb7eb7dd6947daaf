"""Bop, an optimizer for binary weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from binarize.errors import BinarizeError

__all__ = ["Bop"]


@dataclass(frozen=True)
class Bop:
    r"""Flips signs of binary weights, and trains everything else by AdamW.

    .. math::
        m_t = (1 - \gamma_t) \, m_{t-1} + \gamma_t \, g_t, \qquad
        w_t = \begin{cases}
            -w_{t-1} & \text{if } |m_t| \ge \tau \text{ and } \operatorname{sign}(m_t) =
                \operatorname{sign}(w_{t-1}) \\
            w_{t-1} & \text{otherwise}
        \end{cases}

    with g the gradient of a latent weight (Helwegen et al. 2019, "Latent weights do not exist:
    rethinking binarized neural network optimization", Algorithm 1). A weight keeps its magnitude,
    from which its layer's scale is computed. Deviation: γ follows the learning rate's schedule,
    :math:`\gamma_t = \gamma \eta_t / \eta`, where the authors lower it in steps.

    Give it as ``Trainer(..., optimizer=Bop())``.

    Args:
        rate: γ, the weight of a new gradient, at the peak learning rate; above 0, at most 1.
        threshold: τ, the smallest average that flips a sign; not negative. Lower ones flip more:
            ``flip_ratio`` in the history says how many.

    Raises:
        BinarizeError: A number is out of range.
    """

    rate: float = 1e-3
    threshold: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("rate", "threshold"):
            value = getattr(self, name)
            if not isinstance(value, int | float):
                raise BinarizeError(name, value, "must be a number", "use e.g. 1e-3")
        if not 0 < self.rate <= 1:
            raise BinarizeError("rate", self.rate, "must be above 0, at most 1", "use e.g. 1e-3")
        if not self.threshold >= 0:
            raise BinarizeError(
                "threshold", self.threshold, "must not be negative", "use e.g. 1e-6"
            )

    def __call__(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """Create the optimizer.

        Args:
            groups: From :func:`~binarize.train.optimizer.parameter_groups`; the one named
                ``"latent"`` holds the binary weights.
            lr: Peak learning rate.

        Raises:
            BinarizeError: There is no binary weight.
        """
        if not any(group.get("name") == "latent" for group in groups):
            raise BinarizeError(
                "optimizer", "Bop", "flips binary weights, and the network has none", "use AdamW"
            )
        return _BopWithAdamW(groups, lr, self)


class _BopWithAdamW(torch.optim.AdamW):
    def __init__(self, groups: list[dict[str, Any]], lr: float, bop: Bop) -> None:
        self.bop, self.peak = bop, lr
        super().__init__(groups, lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        latent = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            if group.get("name") == "latent"
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for _, parameter, _ in latent:
            parameter.grad = None  # AdamW leaves it alone
        super().step()
        for group, parameter, gradient in latent:
            parameter.grad = gradient
            self._flip(parameter, group["lr"] / (self.peak * group.get("factor", 1.0)))
        return loss

    def _flip(self, weight: torch.Tensor, schedule: float) -> None:
        state = self.state[weight]
        if "average" not in state:
            state["step"] = torch.zeros(())  # AdamW expects it of everything in a checkpoint
            state["average"] = torch.zeros_like(weight)
        state["step"] += 1
        average = state["average"].lerp_(weight.grad, min(1.0, self.bop.rate * schedule))
        flips = (average.abs() >= self.bop.threshold) & (average.sign() == weight.sign())
        weight.copy_(torch.where(flips, -weight, weight))
