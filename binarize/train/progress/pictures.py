"""Predictions of validation images as files: input, ground truth and prediction side by side.

Shape legend: N samples, C channels or classes, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from binarize.train.tasks.multitask import heads, target_of
from binarize.train.tasks.protocol import Task
from binarize.writing import atomic_write

__all__ = ["FOLDER", "Pictures"]

FOLDER = "pictures"
_TASKS = ("segmentation", "multilabel", "depth", "normals", "edges", "classification")
_STRIP = 16


class Pictures:
    """The first validation images, with what the network makes of them.

    Args:
        task: The task, one of those that come with the package, or several of them.
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
        for one in heads(task).values():
            if one.name not in _TASKS:
                rule = f"cannot show predictions of the task {one.name!r}"
                raise BinarizeError("pictures", count, rule, "omit pictures")
        self.task = task
        self.loader = loader
        self.count = count
        dataset: Any = getattr(loader, "dataset", None)
        self.colors = getattr(dataset, "palette", None) or palette(256)
        self.denormalize = getattr(dataset, "denormalize", _stretch)
        self._samples: list[tuple[Tensor, Any]] | None = None

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
                size = target_size(image[None], _each(target, lambda one: one[None]))
                decoded = self.task.decode(network(image[None].to(device)), size)
                decoded = _row(_each(decoded, Tensor.cpu), 0)
                name = f"{FOLDER}/{number}.png"
                with atomic_write(folder / name) as temporary:
                    self._draw(image, target, decoded).save(temporary, format="PNG")
                names.append(name)
        return names

    def _read(self) -> Iterator[tuple[Tensor, Any]]:
        left = self.count
        key: Any = self.task.target
        for batch in read_batches(self.loader, "val_loader", 0):
            images, targets = batch_pair(batch, key)
            targets = _each(targets, Tensor.cpu)
            for number, image in enumerate(images[:left].cpu()):
                yield image.clone(), _each(_row(targets, number), Tensor.clone)
            left -= len(images)
            if left <= 0:
                return

    def _draw(self, image: Tensor, target: Any, decoded: Any) -> Image.Image:
        shown = self.denormalize(image).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(shown)
        parts: list[Image.Image] = []
        captions = []
        for head, task in heads(self.task).items():
            truth = target_of(task, target) if head else target
            guess = decoded[head] if head else decoded
            if task.name == "classification":
                captions.append(f"{int(guess)} (is {int(truth)})")
            else:
                parts += self._pair(task.name, truth, guess)
        if parts:
            picture = beside([picture.resize(parts[0].size), *parts])
        return _captioned(picture, ", ".join(captions)) if captions else picture

    def _pair(self, task: str, target: Tensor, decoded: Tensor) -> list[Image.Image]:
        """Return ground truth and prediction of a dense task."""
        depths = None
        if task == "depth":
            target = target.reshape(1, *target.shape[-2:])
            known = target[target > 0]
            # Both in the same colours, or they could not be compared.
            measured = known if len(known) else decoded
            depths = float(measured.min()), float(measured.max())
        elif task == "multilabel":
            target = (target == 1).long()
        elif task == "edges":
            target = (target == 1).reshape(1, *target.shape[-2:])
        return [prediction_image(task, values, self.colors, depths) for values in (target, decoded)]


def _row(value: Any, number: int) -> Any:
    return _each(value, lambda one: one[number])


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change a tensor, or those of a mapping."""
    if isinstance(value, Mapping):
        return {key: change(one) for key, one in value.items()}
    return change(value)


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
