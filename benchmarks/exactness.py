"""How well a packed network agrees with its float simulation on real pictures of CamVid.

    python benchmarks/exactness.py binary.safetensors --root data/camvid --size 144x192

The simulation is the 1-bit network in eval mode, which computes with floats. A 1-bit network
amplifies rounding: an activation that differs in the last bit may lie on the other side of its
threshold, and so on from layer to layer. So the script also runs the simulation in double
precision, and tells how well both agree with that.
"""

from __future__ import annotations

import argparse
import json

import torch

import binarize
from binarize.data import CamVid
from binarize.kernels import native


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="what binarize.save wrote")
    parser.add_argument("--root", required=True, help="folder of CamVid")
    parser.add_argument("--size", default="144x192", help="rows x columns")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, columns = (int(side) for side in args.size.split("x"))
    data = CamVid(args.root, "test", (rows, columns))
    network = binarize.load(args.file)
    exact = binarize.load(args.file).double()
    packed = binarize.load(args.file, packed=True)
    pixels = agree = 0
    agree_exact = {"float": 0, "packed": 0}
    largest = 0.0
    tables = {name: torch.zeros(data.num_classes, data.num_classes) for name in ("float", "packed")}
    with torch.inference_mode():
        for index in range(min(args.pictures, len(data))):
            image, mask = data[index]["image"][None], data[index]["mask"].flatten()
            wanted, result = network(image), packed(image)
            truth = exact(image.double()).argmax(1)
            largest = max(largest, float((wanted - result).abs().max()))
            classes = {"float": wanted.argmax(1), "packed": result.argmax(1)}
            pixels += classes["float"].numel()
            agree += int((classes["float"] == classes["packed"]).sum())
            for name, found in classes.items():
                agree_exact[name] += int((found == truth).sum())
            known = mask != data.ignore_index
            for name, found in classes.items():
                pairs = mask[known] * data.num_classes + found.flatten()[known]
                counts = pairs.bincount(minlength=data.num_classes**2)
                tables[name] += counts.view(data.num_classes, -1)
    told = {
        "pictures": min(args.pictures, len(data)),
        "size": args.size,
        "kernels": native.status().active,
        "pixels that agree": agree / pixels,
        "of the simulation with itself in double precision": agree_exact["float"] / pixels,
        "packed with the simulation in double precision": agree_exact["packed"] / pixels,
        "largest difference of a logit": largest,
        "mIoU of the simulation": _miou(tables["float"]),
        "mIoU packed": _miou(tables["packed"]),
    }
    print(json.dumps(told, indent=1))


def _miou(table: torch.Tensor) -> float:
    hits = table.diagonal()
    union = table.sum(0) + table.sum(1) - hits
    return float((hits / union)[union > 0].mean())


if __name__ == "__main__":
    main()
