"""Predictions of validation images as files: input, ground truth and prediction side by side.

Shape legend: N samples, C channels or classes, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from binarize.data.palette import palette
from binarize.data.rendering import beside, prediction_image
from binarize.errors import BinarizeError
from binarize.train.batches import batch_pair, read_batches, target_size
from binarize.train.norms import training_flags
from binarize.train.tasks.protocol import Task
from binarize.writing import atomic_write

__all__ = ["FOLDER", "Pictures"]

FOLDER = "pictures"
_TASKS = ("segmentation", "multilabel", "depth", "normals", "edges", "classification")
_STRIP = 16


class Pictures:
    """The first validation images, with what the network makes of them.

    Args:
        task: The task, one of those that come with the package.
        loader: Validation batches; read once, on the first :meth:`write`.
        count: Number of images.

    Raises:
        BinarizeError: There are no validation batches, or the task is another one.
    """

    def __init__(self, task: Task, loader: Any, count: int) -> None:
        if loader is None:
            raise BinarizeError(
                "pictures", count, "needs validation images", "give val_loader, or omit pictures"
            )
        if task.name not in _TASKS:
            rule = f"cannot show predictions of the task {task.name!r}"
            raise BinarizeError("pictures", count, rule, "omit pictures")
        self.task = task
        self.loader = loader
        self.count = count
        dataset: Any = getattr(loader, "dataset", None)
        self.colors = getattr(dataset, "palette", None) or palette(256)
        self.denormalize = getattr(dataset, "denormalize", _stretch)
        self._samples: list[tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def write(self, network: nn.Module, device: torch.device, folder: Path) -> list[str]:
        """Predict, and write ``pictures/1.png`` and so on.

        Args:
            network: The network; its training flags are restored afterwards.
            device: Its device.
            folder: The run's folder.

        Returns:
            The files, relative to the folder.

        Raises:
            OSError: A file cannot be written.
        """
        if self._samples is None:
            self._samples = list(self._read())
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        names = []
        with training_flags(network):
            network.eval()
            for number, (image, target) in enumerate(self._samples, start=1):
                size = target_size(image[None], target[None])
                decoded = self.task.decode(network(image[None].to(device)), size)[0].cpu()
                name = f"{FOLDER}/{number}.png"
                with atomic_write(folder / name) as temporary:
                    self._draw(image, target, decoded).save(temporary, format="PNG")
                names.append(name)
        return names

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = self.count
        for batch in read_batches(self.loader, "val_loader", 0):
            images, targets = batch_pair(batch, str(self.task.target))
            for image, target in zip(images[:left].cpu(), targets[:left].cpu(), strict=True):
                yield image.clone(), target.clone()
            left -= len(images)
            if left <= 0:
                return

    def _draw(self, image: Tensor, target: Tensor, decoded: Tensor) -> Image.Image:
        shown = self.denormalize(image).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(shown)
        if self.task.name == "classification":
            return _captioned(picture, f"{int(decoded)} (is {int(target)})")
        depths = None
        if self.task.name == "depth":
            target = target.reshape(1, *target.shape[-2:])
            known = target[target > 0]
            # Both in the same colours, or they could not be compared.
            measured = known if len(known) else decoded
            depths = float(measured.min()), float(measured.max())
        elif self.task.name == "multilabel":
            target = (target == 1).long()
        elif self.task.name == "edges":
            target = (target == 1).reshape(1, *target.shape[-2:])
        truth, guess = (
            prediction_image(self.task.name, values, self.colors, depths)
            for values in (target, decoded)
        )
        return beside([picture.resize(truth.size), truth, guess])


def _stretch(image: Tensor) -> Tensor:
    """Convert an image (C, H, W) of unknown normalisation to uint8 (3, H, W), by its own range."""
    image = image.float()
    image = image[:3] if len(image) >= 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = image.min(), image.max()
    return ((image - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)


def _captioned(picture: Image.Image, text: str) -> Image.Image:
    """Write a line below an image."""
    sheet = Image.new("RGB", (max(picture.width, 90), picture.height + _STRIP), "white")
    sheet.paste(picture, (0, 0))
    ImageDraw.Draw(sheet).text((3, picture.height + 2), text, fill="black")
    return sheet
