"""Norms: re-estimated, unfolded, frozen, synchronised over processes; and training flags.

Files for inference often have norms folded into the convolutions: weight 1, mean 0,
variance 1, and the folded bias. In evaluation mode nothing is lost. In training mode such a norm
removes each batch's mean and deviation and restores nothing: the pretrained features are
gone before the first step.

Shape legend: N samples, C channels, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from binarize.errors import DataError, ModelError
from binarize.train.batches import batch_image, reject_single_value

__all__ = [
    "SynchronisedNorms",
    "frozen_norms",
    "has_folded_norms",
    "has_statistics",
    "recalibrate",
    "training_flags",
    "unfold_norms",
]


@contextmanager
def training_flags(*networks: nn.Module | None) -> Iterator[None]:
    """Restore each module's ``training`` flag on exit, also after an error."""
    flags = [
        (module, module.training)
        for network in networks
        if network is not None
        for module in network.modules()
    ]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm with running statistics, or observes a range as one does."""
    observes = isinstance(module, _BatchNorm) or callable(getattr(module, "observe", None))
    return observes and bool(getattr(module, "track_running_stats", False))


def recalibrate(
    model: nn.Module, batches: Iterable[Any], *, device: torch.device | str | None = None
) -> nn.Module:
    """Replace the running statistics of every BatchNorm by averages over some batches.

    The input ranges of 8-bit layers are re-estimated in the same way.

    Conversion changes a norm's input, and pretrained files may contain folded norms: in both cases
    the stored means and variances are wrong until they are re-estimated. They become the plain
    average over the batches, equally weighted. Everything but the BatchNorms runs in evaluation
    mode, without gradients; parameters do not change.

    Args:
        model: The network; changed in place.
        batches: Images as tensors (N, C, H, W), or tuples that start with them, or dicts with
            "image": a data loader, or a list.
        device: Where to run; None is the network's device. The network is not moved.

    Returns:
        The same network, each module's training flag as it was.

    Raises:
        ModelError: There is no BatchNorm with running statistics.
        DataError: There is no batch, or its images are invalid. Statistics are then unchanged.
    """
    norms: list[Any] = [module for module in model.modules() if has_statistics(module)]
    if not norms:
        raise ModelError(
            "model",
            type(model).__name__,
            "has no BatchNorm with running statistics, and no 8-bit layer",
            "omit recalibrate; there is nothing to estimate",
        )
    if device is None:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    momenta = [norm.momentum for norm in norms]
    saved = [
        {name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms
    ]
    done = False
    try:
        with training_flags(model), torch.no_grad():
            model.eval()
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over all batches
            for batch in batches:
                image = batch_image(batch).to(device)
                try:
                    model(image)
                except ValueError as error:
                    reject_single_value(error, image)
                    raise
                done = True
        if not done:
            raise DataError(
                "batches", type(batches).__name__, "is empty", "give at least one batch of images"
            )
    except BaseException:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def unfold_norms(network: nn.Module, batches: Iterable[Any]) -> int:
    """Turn folded norms into ordinary, equivalent ones.

    With m and s the mean and deviation of a norm's input over the batches, a
    folded norm x + b becomes s·(x − m)/s + (m + b): weight s, bias m + b, running mean m and
    running variance s². Outputs in evaluation mode are unchanged, and training mode now agrees.

    Args:
        network: The network; changed in place.
        batches: Images as tensors (N, C, H, W), or tuples that start with them, or dicts with
            "image". Norms that none of them reach are left unchanged.

    Returns:
        Number of norms that were unfolded.

    Raises:
        DataError: A batch has no images.
    """
    folded = [module for module in network.modules() if _is_folded(module)]
    sums: dict[nn.Module, Tensor] = {}

    def watch(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().transpose(0, 1).flatten(1).double()
        row = torch.stack((x.sum(1), x.square().sum(1), x.new_full((len(x),), x.shape[1])))
        sums[norm] = sums[norm] + row if norm in sums else row

    if not folded:
        return 0
    hooks = [norm.register_forward_pre_hook(watch) for norm in folded]
    try:
        with training_flags(network), torch.no_grad():
            network.eval()
            for batch in batches:
                network(batch_image(batch))
    finally:
        for hook in hooks:
            hook.remove()
    measured = {norm: row for norm, row in sums.items() if bool((row[2] > 0).all())}
    for norm, (total, squares, count) in measured.items():
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.add_(mean)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    return len(measured)


def has_folded_norms(network: nn.Module) -> bool:
    """Return whether a network has norms for :func:`unfold_norms`."""
    return any(_is_folded(module) for module in network.modules())


def _is_folded(module: nn.Module) -> bool:
    if not isinstance(module, _BatchNorm) or not module.affine or module.running_var is None:
        return False
    assert module.running_mean is not None
    plain = (module.weight == 1).all() and (module.running_mean == 0).all()
    return bool(plain and (module.running_var == 1).all() and (module.bias != 0).any())


def frozen_norms(network: nn.Module) -> list[nn.Module]:
    """Return the batch norms whose statistics must not change.

    These are norms without any trainable parameter, and norms that were set to evaluation mode
    inside a network in training mode.

    Args:
        network: The network, with its user's training flags.
    """
    found: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            parameters = list(module.parameters(recurse=False))
            fixed = bool(parameters) and not any(p.requires_grad for p in parameters)
            if fixed or (network.training and not module.training):
                found.append(module)
    return found


class SynchronisedNorms(TorchFunctionMode):
    """Context in which batch norms in training mode use statistics over all processes.

    It replaces the function, not modules, so that it covers every class of norm on every device
    and leaves the network unchanged.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace batch norms, and leave everything else unchanged."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` with the mean and variance of all processes' inputs (N, C, ...)."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    x = input.float() if input.element_size() < 4 else input
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() / x.shape[1]
    totals = all_reduce(torch.cat((x.sum(dims), x.new_full((1,), count))))
    number = totals[-1].detach()
    mean = totals[:-1] / number
    centred = x - mean.view(shape)
    # A second pass: squares minus the square of the mean would cancel.
    variance = all_reduce(centred.square().sum(dims)) / number
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (number / (number - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    out = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return out.to(input.dtype)
