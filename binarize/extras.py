"""Optional packages, and the error that names the extra to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from binarize.errors import BinarizeError

__all__ = ["EXTRAS", "naming_the_extra", "require"]

# Import names of the optional packages, and the extra of pyproject.toml that installs each.
EXTRAS = {
    "timm": "models",
    "segmentation_models_pytorch": "models",
    "accelerate": "train",
    "torchmetrics": "train",
    "torchvision": "train",
    "scipy": "data",
    "tifffile": "data",
    "PIL": "cli",
    "rich": "cli",
    "matplotlib": "plots",
    "squarify": "plots",
}


def require(*packages: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        packages: Import names, keys of :data:`EXTRAS`.

    Raises:
        BinarizeError: One is missing.
    """
    for package in packages:
        if find_spec(package) is None:
            raise _error(package)


@contextmanager
def naming_the_extra() -> Iterator[None]:
    """Raise a :class:`BinarizeError` that names the extra where an optional import fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise _error(package) from error


def _error(package: str) -> BinarizeError:
    extra = EXTRAS[package]
    return BinarizeError(
        "package",
        package,
        f"is not installed, and belongs to the extra '{extra}'",
        f"pip install 'binarize-torch[{extra}]'",
    )
