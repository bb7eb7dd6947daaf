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
from binarize.graph.model_input import unwrap_model
from binarize.graph.plan import Plan
from binarize.lower import PackedNetwork

__all__ = ["converted_plan", "model_contents", "save"]


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Save a converted network as one safetensors file, binary weights one bit each.

    The file holds all that the network's outputs depend on, and how to build the network if it
    came from timm, segmentation-models-pytorch or transformers. It does not hold the magnitudes of
    the latent weights: keep the trainer's checkpoints to go on training where it stopped.

    Of a packed network it holds the programs instead, for inputs of the sizes that it was called
    with: they are loaded in a moment and without the network's library, and compute at once.

    Args:
        model: What :func:`binarize.convert` returned, trained or not, or what
            :func:`binarize.pack` returned; unchanged.
        path: Where to. The file is replaced as a whole, or left as it was.
        description: What else to write into the header, as JSON can say it: ``settings`` (``task``,
            ``size`` as rows and columns, ``normalize``, ``classes``, ``palette``, ``max_depth``)
            are found there by the command line. :func:`binarize.load` gives the network an
            attribute ``binarize_description``, which is written again if none is given here.

    Raises:
        ModelError: The network is not converted, has no values (meta device), or has state that
            a file of tensors cannot hold; or it is packed and was not called yet.
        FileError: The path cannot be written.
    """
    contents = model_contents(model, description)
    write_file(path, contents.entries, contents.metadata)


def model_contents(model: nn.Module, description: Mapping[str, Any] | None = None) -> Contents:
    """Return what the file of a converted or packed network holds.

    Args:
        model: As for :func:`save`.
        description: As for :func:`save`.

    Raises:
        ModelError: As for :func:`save`.
    """
    if isinstance(model, PackedNetwork):
        return program_contents(model, description)
    model, plan = converted_plan(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise ModelError(
                "model", name, "a tensor on the meta device has no values", "load weights first"
            )
    if description is not None:
        described: Any = model
        described.binarize_description = dict(description)
    return network_contents(model, plan)


def converted_plan(model: nn.Module) -> tuple[nn.Module, Plan]:
    """The converted network, without the wrapper of ``torch.compile``, and its plan.

    Raises:
        ModelError: It is not a converted network.
    """
    model = unwrap_model(model)
    plan = getattr(model, "binarize_plan", None)
    if not isinstance(plan, Plan):
        raise ModelError(
            "model",
            type(model).__name__,
            "it was not made by binarize.convert",
            "convert it first; of a wrapper (DataParallel, say) give the network inside",
        )
    return model, plan
