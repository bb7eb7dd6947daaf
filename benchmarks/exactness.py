"""Agreement of a packed network with its float simulation on CamVid images.

    python benchmarks/exactness.py binary.safetensors --root data/camvid --size 144x192 [--onnx]

The simulation is the 1-bit network in eval mode, which computes in floating point. A 1-bit network
amplifies rounding: an activation that differs in the last bit may cross its threshold, and the flip
propagates from layer to layer. So the script also runs the simulation in double precision and
reports agreement with it. With --onnx it also runs the exported network in ONNX Runtime, with
standard operators and with those of binarize.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import binarize
from binarize.data import CamVid
from binarize.kernels import native
from binarize.runtime import library

Run = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="file written by binarize.save")
    parser.add_argument("--root", required=True, help="folder of CamVid")
    parser.add_argument("--size", default="144x192", help="rows x columns")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--onnx", action="store_true", help="also measure the exported network")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, columns = (int(side) for side in args.size.split("x"))
    data = CamVid(args.root, "test", (rows, columns))
    exact = binarize.load(args.file).double()
    versions: dict[str, Run] = {
        "simulation": binarize.load(args.file),
        "packed": binarize.load(args.file, packed=True),
    }
    if args.onnx:
        shape = (1, 3, rows, columns)
        for runtime in ("standard", "binarize"):
            versions[f"onnx, {runtime}"] = onnx_version(args.file, shape, args.threads, runtime)
    count = min(args.images, len(data))
    pixels = count * rows * columns
    alike = dict.fromkeys(versions, 0)
    alike_packed = dict.fromkeys(versions, 0)
    alike_exact = dict.fromkeys(versions, 0)
    largest = dict.fromkeys(versions, 0.0)
    tables = {name: torch.zeros(data.num_classes, data.num_classes) for name in versions}
    with torch.inference_mode():
        for index in range(count):
            image, mask = data[index]["image"][None], data[index]["mask"].flatten()
            truth = exact(image.double()).argmax(1)
            outputs = {name: run(image) for name, run in versions.items()}
            wanted, packed = outputs["simulation"], outputs["packed"].argmax(1)
            known = mask != data.ignore_index
            for name, result in outputs.items():
                found = result.argmax(1)
                alike[name] += int((found == wanted.argmax(1)).sum())
                alike_packed[name] += int((found == packed).sum())
                alike_exact[name] += int((found == truth).sum())
                largest[name] = max(largest[name], float((wanted - result).abs().max()))
                pairs = mask[known] * data.num_classes + found.flatten()[known]
                counts = pairs.bincount(minlength=data.num_classes**2)
                tables[name] += counts.view(data.num_classes, -1)
    results = {
        name: {
            "pixels equal to the simulation": alike[name] / pixels,
            "pixels equal to the packed network": alike_packed[name] / pixels,
            "pixels equal to the simulation in double precision": alike_exact[name] / pixels,
            "largest logit difference": largest[name],
            "mIoU": _miou(tables[name]),
        }
        for name in versions
    }
    about = {"images": count, "size": args.size, "kernels": native.status().active}
    print(json.dumps({**about, **results}, indent=1))


def onnx_version(file: str, shape: tuple[int, ...], threads: int, runtime: str) -> Run:
    """The network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library()))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        network = binarize.load(file)
        binarize.export_onnx(network, path, torch.zeros(shape), dynamic=False, runtime=runtime)
        session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def _miou(table: torch.Tensor) -> float:
    hits = table.diagonal()
    union = table.sum(0) + table.sum(1) - hits
    return float((hits / union)[union > 0].mean())


if __name__ == "__main__":
    main()
