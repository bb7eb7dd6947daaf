"""How well the latency that is predicted by adding up layers fits networks within budgets.

    python benchmarks/latency.py --budgets time=30% 110ms,4MB

A U-Net with a ResNet-18 encoder and random weights, policy ``deploy``; processor time, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import segmentation_models_pytorch as smp
import torch

import binarize
from binarize.nn.int8 import assume_ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", nargs="+", required=True, help="as for binarize convert")
    parser.add_argument("--size", default="352x480", help="rows x columns")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, classes=11).eval()
    image = torch.randn(1, 3, *(int(side) for side in args.size.split("x")))
    profile = binarize.profile(network, image, policy="deploy", rounds=args.rounds)
    print(json.dumps({"machine": profile.to_dict()["machine"], "whole": profile.whole}))
    for budget in args.budgets:
        given = {"profile": profile} if "ms" in budget or "time" in budget else {}
        plan = binarize.plan(network, "deploy", example_inputs=image, budget=budget, **given)
        student = binarize.convert(network, plan.policy, example_inputs=image).eval()
        assume_ranges(student)
        packed = binarize.pack(student, image)
        seconds = []
        with torch.inference_mode():
            for _ in range(args.rounds):
                started = time.thread_time()
                packed(image)
                seconds.append(time.thread_time() - started)
        predicted = profile.predict({d.site: d.action for d in plan.layers})
        measured = 1e3 * statistics.median(seconds)
        print(f"{budget}: predicted {predicted:.1f} ms, measured {measured:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
