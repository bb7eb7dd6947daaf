"""Predictions and targets as images: labels, depth, surface normals and edges.

Shape legend: C classes, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = [
    "Colors",
    "beside",
    "depth_image",
    "edge_image",
    "label_image",
    "legend",
    "normal_image",
    "overlaid",
    "prediction_image",
]

Colors = Sequence[Sequence[int]]


def prediction_image(
    task: str, decoded: Tensor, colors: Colors, depths: tuple[float, float] | None = None
) -> Image.Image:
    """Return what a network predicted for one image, or its ground truth, as an image.

    Args:
        task: "segmentation", "multilabel", "depth", "normals" or "edges".
        decoded: Class indices (H, W), labels of 0 and 1 (C, H, W), metres (1, H, W), unit vectors
            (3, H, W), or probabilities of an edge (1, H, W).
        colors: One RGB triple per class.
        depths: For depth, the metres that get the brightest and the darkest colour; None takes the
            nearest and farthest ones.
    """
    if task == "segmentation":
        return label_image(decoded, colors)
    if task == "multilabel":
        return overlaid(decoded, colors)
    if task == "normals":
        return normal_image(decoded)
    if task == "edges":
        return edge_image(decoded)
    depth = decoded[0]
    return depth_image(depth, *(depths or (float(depth.min()), float(depth.max()))))


def label_image(labels: Tensor, colors: Colors) -> Image.Image:
    """Return a label map as a palette image of class indices, shown in the classes' colours.

    Args:
        labels: Integers (H, W), 255 for unknown (shown black).
        colors: One RGB triple per class.
    """
    image = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
    table = [int(value) for color in colors for value in color][:765]
    image.putpalette(table + [0] * (768 - len(table)))  # turns a grey image into a palette image
    return image


def overlaid(labels: Tensor, colors: Colors) -> Image.Image:
    """Return multi-labels (C, H, W) of 0 and 1 as one image: the mean of their classes' colours."""
    table = torch.tensor([list(colors[i]) for i in range(len(labels))], dtype=torch.float32)
    mixed = torch.einsum("chw,cd->hwd", labels.cpu().float(), table)
    mixed = mixed / labels.cpu().sum(0).clamp(min=1)[..., None]
    return Image.fromarray(mixed.round().to(torch.uint8).numpy())


def depth_image(depth: Tensor, near: float, far: float) -> Image.Image:
    """Return a depth map (H, W) in metres in colours, bright and warm where near."""
    from matplotlib import colormaps

    share = ((depth.cpu() - near) / max(far - near, 1e-6)).clamp(0, 1)
    return Image.fromarray(colormaps["magma_r"](share.numpy(), bytes=True)[..., :3])


def normal_image(normals: Tensor) -> Image.Image:
    """Return surface normals (3, H, W) as colours; unknown ones, which are 0, are black.

    Red is to the right, green up, blue towards the camera; 128 is none of it. The normals' own axes
    are x to the right, y down, z into the image.
    """
    axes = normals.cpu().float() * torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    known = normals.cpu().float().norm(dim=0, keepdim=True) > 0
    values = ((axes + 1) * 127.5).round().clamp(0, 255) * known
    return Image.fromarray(values.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def edge_image(edges: Tensor) -> Image.Image:
    """Return probabilities of an edge, (1, H, W) from 0 to 1, as a grey image, white where sure."""
    return Image.fromarray((edges[0].cpu().float().clamp(0, 1) * 255).round().byte().numpy())


def beside(images: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Place images of equal height side by side, on white."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, max(p.height for p in images)), "white")
    left = 0
    for image in images:
        row.paste(image.convert("RGB"), (left, 0))
        left += image.width + gap
    return row


def legend(names: Sequence[str], colors: Colors) -> Image.Image:
    """Draw a legend of the classes' colours."""
    height, box = 18, 12
    sheet = Image.new("RGB", (220, height * len(names) + 6), "white")
    draw: Any = ImageDraw.Draw(sheet)
    for index, (name, color) in enumerate(zip(names, colors, strict=False)):
        top = 3 + index * height
        draw.rectangle((6, top + 3, 6 + box, top + 3 + box), fill=tuple(color))
        draw.text((26, top + 3), name, fill="black")
    return sheet
