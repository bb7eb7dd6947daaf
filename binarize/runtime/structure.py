"""How a file tells the structure of a network's output: JSON in which tensors have numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TENSOR", "fill"]

TENSOR = "__tensor__"
"""Key of a mapping that stands for an output; its value is the position among the outputs."""


def fill(structure: Any, output: Callable[[int], Any]) -> Any:
    """Put outputs into their structure.

    Args:
        structure: What ``export_onnx`` wrote.
        output: Gives an output by its position.

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
