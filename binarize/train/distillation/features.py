"""Distillation from a teacher's feature maps: feature matching and attention transfer.

Shape legend: N samples, C channels, H, W rows and columns; feature maps (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError, ModelError
from binarize.train.batches import resize_to
from binarize.train.checks import check_name, check_not_negative
from binarize.train.distillation.schedule import SCHEDULES, anneal
from binarize.train.distillation.stages import Point, Reader, Split, pair_stages
from binarize.train.norms import training_flags

__all__ = ["FeatureDistillation", "FeatureTerm", "attention_loss", "feature_loss"]

_EPSILON = 1e-5


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of feature maps, each divided by its root mean square.

    The scale of features has no meaning for layers that follow a norm, hence the division, by one
    number per sample. Ranges from 0 (equal up to a factor) to 4 (opposite).

    Args:
        student: Feature maps.
        teacher: Feature maps, same shape.
    """
    return (_unit(student) - _unit(teacher)).square().mean()


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer (Zagoruyko, Komodakis 2017, Eq. 2, with squares).

    A feature map's attention is the mean of its squares over the channels: one number per position,
    for any number of channels. Both are divided by their root mean square over the positions.

    Args:
        student: Feature maps (N, any, H, W).
        teacher: Feature maps (N, any, H, W).
    """
    pair = [_unit(_unit(x).square().mean(1, keepdim=True)) for x in (student, teacher)]
    return (pair[0] - pair[1]).square().mean()


def _unit(x: Tensor) -> Tensor:
    # The small number under the root keeps the gradient finite where everything is zero.
    return x * (x.square().mean((1, 2, 3), keepdim=True) + _EPSILON).rsqrt()


class FeatureDistillation:
    """A teacher's feature maps as additional targets besides its output.

    Loss = f(t) · mean over the layers of (``features`` · :func:`feature_loss` + ``attention`` ·
    :func:`attention_loss`), with f the ``schedule``. Other sizes are resized to the teacher's.
    Where channel counts differ, feature matching learns a 1x1 convolution from the student's
    channels to the teacher's, which is not part of the student; attention needs none. Labels are
    not used: unlabelled images count like others.

    Args:
        features: Weight of feature matching; 0 turns it off.
        attention: Weight of attention transfer; 0 turns it off.
        layers: Names of the modules whose outputs are compared; "a=b" compares the student's a with
            the teacher's b. None: the ends of the stages, where the resolution changes; with
            several heads, of those stages that all heads share.
        schedule: "constant", "linear" or "cosine".

    Raises:
        BinarizeError: A value is out of range, a name unknown, or both weights are 0.
    """

    def __init__(
        self,
        features: float = 1.0,
        attention: float = 0.0,
        *,
        layers: Sequence[str] | str | None = None,
        schedule: str = "constant",
    ) -> None:
        check_name(SCHEDULES, schedule=schedule)
        check_not_negative(features=features, attention=attention)
        if not features and not attention:
            raise BinarizeError("features", 0, "both weights are 0", "give one a weight")
        if isinstance(layers, str):
            layers = [name.strip() for name in layers.split(",")]
        if layers is not None and not (layers and all(layers)):
            raise BinarizeError(
                "layers", list(layers), "must be names of layers", "leave it out for the stage ends"
            )
        self.features = features
        self.attention = attention
        self.layers = None if layers is None else list(layers)
        self.schedule = schedule

    def open(
        self, student: nn.Module, teacher: nn.Module, image: Tensor, split: Split | None = None
    ) -> FeatureTerm:
        """Find the layers in both networks and start reading their outputs.

        Args:
            student: The student.
            teacher: The teacher.
            image: An image (1, C, H, W) on their device.
            split: For several heads: from a network's output to theirs.

        Raises:
            ModelError: A layer is missing, is not called, or gives no feature map.
        """
        return FeatureTerm(self, student, teacher, image, split)


class FeatureTerm:
    """A :class:`FeatureDistillation` between two networks.

    Attributes:
        student: Reads the student's feature maps.
        teacher: Reads the teacher's.
        projections: Learnable 1x1 convolutions outside the student, one for each layer whose
            channels differ.
    """

    def __init__(
        self,
        settings: FeatureDistillation,
        student: nn.Module,
        teacher: nn.Module,
        image: Tensor,
        split: Split | None = None,
    ) -> None:
        self.settings = settings
        dtype = next((p.dtype for p in teacher.parameters()), image.dtype)
        taught = image.to(dtype)
        if settings.layers is None:
            pairs = pair_stages(student, teacher, image, taught, split)
        else:
            names = [name.partition("=") for name in settings.layers]
            pairs = [
                (Point(ours, "output"), Point(theirs or ours, "output"))
                for ours, _, theirs in names
            ]
        self.student = Reader(student, [ours for ours, _ in pairs], "student")
        try:
            self.teacher = Reader(teacher, [theirs for _, theirs in pairs], "teacher")
        except ModelError:
            self.student.close()
            raise
        self.projections = nn.ModuleDict()
        try:
            self._measure(student, teacher, image, taught)
        except BaseException:
            self.close()
            raise

    def _measure(
        self, student: nn.Module, teacher: nn.Module, image: Tensor, taught: Tensor
    ) -> None:
        with training_flags(student, teacher), torch.no_grad():
            student.eval()
            teacher.eval()
            with self.student.listening():
                student(image)
            with self.teacher.listening():
                teacher(taught)
        if not self.settings.features:
            self.student.maps(), self.teacher.maps()  # rejects what is not a feature map
            return
        generator = torch.Generator().manual_seed(0)
        for index, (x, y) in enumerate(zip(self.student.maps(), self.teacher.maps(), strict=True)):
            if x.shape[1] != y.shape[1]:
                made = nn.Conv2d(x.shape[1], y.shape[1], 1, bias=False)
                with torch.no_grad():
                    made.weight.normal_(0, x.shape[1] ** -0.5, generator=generator)
                self.projections[str(index)] = made.to(image.device)

    def loss(self, done: float) -> Tensor:
        """Return the loss between the last runs' feature maps at training progress ``done``."""
        factor = anneal(self.settings.schedule, done)
        ours, theirs = self.student.maps(), self.teacher.maps()
        total = ours[0].new_zeros((), dtype=torch.float32)
        if factor == 0:
            return total
        for index, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            x = resize_to(x, (y.shape[-2], y.shape[-1]))
            y = y.detach().to(x.dtype)
            if self.settings.attention:
                total = total + self.settings.attention * attention_loss(x, y)
            if self.settings.features:
                key = str(index)
                x = self.projections[key](x) if key in self.projections else x
                total = total + self.settings.features * feature_loss(x, y)
        return factor * total / len(ours)

    def parameters(self) -> list[nn.Parameter]:
        """Return the learnable parameters outside the student."""
        return list(self.projections.parameters())

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return dict(self.projections.state_dict())

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.projections.load_state_dict(state)

    def close(self) -> None:
        """Remove all hooks from both networks."""
        self.student.close()
        self.teacher.close()
