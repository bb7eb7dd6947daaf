"""Distil segmentation from a teacher's logits without copying its errors.

Shape legend: N samples, C classes, H, W rows and columns; logits (N, C, H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.train.anneal import SCHEDULES, anneal
from binarize.train.checks import check_name, check_not_negative, check_positive

__all__ = ["SegmentationDistillation", "channel_wise_loss", "pixel_wise_loss"]

_TRUST = ("agree", "mix", "all")


def pixel_wise_loss(
    student: Tensor,
    teacher: Tensor,
    trusted: Tensor,
    temperature: float = 1.0,
    truth: Tensor | None = None,
    share: float = 0.0,
) -> Tensor:
    """T² · mean over trusted pixels of KL(p_T ‖ q_T) (Hinton, Vinyals, Dean 2015, section 2).

    p is the teacher's distribution at temperature T, or with ``truth`` the mixture
    (1 − share)·p + share·onehot(truth).

    Args:
        student: Logits.
        teacher: Logits, same shape.
        trusted: Boolean (N, H, W).
        temperature: T.
        truth: Labels (N, H, W); read where trusted only.
        share: Weight of the label in the mixture.

    Returns:
        Scalar; 0 when no pixel is trusted.
    """
    log_q = F.log_softmax(student / temperature, 1)
    log_p = F.log_softmax(teacher / temperature, 1)
    p = log_p.exp()
    if truth is None or share == 0:
        divergence = (p * (log_p - log_q)).sum(1)
    else:
        index = torch.where(trusted, truth, 0).unsqueeze(1)
        p = (1 - share) * p
        p = p.scatter_add(1, index, torch.full_like(p[:, :1], share))
        divergence = (torch.xlogy(p, p) - p * log_q).sum(1)
    total = torch.where(trusted, divergence, 0).sum()
    return temperature**2 * total / trusted.sum().clamp(min=1)


def channel_wise_loss(
    student: Tensor, teacher: Tensor, valid: Tensor, temperature: float = 4.0
) -> Tensor:
    """Channel-wise distillation (Shu, Liu, Gao, Yan, Shen 2021, Eq. 3 to 5).

    Each channel becomes a distribution over the positions, softmax(x/T), and the loss is
    T² times the mean over samples and channels of KL(teacher ‖ student). Every class has the same
    weight, however few pixels it has. Invalid positions are excluded from both.

    Args:
        student: Logits.
        teacher: Logits, same shape.
        valid: Boolean (N, H, W).
        temperature: T.

    Returns:
        Scalar; samples without a valid position count as 0.
    """
    void = ~valid.flatten(1).unsqueeze(1)
    # A large negative number instead of −inf: a sample without a valid position stays finite.
    log_q, log_p = (
        F.log_softmax((x / temperature).flatten(2).masked_fill(void, -1e4), 2)
        for x in (student, teacher)
    )
    divergence = (log_p.exp() * (log_p - log_q)).masked_fill(void, 0).sum(2)
    return temperature**2 * divergence.sum() / max(1, divergence.numel())


class SegmentationDistillation:
    """A teacher's logits as a second target, with safeguards.

    Plain distillation on every pixel was measured to hurt: it passes on the teacher's errors on
    rare classes and its arbitrary predictions in ignored regions. Hence: ignored pixels never
    count, the pixel-wise term trusts the teacher only where it is reliable (``trust``), the
    channel-wise term weights all classes equally, and the weight decays to zero towards the end
    of training, where only the labels count.

    Images without labels count with every pixel, and there the teacher is fully trusted.

    Loss = f(t) · (``weight`` · pixel-wise + ``channel_weight`` · channel-wise), with f the
    ``schedule``. The cross-entropy with the labels is added by the trainer.

    Args:
        weight: Weight of the pixel-wise term.
        temperature: Its temperature.
        channel_weight: Weight of the channel-wise term; 0 turns it off.
        channel_temperature: Its temperature.
        trust: "agree": only pixels where the teacher's class is the label; "mix": all labelled
            pixels, with the label mixed in by ``truth_share``; "all": all labelled pixels.
        truth_share: Weight of the label in "mix".
        schedule: "cosine", "linear" or "constant".
        ignore_index: Label of pixels that do not count.
        multilabel: Treat each class as a separate binary problem.

    Raises:
        BinarizeError: A value is out of range or a name unknown.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 2.0,
        *,
        channel_weight: float = 0.5,
        channel_temperature: float = 4.0,
        trust: str = "agree",
        truth_share: float = 0.5,
        schedule: str = "cosine",
        ignore_index: int = 255,
        multilabel: bool = False,
    ) -> None:
        check_name(_TRUST, trust=trust)
        check_name(SCHEDULES, schedule=schedule)
        check_not_negative(weight=weight, channel_weight=channel_weight)
        check_positive(
            "use 1 for no softening",
            temperature=temperature,
            channel_temperature=channel_temperature,
        )
        if not 0 <= truth_share <= 1:
            raise BinarizeError("truth_share", truth_share, "must be from 0 to 1", "use e.g. 0.5")
        self.weight = weight
        self.temperature = temperature
        self.channel_weight = channel_weight
        self.channel_temperature = channel_temperature
        self.trust = trust
        self.truth_share = truth_share if trust == "mix" else 0.0
        self.schedule = schedule
        self.ignore_index = ignore_index
        self.multilabel = multilabel

    def __call__(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, done: float
    ) -> Tensor:
        """Return the scalar loss at training progress ``done``.

        Args:
            student: Logits.
            teacher: Logits, same shape.
            target: Labels (N, H, W), or (N, C, H, W) with several labels per pixel; None for images
                without labels.
            done: Training progress, from 0 to 1.
        """
        if self.multilabel or (target is not None and target.ndim == 4):
            student, teacher = (x.flatten(0, 1).unsqueeze(1) for x in (student, teacher))
            target = None if target is None else target.flatten(0, 1)
        factor = anneal(self.schedule, done)
        loss = student.new_zeros(())
        if factor == 0:
            return loss
        if target is None:
            target = student.new_zeros(student[:, 0].shape, dtype=torch.long)
            valid = torch.ones_like(target, dtype=torch.bool)
            trust, share = "all", 0.0
        else:
            target = target.long()
            valid = target != self.ignore_index
            trust, share = self.trust, self.truth_share
        if self.weight > 0:
            pair = [_two_classes(x) if x.shape[1] == 1 else x for x in (student, teacher)]
            trusted = valid
            if trust == "agree":
                trusted = valid & (pair[1].argmax(1) == target)
            loss = loss + factor * self.weight * pixel_wise_loss(
                pair[0], pair[1], trusted, self.temperature, target, share
            )
        if self.channel_weight > 0:
            loss = loss + factor * self.channel_weight * channel_wise_loss(
                student, teacher, valid, self.channel_temperature
            )
        return loss


def _two_classes(logits: Tensor) -> Tensor:
    """Return two logits, background and class, whose softmax is the sigmoid of the one logit."""
    return torch.cat([torch.zeros_like(logits), logits], 1)
