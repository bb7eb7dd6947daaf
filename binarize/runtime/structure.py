"""The structure of a network's output in a file: JSON in which tensors are numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TENSOR", "fill"]

TENSOR = "__tensor__"
"""Key of a mapping that represents an output; its value is the output's index."""


def fill(structure: Any, output: Callable[[int], Any]) -> Any:
    """Arrange outputs in their structure.

    Args:
        structure: The structure written by ``export_onnx``.
        output: Returns an output by index.

    Returns:
        Outputs in nested lists and dictionaries, or a single one.
    """
    if isinstance(structure, Mapping):
        if set(structure) == {TENSOR}:
            return output(structure[TENSOR])
        return {key: fill(part, output) for key, part in structure.items()}
    if isinstance(structure, list):
        return [fill(part, output) for part in structure]
    return structure
