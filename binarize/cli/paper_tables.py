"""Parameter and operation counts of the paper's network by each method of its Tables 1 and 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from binarize.cli.paper_network import DenseNetwork
from binarize.cli.published import ROWS, Published
from binarize.graph import convert
from binarize.nn import BinaryLayer
from binarize.nn.parts import ACTIVATIONS
from binarize.policy import Policy, load_policy
from binarize.report import report

__all__ = ["CLASSES", "SIDE", "TOLERANCE", "Check", "Counted", "check_rows", "count", "count_rows"]

CLASSES, SIDE = 151, 480
# Thousands of parameters by which a difference between two rows may deviate from the published one:
# both published numbers are rounded to thousands.
TOLERANCE = 3.0

_ACTIVATIONS = tuple(cls for cls in ACTIVATIONS.values())


@dataclass(frozen=True)
class Counted:
    """One row, counted.

    Attributes:
        row: The published row.
        params: Params, in thousands: float + binary / 32.
        ops: OPs, in billions: float + binary / 64.
        float_params: Parameters in floating point.
        binary_params: 1-bit parameters.
        float_ops: Floating-point multiply-accumulates.
        binary_ops: 1-bit multiply-accumulates.
        binarizer_params: Float parameters of the activation binarizers.
        activation_params: Float parameters of the activations.
        biases: Biases of the original layers, which the norms of the binary layers replace.
    """

    row: Published
    params: float
    ops: float
    float_params: int
    binary_params: int
    float_ops: int
    binary_ops: int
    binarizer_params: int
    activation_params: int
    biases: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = {key: value for key, value in vars(self).items() if key != "row"}
        return {
            **{key: value for key, value in vars(self.row).items() if key not in ("params", "ops")},
            **own,
            "published_params": self.row.params,
            "published_ops": self.row.ops,
            "params_difference": self.params - self.row.params,
            "ops_difference": self.ops - self.row.ops,
        }


@dataclass(frozen=True)
class Check:
    """A difference between two rows, in thousands of parameters.

    Attributes:
        what: What the two differ in.
        more: Name of the row with more parameters.
        less: Name of the row with fewer.
        published: Their difference in the paper.
        counted: Their difference as counted.
        reason: Why the two deviate by more than the tolerance, if they do.
    """

    what: str
    more: str
    less: str
    published: int
    counted: float
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two differences agree within the tolerance."""
        return abs(self.counted - self.published) <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "agrees": self.agrees}


def count_rows() -> dict[str, Counted]:
    """Count every row on the meta device: nothing is computed, and weights take no memory.

    Returns:
        Rows by name, in the order of the paper.
    """
    known: dict[str | None, Counted] = {}
    counted = {}
    for row in ROWS:
        if row.policy not in known:
            known[row.policy] = count(row)
        counted[row.name] = replace(known[row.policy], row=row)
    return counted


def count(row: Published) -> Counted:
    """Count one row."""
    with torch.device("meta"):
        original: nn.Module = DenseNetwork(CLASSES).eval()
        image = torch.zeros(1, 3, SIDE, SIDE)
    network = original
    if row.policy is not None:
        network = convert(original, as_printed(row.policy), example_inputs=image)
    made = report(network, image)
    assert made.ops is not None
    assert made.float_ops is not None
    assert made.binary_ops is not None
    binary = {k: m for k, m in network.named_modules() if isinstance(m, BinaryLayer)}
    replaced: list[Any] = [original.get_submodule(path) for path in binary]
    activations = [module for module in network.modules() if isinstance(module, _ACTIVATIONS)]
    return Counted(
        row,
        made.params / 1e3,
        made.ops / 1e9,
        made.float_params,
        made.binary_params,
        made.float_ops,
        made.binary_ops,
        sum(p.numel() for layer in binary.values() for p in layer.binarizer.parameters()),
        sum(p.numel() for activation in activations for p in activation.parameters()),
        sum(layer.bias.numel() for layer in replaced if layer.bias is not None),
    )


def as_printed(name: str) -> Policy:
    """Return a policy in the form that matches the paper's counts.

    It binarizes the released choice of layers. Scales are per channel, because for each of k, b and
    a the published rows differ by as many parameters as the network has binarized input channels.
    Activations have two values per channel, as released: the published ReActNet has as many
    parameters as BiDense without thresholds.
    """
    released, policy = load_policy("bidense-released"), load_policy(name)
    unit = policy.unit
    if unit.binarizer in ("dab", "ablated-dab"):
        unit = replace(unit, binarizer_options={**unit.binarizer_options, "scale": "channel"})
    if unit.activation == "shifted-prelu":
        unit = replace(unit, activation_options=released.unit.activation_options)
    return replace(
        policy,
        unit=unit,
        rules=released.rules,
        replace_activations=released.replace_activations,
    )


def check_rows(rows: Mapping[str, Counted]) -> tuple[Check, ...]:
    """Compare the differences between rows, which do not depend on what all rows share.

    Args:
        rows: From :func:`count_rows`.
    """
    checks = []
    for what, more, less in _DIFFERENCES:
        a, b = rows[more], rows[less]
        check = Check(what, more, less, a.row.params - b.row.params, a.params - b.params)
        if not check.agrees:
            check = replace(check, reason=_reason(a, b))
        checks.append(check)
    return tuple(checks)


_DIFFERENCES = (
    ("k of the threshold", "bidense", "bias-threshold"),
    ("b of the threshold", "bidense", "mean-threshold"),
    ("a of the scale", "bidense", "no-scale"),
    ("k and b", "bidense", "no-threshold"),
    ("k, b and a: the whole binarizer", "bidense", "no-dab"),
    ("the bypass", "bidense", "no-cfb"),
    ("a, against the deviation itself", "bidense", "mad-scale"),
    ("a, against a learned scale", "bidense", "learned-scale"),
    ("learned shifts and activations", "reactnet", "bnn"),
    ("learned slopes, activations in every unit", "bisrnet", "reactnet"),
    ("learned sets, activations", "adabin", "bnn"),
)


def _reason(a: Counted, b: Counted) -> str:
    """Break the counted difference down, and state what would explain the published one."""
    binarizers = (a.binarizer_params - b.binarizer_params) / 1e3
    activations = (a.activation_params - b.activation_params) / 1e3
    parts = f"binarizers {binarizers:+.1f} K, activations {activations:+.1f} K"
    if not b.activation_params:
        biases = b.biases / 1e3
        return (
            f"{parts}; here norms replace the convolutions' {biases:.1f} K biases; if "
            f"the published {b.row.method} still has them, the difference is "
            f"{a.params - b.params - biases:.1f} K"
        )
    left = a.row.params - b.row.params - binarizers
    return (
        f"{parts}; here every unit has an inner activation with three values per channel and none "
        f"after it; the published numbers leave {left:.1f} K more for activations than the other "
        "row has, and the paper does not say where they are"
    )
