"""From a float network to a 1-bit network that is ready for training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.budget.convert import convert
from binarize.calibration import calibrate as fit
from binarize.errors import DataError
from binarize.graph.model_input import deepcopy_model, unwrap_model
from binarize.latency import Profile
from binarize.policy import Policy
from binarize.policy.match import Overrides
from binarize.policy.more_bits import MoreBits
from binarize.report import Sensitivity
from binarize.train.batches import batch_image
from binarize.train.norms import has_folded_norms, has_statistics, recalibrate, unfold_norms

__all__ = ["prepare_student"]


def prepare_student(
    teacher: nn.Module,
    policy: str | Path | Policy = "bidense",
    batches: Iterable[Any] | None = None,
    *,
    example_inputs: Any = None,
    overrides: Overrides | None = None,
    budget: str | None = None,
    sensitivity: Sensitivity | Mapping[str, Any] | str | Path | None = None,
    more_bits: MoreBits = (),
    profile: Profile | str | Path | None = None,
    norm_batches: int = 8,
    unfold: bool = True,
    calibrate: bool = False,
) -> nn.Module:
    """Convert a network and re-estimate its norm statistics: the starting point for training.

    Three steps: norms that were folded into the convolutions get their scale back
    (:func:`binarize.train.unfold_norms`), the network is converted (:func:`binarize.convert`), and
    the statistics of its batch norms, which no longer fit, are re-estimated
    (:func:`binarize.recalibrate`). With ``calibrate`` its layers are fitted to the network instead
    (:func:`binarize.calibrate`).

    Args:
        teacher: The float network; it stays unchanged and can teach the result.
        policy: Name of a bundled policy, path of a rule file, or a :class:`Policy`.
        batches: Training batches: images as tensors (N, C, H, W), or tuples that start with them,
            or dicts with "image". Only the first ones are read. None leaves the norms unchanged.
        example_inputs: As for :func:`binarize.convert`; None takes an image from the batches.
        overrides: As for :func:`binarize.convert`.
        budget: As for :func:`binarize.convert`.
        sensitivity: As for :func:`binarize.convert`.
        more_bits: As for :func:`binarize.convert`.
        profile: As for :func:`binarize.convert`.
        norm_batches: How many batches re-estimate the norm statistics; 0 leaves them unchanged.
        unfold: Whether folded norms get their scale back.
        calibrate: Whether latent weights, norms and activations are fitted to the network on these
            batches, see :func:`binarize.calibrate`.

    Returns:
        The 1-bit network, with its plan as ``binarize_plan``.

    Raises:
        BinarizeError: The network, the policy or the budget does not fit, a batch has no images,
            or there is none to calibrate on.
    """
    teacher = unwrap_model(teacher)
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    chosen = itertools.islice(iter(() if batches is None else batches), max(0, norm_batches))
    images = [batch_image(batch).to(device) for batch in chosen]
    if calibrate and not images:
        raise DataError("calibrate", True, "there are no images to fit layers on", "give batches")
    if example_inputs is None and images:
        example_inputs = images[0][:1]
    network = teacher
    if unfold and images and has_folded_norms(teacher):
        network = deepcopy_model(teacher)
        unfold_norms(network, images)
    student = convert(
        network,
        policy,
        example_inputs=example_inputs,
        overrides=overrides,
        budget=budget,
        sensitivity=sensitivity,
        more_bits=more_bits,
        profile=profile,
    )
    if calibrate:
        fit(student, network, images)
    elif images and any(map(has_statistics, student.modules())):
        recalibrate(student, images)
    return student
