"""Norms of a pretrained network: re-estimate their statistics, unfold those that were folded.

Files for inference often have norms folded into the convolutions: weight 1, mean 0,
variance 1, and the folded bias. In evaluation mode nothing is lost. In training mode such a norm
removes each batch's mean and deviation and restores nothing: the pretrained features are
gone before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from binarize.errors import DataError, ModelError
from binarize.train.batches import batch_image, reject_single_value
from binarize.train.modes import training_flags

__all__ = [
    "has_folded_norms",
    "has_statistics",
    "recalibrate",
    "unfold_norms",
]


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
