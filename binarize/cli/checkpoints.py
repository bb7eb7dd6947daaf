"""Read the tensors of a torch checkpoint, and nothing else that was pickled with them."""

from __future__ import annotations

import collections
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

__all__ = ["Skipped", "load_checkpoint"]

# What builds tensors and the containers around them; torch.load itself finds the storages.
_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    **{
        ("torch._utils", name): getattr(torch._utils, name)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}


class Skipped:
    """Stands for an object of a checkpoint that is no tensor; takes anything, keeps nothing."""

    dump_patches = False  # torch.load asks modules of old files

    def __new__(cls, *args: Any, **kwargs: Any) -> Skipped:
        """Take the arguments of the object's class or function."""
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Skipped:
        """Stand for what a call gives."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Take a state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an entry of a mapping."""

    def append(self, value: Any) -> None:
        """Take an entry of a list."""

    def extend(self, values: Any) -> None:
        """Take entries of a list."""

    def add(self, value: Any) -> None:
        """Take an entry of a set."""


class _Unpickler(pickle.Unpickler):
    """Makes a :class:`Skipped` of every class and function that is not in the list."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _ALLOWED.get((module, name), Skipped)


def load_checkpoint(path: Path) -> Any:
    """Load a checkpoint on the CPU without running its code.

    Args:
        path: A file of ``torch.save``. Objects that ``weights_only`` does not accept, such as the
            hyperparameters in Lightning's checkpoints, become :class:`Skipped`.

    Raises:
        Exception: Whatever ``torch.load`` raises on a damaged file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reader: Any = SimpleNamespace(
            __name__="binarize.cli.checkpoints",
            Unpickler=_Unpickler,
            load=lambda file, **options: _Unpickler(file, **options).load(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old files: the code of a module is another
            # Safe: the unpickler calls nothing but what is listed above.
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
