"""Save a converted network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from binarize.errors import ModelError
from binarize.file.container import write_file
from binarize.file.contents import Contents, network_contents
from binarize.file.programs import program_contents
from binarize.file.tasks import save_task
from binarize.graph.model_input import unwrap_model
from binarize.graph.plan import Plan
from binarize.lower import PackedNetwork

__all__ = ["converted_plan", "model_contents", "save"]


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    description: Mapping[str, Any] | None = None,
    task: str | None = None,
) -> None:
    """Save a converted network as one safetensors file, with one bit per binary weight.

    The file holds everything that the network's outputs depend on, and how to build the network if
    it came from timm, segmentation-models-pytorch or transformers. It does not hold the magnitudes
    of the latent weights: to resume training, keep the trainer's checkpoints.

    For a packed network, the file holds its programs instead, for the input sizes that it was
    called with: they load instantly, without the network's library, and need no compilation.

    Args:
        model: The result of :func:`binarize.convert`, trained or not, or of :func:`binarize.pack`;
            it stays unchanged.
        path: The file to write. An existing file is replaced completely, or stays as it is.
        description: Additional JSON-serializable data for the header. The command line reads
            ``settings`` from it (``task``, ``size`` as rows and columns, ``normalize``,
            ``classes``, ``palette``, ``max_depth``). :func:`binarize.load` sets it as the network's
            attribute ``binarize_description``, which is written again if none is given here.
        task: For a network from :func:`binarize.add_task`: the name under which it is added to its
            base's file ``path``, or replaced there. The file then also holds the task's flipped
            bits and own numbers; base and other tasks stay.

    Raises:
        ModelError: The network is not converted, has no values (meta device), or has state that
            a file of tensors cannot hold; or it is packed and was not yet called.
        FileError: The path cannot be written, or with ``task`` does not hold the base.
    """
    if task is not None:
        model, plan = _described(model, description)
        return save_task(model, plan, path, task)
    contents = model_contents(model, description)
    write_file(path, contents.entries, contents.metadata)


def model_contents(model: nn.Module, description: Mapping[str, Any] | None = None) -> Contents:
    """Return the file contents of a converted or packed network.

    Args:
        model: As for :func:`save`.
        description: As for :func:`save`.

    Raises:
        ModelError: As for :func:`save`.
    """
    if isinstance(model, PackedNetwork):
        return program_contents(model, description)
    return network_contents(*_described(model, description))


def _described(model: nn.Module, description: Mapping[str, Any] | None) -> tuple[nn.Module, Plan]:
    """Return the converted network, which now has the description, and its plan."""
    model, plan = converted_plan(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise ModelError(
                "model", name, "a tensor on the meta device has no values", "load weights first"
            )
    if description is not None:
        described: Any = model
        described.binarize_description = dict(description)
    return model, plan


def converted_plan(model: nn.Module) -> tuple[nn.Module, Plan]:
    """Return the converted network, without the wrapper of ``torch.compile``, and its plan.

    Raises:
        ModelError: It is not a converted network.
    """
    model = unwrap_model(model)
    plan = getattr(model, "binarize_plan", None)
    if not isinstance(plan, Plan):
        raise ModelError(
            "model",
            type(model).__name__,
            "binarize.convert did not make it",
            "convert it first; if it is a wrapper (such as DataParallel), give the network inside",
        )
    return model, plan
