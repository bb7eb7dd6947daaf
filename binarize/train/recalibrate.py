"""Re-estimate BatchNorm statistics and ranges after the layers before them have changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from binarize.errors import DataError, ModelError
from binarize.train.batches import batch_image, reject_single_value
from binarize.train.modes import training_flags

__all__ = ["has_statistics", "recalibrate"]


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
