"""Image sizes to try a network with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from binarize.survey.catalogue import Case

__all__ = ["default_sizes", "other_sizes", "small_sizes"]

_SQUARE = (224, 256, 240, 384, 448, 512, 320, 128)
# Odd ones first; most decoders need multiples of the encoder's stride, windows those of 7 or 8.
_OTHER = ((199, 249), (193, 257), (192, 288), (256, 192), (448, 224), (512, 256), (384, 384))
_SMALL = (64, 96, 128, 160)
# torchvision's other video networks take 112.
_LARGE_VIDEOS = ("mvit_v1_b", "mvit_v2_s", "s3d", "swin3d_t", "swin3d_s", "swin3d_b")


def default_sizes(case: Case, model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield shapes (1, C, *spatial) to try, the network's default first."""
    if case.family == "video":
        side = 224 if case.name in _LARGE_VIDEOS else 112
        yield (1, 3, 16, side, side)
        return
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        yield (1, *config["input_size"])
    for side in _SQUARE:
        yield (1, 3, side, side)


def other_sizes(size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield sizes other than a network's default, odd ones first."""
    for height, width in _OTHER:
        other = (*size[:-2], height, width)
        if other != size:
            yield other


def small_sizes(size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield sizes up to a network's default, small ones first; a larger one comes last.

    Some networks need more for training (Inception v3's second classifier).
    """
    for side in _SMALL:
        if side < size[-1]:
            yield (*size[:-2], side, side)
    yield size
    yield (*size[:-2], 320, 320)
