"""Choose which layers become binary: overrides for one network, a rule file for many.

An override applies to one call; a file can be validated, shared and passed on the command line.

    python examples/own_rules.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import timm
import torch

import binarize

RULES = """
name = "stages"
summary = "BiDense, with the first stage and all 1x1 convolutions in float"
extends = "bidense"

[unit]
bypass = "interleaved"

[[rules]]
match = { name = "layer1.*" }
action = "keep"
reason = "the first stage is cheap, and sees the finest detail"

[[rules]]
match = { kind = "pointwise" }
action = "keep"
reason = "mixes channels only"
"""


def main() -> None:
    """Compare three plans of one network, and convert by the last."""
    network = timm.create_model("resnet26", num_classes=10).eval()
    image = torch.zeros(1, 3, 64, 64)

    plain = binarize.plan(network, example_inputs=image)
    print(f"bidense: {plain.binary_share:.1%} of the weights binary")

    # For one network: name patterns, or kind:, role: and class: selectors, each with an action.
    careful = binarize.plan(network, example_inputs=image, overrides={"layer4.*": "keep"})
    print(f"layer4 kept: {careful.binary_share:.1%}; what changed:")
    print("\n".join(f"  {line}" for line in plain.diff(careful)[:4]))

    # For many: a rule file. rules/README.md describes every key.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stages.toml"
        path.write_text(RULES, encoding="utf-8")
        student = binarize.convert(network, policy=path, example_inputs=image)
    print(f"own rules: {student.binarize_plan.binary_share:.1%}")  # type: ignore[union-attr]
    print(binarize.report(student, image).table(depth=2).report.notes[0])

    # An error is one line that says what is wrong and suggests the nearest name.
    try:
        binarize.plan(network, policy="bidens")
    except binarize.BinarizeError as error:
        print(error)


if __name__ == "__main__":
    main()
