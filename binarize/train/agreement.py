"""Make a task's binarized feature maps agree with those of the base whose bits it shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError, ModelError
from binarize.train.checks import check_positive

__all__ = ["Agreement", "AgreementTerm", "check_agreement"]


class Agreement:
    r"""Penalty on the binarized inputs in which a task differs from its base.

    For a network from :func:`binarize.add_task`, once its flips are fixed (at 60 % of the training;
    from the start without flips). With the levels b of the n values that enter a binary layer, and
    those of the base b⁰ on the same images,

    .. math::
        L = L_\text{task} + \lambda \, \frac{1}{|\mathcal{L}|} \sum_{l \in \mathcal{L}}
            \frac{1}{n_l} \lVert b_l - b^0_l \rVert_0, \qquad
        \frac{\partial \lVert b - b^0 \rVert_0}{\partial x} := \operatorname{sign}(b - b^0)

    over all calls of binary layers. For bits, the count of differences is their l1 norm (relative
    to a bit's step). Its gradient is handed to the value x before the sign as if that were the bit,
    wherever bits differ, however far from the threshold: a window would leave alone what
    is furthest from the base. Equal bits are not pulled.

    This is the third step of "Efficient Computation Sharing for Multi-Task Visual Scene
    Understanding" (Shoouri et al., ICCV 2023). Deviations: a difference is a bit's instead of a
    float's, the coefficient is that of a mean over layers and values instead of a sum, and the
    learning rate keeps its schedule.

    The base runs along in evaluation mode, without gradients. Nothing is learned besides the
    student's weights, so checkpoints hold no state of it; a resumed run needs the same base
    and weight.

    Args:
        base: The network that was given to :func:`binarize.add_task`. It stays unchanged, but moves
            to the student's device.
        weight: λ.

    Raises:
        BinarizeError: ``weight`` is not positive.
    """

    def __init__(self, base: nn.Module, weight: float = 1.0) -> None:
        check_positive("use 1.0, or leave the agreement out", weight=weight)
        self.base = base
        self.weight = weight

    def open(self, student: nn.Module) -> AgreementTerm:
        """Find the layers in both networks.

        Args:
            student: The task's network.

        Raises:
            ModelError: The networks do not have the same binary layers.
        """
        return AgreementTerm(self, student)


class AgreementTerm:
    """An :class:`Agreement` of a network with its base.

    Args:
        settings: The base and the weight.
        student: The task's network.
    """

    def __init__(self, settings: Agreement, student: nn.Module) -> None:
        self.base, self.weight = settings.base, settings.weight
        self._ours, self._theirs = _binarizers(student), _binarizers(self.base)
        if not self._ours or self._ours.keys() != self._theirs.keys():
            raise ModelError(
                "agreement",
                type(self.base).__name__,
                "its binary layers are not the student's",
                "give the base that add_task was called with",
            )
        if student is self.base:
            raise ModelError(
                "agreement", type(self.base).__name__, "it is the student itself", "give its base"
            )
        self._gates: list[Any] = [
            m for m in student.modules() if hasattr(m, "fixed") and callable(getattr(m, "flips", 0))
        ]
        self._shares: list[Tensor] = []

    @contextmanager
    def listening(self, image: Tensor) -> Iterator[None]:
        """Compare what the student binarizes inside this context with what the base does.

        Args:
            image: The student's input.
        """
        self._shares = []
        if not all(gate.fixed for gate in self._gates):
            yield
            return
        levels: dict[tuple[str, int], Tensor] = {}

        def remember(call: tuple[str, int], binarizer: Any, x: Tensor, y: Tensor) -> None:
            levels[call] = binarizer.level_index(y)

        def compare(call: tuple[str, int], binarizer: Any, x: Tensor, y: Tensor) -> None:
            theirs, ours = levels.get(call), binarizer.level_index(y.detach())
            # Behind output layers with other channels there is nothing to agree with.
            if theirs is not None and theirs.shape == ours.shape and ours.numel():
                self._shares.append(_Differences.apply(x, ours, theirs))

        self.base.eval()
        with torch.no_grad(), _watching(self._theirs, remember):
            self.base(image)
        with _watching(self._ours, compare):
            yield

    def loss(self) -> Tensor | None:
        """Return the penalty of the last run; ``None`` while flips are learned."""
        if not self._shares:
            return None
        return self.weight * torch.stack(self._shares).mean()


class _Differences(torch.autograd.Function):
    """The share of values whose levels differ, with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        direction = ours.to(torch.int8) - theirs.to(torch.int8)
        ctx.save_for_backward(direction)
        ctx.dtype = x.dtype
        return direction.ne(0).float().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (direction,) = ctx.saved_tensors
        return (direction.sign() * (grad / direction.numel())).to(ctx.dtype), None, None


def check_agreement(agreement: Agreement | None, compiled: bool) -> None:
    """Reject an agreement with a network that is compiled.

    Raises:
        BinarizeError: It is.
    """
    if agreement is not None and compiled:
        raise BinarizeError(
            "compile", True, "feature maps cannot be compared in compiled networks", "omit it"
        )


def _binarizers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the activation binarizers of a network's binary layers by the layers' names."""
    return {
        name: module.binarizer
        for name, module in network.named_modules()
        if callable(getattr(getattr(module, "binarizer", None), "level_index", None))
        and isinstance(module.binarizer, nn.Module)
    }


@contextmanager
def _watching(
    binarizers: dict[str, nn.Module],
    see: Callable[[tuple[str, int], Any, Tensor, Tensor], None],
) -> Iterator[None]:
    """Pass on inputs and outputs of all binarizers inside this context, call by call."""
    calls: dict[str, int] = defaultdict(int)

    def listener(name: str) -> Any:
        def listen(binarizer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            see((name, calls[name]), binarizer, args[0], output)
            calls[name] += 1

        return listen

    hooks = [b.register_forward_hook(listener(name)) for name, b in binarizers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
