"""What goes wrong in a data set is the data's mistake, also in a worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from binarize.data import ImageMaskFolder
from binarize.errors import BinarizeError, DataError
from binarize.train import Trainer


class Own(Dataset[Any]):
    """A data set of the user's own."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if self.fault == "raises":
            raise KeyError("label")
        rows = 4 + index * (self.fault == "sizes")
        return torch.zeros(3, rows, 4), torch.zeros(rows, 4, dtype=torch.long)


def trainer() -> Trainer:
    return Trainer(nn.Conv2d(3, 2, 1), epochs=1, progress=False, num_classes=2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_a_data_set_of_one_s_own(workers: int, call: str) -> None:
    for fault, says in (
        ("raises", "'label'"),
        ("sizes", "all samples of a batch must have the same size; give the data set a size"),
    ):
        loader = DataLoader(Own(fault), 2, num_workers=workers)
        # In this process the error itself shows best where it comes from.
        kind: Any = KeyError if fault == "raises" and not workers else DataError
        with pytest.raises(kind, match=says) as caught:
            getattr(trainer(), call)(loader)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_mixed_sizes(tmp_path: Path, workers: int) -> None:
    for index, rows in enumerate((8, 9)):
        for folder, shape in (("images", (rows, 8, 3)), ("masks", (rows, 8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            values = np.ones(shape, np.uint8)
            values[0] = 0
            Image.fromarray(values).save(tmp_path / folder / f"{index}.png")
    data = ImageMaskFolder(tmp_path / "images", tmp_path / "masks", classes=2)
    says = (
        r"loader='got .*': all samples of a batch must have the same size; give the data set a size"
    )
    with pytest.raises(DataError, match=says):
        trainer().fit(DataLoader(data, 2, num_workers=workers))
    (tmp_path / "masks" / "1.png").write_bytes(b"damaged")
    fresh = ImageMaskFolder(tmp_path / "images", tmp_path / "masks", classes=2, mask_values=[0, 1])
    with pytest.raises(BinarizeError, match=r"^file='.*1.png': cannot be read as an image"):
        trainer().evaluate(DataLoader(fresh, 1, num_workers=workers))
