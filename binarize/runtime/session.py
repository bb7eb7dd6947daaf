"""A network in ONNX Runtime, called with arrays or images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from binarize.errors import DataError, FileError, ModelError
from binarize.runtime.images import as_image, normalisation, resize, shrink
from binarize.runtime.library import library
from binarize.runtime.structure import fill

__all__ = ["Session"]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_DENSE = ("out", "logits", "masks", "mask", "depth", "predicted_depth")


class Session:
    """An ONNX file that ``binarize.export_onnx`` wrote, ready to run on the CPU.

    Args:
        path: The file.
        threads: CPU threads; default: ONNX Runtime's choice.

    Attributes:
        inputs: Names of the inputs, in the order of the network's arguments.
        settings: The file's settings for images and outputs: ``task``, ``size`` (rows, columns),
            ``normalize``, ``classes``, ...
        session: The ``onnxruntime.InferenceSession``.

    Raises:
        FileError: The file is missing, damaged, or incompatible with the operator library or the
            version of ONNX Runtime.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ModelError("threads", threads, "must be positive", "use 1 or more")
        if not os.path.isfile(path):
            raise FileError("path", str(path), "no such file", "check the path")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        operators = str(library())
        try:
            options.register_custom_ops_library(operators)
            self.session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            text = " ".join(str(error).split())
            raise FileError(
                "path",
                str(path),
                f"ONNX Runtime {onnxruntime.__version__} cannot load it ({_reason(text)})",
                "export the network again, or use compatible versions",
            ) from error
        self.inputs = [given.name for given in self.session.get_inputs()]
        self._types = {given.name: given.type for given in self.session.get_inputs()}
        known = self.session.get_modelmeta().custom_metadata_map
        self._structure = json.loads(known.get("binarize_outputs", "null"))
        described = json.loads(known.get("binarize_network", "{}"))
        self.settings: dict[str, Any] = described.get("settings", {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Args:
            *args: Arrays in the order of the network's arguments; nested lists, tuples and mappings
                of arrays are flattened.
            **kwargs: Arrays by the names in ``inputs``.

        Returns:
            The network's outputs as arrays, in lists and dictionaries where it has several.

        Raises:
            ModelError: There are too many, too few or unknown arguments, or they have wrong types
                or sizes.
        """
        given = list(_flatten(args))
        free = [name for name in self.inputs if name not in kwargs]
        unknown = sorted(set(kwargs) - set(self.inputs))
        if unknown or len(given) != len(free):
            raise ModelError(
                "input",
                unknown[0] if unknown else f"{len(given) + len(kwargs)} arrays",
                f"the network takes {', '.join(self.inputs)}",
                "give one array for each",
            )
        feed = {**dict(zip(free, given, strict=True)), **kwargs}
        feed = {name: self._array(name, value) for name, value in feed.items()}
        try:
            results = self.session.run(None, feed)
        except Exception as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
            text = " ".join(str(error).split())
            raise ModelError(
                "input",
                shapes,
                f"the network cannot be run on it ({_reason(text)})",
                "give arrays of the sizes that the network takes",
            ) from error
        if self._structure is None:
            return results[0] if len(results) == 1 else results
        return fill(self._structure, results.__getitem__)

    def _array(self, name: str, value: Any) -> np.ndarray:
        array = np.asarray(value)
        wanted = _TYPES.get(self._types[name])
        # Floats of another precision are converted; a uint8 image is an error.
        same_kind = wanted is not None and np.issubdtype(array.dtype, np.floating) == np.issubdtype(
            wanted, np.floating
        )
        if not same_kind:
            raise ModelError(
                "input",
                f"{name}: {array.dtype}",
                f"must be {self._types[name]}",
                "normalise images first, or use segment or depth",
            )
        return np.ascontiguousarray(array, wanted)

    def segment(self, image: Any) -> np.ndarray:
        """Return the class of each pixel.

        The image is resized and normalised as the file specifies, and the output is resized to the
        image's size.

        Args:
            image: RGB, uint8 of shape (H, W, 3), or the path of an image file.

        Returns:
            Class indices, uint8 (H, W); int64 with more than 256 classes. With
            one class, 1 where its logit is at least 0.

        Raises:
            DataError: It is not such an image.
            ModelError: The network does not return one tensor (N, classes, H, W).
        """
        logits = self._dense(image, "segmentation")
        found = logits[0].argmax(0) if logits.shape[1] > 1 else logits[0, 0] >= 0
        return found.astype(np.uint8 if logits.shape[1] <= 256 else np.int64)

    def depth(self, image: Any) -> np.ndarray:
        """Return the depth of each pixel in metres.

        Args:
            image: As for :meth:`segment`.

        Returns:
            float32 (H, W).

        Raises:
            DataError: It is not such an image.
            ModelError: The network does not return one tensor (N, 1, H, W).
        """
        dense = self._dense(image, "depth")[0]
        if dense.shape[0] != 1:
            raise ModelError(
                "output", dense.shape, "depth needs one output channel", "use another network"
            )
        most = self.settings.get("max_depth")
        if most is None or self.settings.get("output") == "metres":
            result: np.ndarray = np.maximum(dense[0], np.float32(1e-3))
        else:
            result = np.float32(most) / (1 + np.exp(-dense[0]))
        return result.astype(np.float32)

    def _dense(self, image: Any, task: str) -> np.ndarray:
        known = self.settings.get("task", task)
        if known != task:
            raise ModelError("task", task, f"the network was trained for {known}", f"call {known}")
        picture = as_image(image)
        size = tuple(self.settings.get("size") or picture.shape[:2])
        mean, std = normalisation(self.settings.get("normalize") or "imagenet")
        x = (shrink(picture, size).astype(np.float32) / 255 - mean) / std
        output = self(x.transpose(2, 0, 1)[None])
        if isinstance(output, Mapping):
            named = [output[key] for key in _DENSE if key in output]
            output = named[0] if named else next(iter(output.values()))
        elif isinstance(output, list):
            output = output[0]
        if output.ndim == 3:
            output = output[:, None]
        if output.ndim != 4:
            raise ModelError(
                "output",
                output.shape,
                "is not of shape (N, C, H, W)",
                "call the session with arrays",
            )
        return resize(output, picture.shape[:2])

    def __repr__(self) -> str:
        task = self.settings.get("task")
        return f"Session({', '.join(self.inputs)}{f'; {task}' if task else ''})"


def _flatten(values: Any) -> Any:
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, Mapping) or (
            isinstance(value, Sequence) and not isinstance(value, str | bytes)
        ):
            yield from _flatten(value)
        elif isinstance(value, np.ndarray | np.generic | float | int):
            yield value
        else:
            raise DataError(
                "input", type(value).__name__, "is not a numpy array", "convert it: numpy.asarray"
            )


def _reason(text: str) -> str:
    """Extract the relevant part of ONNX Runtime's message."""
    text = text.rpartition("Status Message: ")[2]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return text.removesuffix(" Please fix either the inputs/outputs or the model.").rstrip(".")[
        :200
    ]
