"""The float network in other engines: ONNX Runtime and OpenVINO.

Both read the same ONNX file. Quantized versions are calibrated on the benchmark's images: speed
does not depend on the quality of the calibration.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Engines"]


def _need(name: str) -> Any:
    """Import an optional package, or raise an error with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(f"pip install {missing}", name=missing) from error


class Engines:
    """A float network for other engines; files are written on first use.

    Args:
        network: The float network in eval mode.
        images: Float32 calibration images, each (N, C, H, W); the first is the example.
        folder: Folder for the files.
    """

    def __init__(self, network: nn.Module, images: Sequence[Tensor], folder: Path) -> None:
        self._network = network
        self._images = [image.contiguous().numpy() for image in images]
        self._folder = folder

    @cached_property
    def onnx(self) -> Path:
        """The network as an ONNX file."""
        _need("onnx")
        _need("onnxscript")
        path = self._folder / "float.onnx"
        example = (torch.from_numpy(self._images[0]),)
        torch.onnx.export(
            self._network,
            example,
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["image"],
        )
        return path

    @cached_property
    def onnx_int8(self) -> Path:
        """The network quantized by ONNX Runtime: static, weights per channel, QDQ."""
        quantization = _need("onnxruntime.quantization")
        shape_inference = _need("onnxruntime.quantization.shape_inference")
        clean, path = self._folder / "clean.onnx", self._folder / "int8.onnx"
        shape_inference.quant_pre_process(self.onnx, clean, skip_symbolic_shape=True)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
            def __init__(self, images: Sequence[Any]) -> None:
                self.images = iter(images)

            def get_next(self) -> dict[str, Any] | None:
                image = next(self.images, None)
                return None if image is None else {"image": image}

        quantization.quantize_static(
            clean,
            path,
            Reader(self._images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        return path

    @cached_property
    def openvino_int8(self) -> Any:
        """The network quantized by NNCF, for OpenVINO."""
        nncf, openvino = _need("nncf"), _need("openvino")
        nncf.set_log_level(40)  # errors only
        model = openvino.Core().read_model(self.onnx)
        count = len(self._images)
        with contextlib.redirect_stdout(sys.stderr):  # it draws its progress there
            return nncf.quantize(model, nncf.Dataset(self._images), subset_size=count)

    def onnxruntime_runner(self, threads: int, int8: bool = True) -> Callable[[Any], Any]:
        """Runs the network in ONNX Runtime, from an array to an array."""
        runtime = _need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its threads would keep spinning and slow down the next version.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        path = self.onnx_int8 if int8 else self.onnx
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda array: session.run(None, {"image": array})[0]

    def onnxruntime(self, image: Tensor, threads: int, int8: bool) -> Callable[[], Any]:
        """A call of the network in ONNX Runtime."""
        run, array = self.onnxruntime_runner(threads, int8), image.contiguous().numpy()
        return lambda: run(array)

    def openvino_runner(self, threads: int, precision: str = "int8") -> Callable[[Any], Any]:
        """Return a runner in OpenVINO, from an array to an array that the next call overwrites.

        Args:
            threads: Of the processor.
            precision: "f32", "bf16" or "int8"; what is not quantized in an int8 network has the
                precision that OpenVINO chooses.
        """
        openvino = _need("openvino")
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        if precision == "int8":
            model = self.openvino_int8
        else:
            model = core.read_model(self.onnx)
            settings["INFERENCE_PRECISION_HINT"] = precision
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda array: request.infer({0: array}, share_inputs=True, share_outputs=True)[0]

    def openvino(self, image: Tensor, threads: int, precision: str) -> Callable[[], Any]:
        """A call of the network in OpenVINO, see :meth:`openvino_runner`."""
        run, array = self.openvino_runner(threads, precision), image.contiguous().numpy()
        return lambda: run(array)
