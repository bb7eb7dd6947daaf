"""The demo's image: input, ground truth, float and 1-bit prediction side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from binarize.data import DenseDataset

__all__ = ["draw"]


def draw(
    path: Path,
    data: DenseDataset,
    teacher: nn.Module,
    student: nn.Module,
    rows: int,
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """Write the image.

    Args:
        path: The file to write.
        data: Scenes for segmentation.
        teacher: The float network.
        student: The 1-bit network.
        rows: Number of scenes.
        metrics: ``mIoU`` of "float" and "binary", for the titles.
    """
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = torch.tensor(data.palette, dtype=torch.uint8)
    titles = [
        "input",
        "truth",
        f"float, mIoU {metrics['float']['mIoU']:.2f}",
        f"1-bit, mIoU {metrics['binary']['mIoU']:.2f}",
    ]
    height, width = data[0]["image"].shape[-2:]
    cell = 2.6
    figure = Figure(
        figsize=(4 * cell, rows * cell * height / width + 0.75), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, 4, squeeze=False)
    for row, scene in enumerate(_varied(data, rows)):
        sample = data[scene]
        shown = [data.denormalize(sample["image"]).permute(1, 2, 0), colors[sample["mask"]]]
        for network in (teacher, student):
            network.eval()
            with torch.no_grad():
                shown.append(colors[network(sample["image"][None])[0].argmax(0)])
        for column, panel in enumerate(shown):
            axis = axes[row, column]
            axis.imshow(panel.numpy(), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(titles[column], fontsize=11)
    figure.legend(
        handles=[
            Patch(color="#" + bytes(color).hex(), label=name)
            for name, color in zip(data.classes, data.palette, strict=True)
        ],
        loc="outside lower center",
        ncol=len(data.classes),
        frameon=False,
        fontsize=10,
    )
    figure.savefig(path)


def _varied(data: DenseDataset, count: int) -> list[int]:
    """Return a fixed choice of scenes with several classes, neither empty nor crowded."""
    kinds = [len(data[i]["mask"].unique()) for i in range(len(data))]
    return sorted(range(len(data)), key=lambda i: (abs(kinds[i] - 5), i))[:count]
