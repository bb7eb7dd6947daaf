"""The numbers of a report; the views print them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from binarize.extras import naming_the_extra
from binarize.page import Markup, Paged
from binarize.report.flow import FlowNode

__all__ = ["Report", "Row", "effective_ops", "readable"]

# BiDense, Section 4: a 64-bit instruction does 64 binary operations, and a float has 32 bits. By
# the same rule, it does eight 8-bit operations.
_OPS_PER_WORD = 64
_INT8_OPS_PER_WORD = 8
_BITS_PER_FLOAT = 32
_INT8_PER_FLOAT = 4


@dataclass(frozen=True)
class Row:
    """One part of a network; the rows of a report add up to its totals.

    Attributes:
        name: Dotted name of the layer or module.
        part: ``"layer"`` (convolutions and linear layers), ``"norm"``, ``"activation"``,
            ``"operation"`` (products in a forward), ``"other"``, or ``"file"``.
        kind: Class of the float module (``ShiftedPReLU`` for a replaced activation), or
            name of the operation.
        shape: Shape of a layer's weight.
        decision: The plan's action: ``"binarize"``, ``"keep"``, ``"bypass"``, ``"remove"`` or
            ``"replace"``; empty if there was nothing to decide.
        reason: Why.
        rule: The rule that decided.
        weight_bits: Bits per effective weight; ``None`` without weights.
        activation_bits: Bits per input value of a layer; ``None`` for other parts.
        float_params: Parameters in floating point.
        binary_params: Parameters of one bit.
        float_ops: Multiply-accumulates in floating point; ``None`` if unknown.
        binary_ops: Multiply-accumulates of one bit by one bit; ``None`` if unknown.
        bytes: Bytes in the file.
        calls: Calls in one run of the network; ``None`` if unknown.
        int8_params: Parameters of eight bits.
        int8_ops: Multiply-accumulates of eight bits by eight; ``None`` if unknown.
    """

    name: str
    part: str
    kind: str
    shape: tuple[int, ...] = ()
    decision: str = ""
    reason: str = ""
    rule: str = ""
    weight_bits: int | None = None
    activation_bits: int | None = None
    float_params: int = 0
    binary_params: int = 0
    float_ops: int | None = None
    binary_ops: int | None = None
    bytes: int = 0
    calls: int | None = None
    int8_params: int = 0
    int8_ops: int | None = 0

    @property
    def params(self) -> float:
        """Effective parameters: float + 8-bit / 4 + binary / 32."""
        return _effective_params(self)

    @property
    def ops(self) -> float | None:
        """Effective operations: float + 8-bit / 8 + binary / 64."""
        return _effective_ops(self)


@dataclass(frozen=True)
class Report(Paged):
    """Size of a network by the accounting of BiDense (Section 4), and of its file.

    Attributes:
        network: Class of the network.
        policy: Name of the policy; ``None`` for a float network.
        inputs: The example inputs for counting operations; ``None`` if there were none.
        layers: The rows, layers first, in order of execution.
        file_bytes: Size of the file that :func:`binarize.save` writes; for a float network, of
            a safetensors file of its state_dict.
        reference_params: Parameters of the float network.
        reference_ops: Multiply-accumulates of the float network; ``None`` if unknown.
        reference_bytes: Bytes of the float network's state_dict.
        notes: Further notes from the plan, one line each.
        flow: The network from input to output, for :meth:`to_html`; empty without example inputs.
        policy_text: The policy as a rule file; empty for a float network.
    """

    network: str
    policy: str | None
    inputs: str | None
    layers: tuple[Row, ...]
    file_bytes: int
    reference_params: int
    reference_ops: int | None
    reference_bytes: int
    notes: tuple[str, ...] = ()
    flow: tuple[FlowNode, ...] = field(default=(), repr=False)
    policy_text: str = field(default="", repr=False)

    @property
    def float_params(self) -> int:
        """Parameters in floating point."""
        return sum(row.float_params for row in self.layers)

    @property
    def binary_params(self) -> int:
        """Parameters of one bit."""
        return sum(row.binary_params for row in self.layers)

    @property
    def params(self) -> float:
        """Effective parameters: float + 8-bit / 4 + binary / 32."""
        return _effective_params(self)

    @property
    def float_ops(self) -> int | None:
        """Multiply-accumulates in floating point; ``None`` if a row's are unknown."""
        return self._sum(lambda row: row.float_ops)

    @property
    def binary_ops(self) -> int | None:
        """Multiply-accumulates of one bit by one bit; ``None`` if a row's are unknown."""
        return self._sum(lambda row: row.binary_ops)

    @property
    def int8_params(self) -> int:
        """Parameters of eight bits."""
        return sum(row.int8_params for row in self.layers)

    @property
    def int8_ops(self) -> int | None:
        """Multiply-accumulates of eight bits by eight; ``None`` if a row's are unknown."""
        return self._sum(lambda row: row.int8_ops)

    @property
    def ops(self) -> float | None:
        """Effective operations: float + 8-bit / 8 + binary / 64; ``None`` if unknown."""
        return _effective_ops(self)

    @property
    def least_ops(self) -> float | None:
        """Effective operations of the known rows: a lower bound if ``ops`` is unknown.

        ``None`` if nothing was counted.
        """
        if self.inputs is None:
            return None
        return sum(row.ops for row in self.layers if row.ops is not None)

    def _sum(self, value: Callable[[Row], int | None]) -> int | None:
        values = [value(row) for row in self.layers]
        return None if None in values else sum(v for v in values if v is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; unknown numbers are ``None``."""
        return {
            "network": self.network,
            "policy": self.policy,
            "inputs": self.inputs,
            "params": self.params,
            "float_params": self.float_params,
            "binary_params": self.binary_params,
            "int8_params": self.int8_params,
            "ops": self.ops,
            "least_ops": self.least_ops,
            "float_ops": self.float_ops,
            "binary_ops": self.binary_ops,
            "int8_ops": self.int8_ops,
            "file_bytes": self.file_bytes,
            "reference_params": self.reference_params,
            "reference_ops": self.reference_ops,
            "reference_bytes": self.reference_bytes,
            "notes": list(self.notes),
            "layers": [
                {
                    **asdict(row),
                    "shape": list(row.shape),
                    "params": row.params,
                    "ops": row.ops,
                }
                for row in self.layers
            ],
        }

    def table(self, depth: int | None = None) -> Any:
        """Return a view for rich.

        Args:
            depth: Combine layers that share this many parts of their names; ``None`` lists
                every layer.

        Returns:
            An object that ``rich.print`` prints at the width of the terminal.
        """
        with naming_the_extra():
            from binarize.report.terminal import View

        return View(self, depth)

    def _page(self) -> str:
        from binarize.report.page import report_page

        return report_page(self)

    def _notebook(self) -> Markup:
        from binarize.report.page import notebook_html

        return notebook_html(self)

    def __rich__(self) -> Any:
        return self.table()

    def __str__(self) -> str:
        with naming_the_extra():
            from binarize.report.terminal import to_text

        return to_text(self.table())


def readable(number: float | None, unit: str = "") -> str:
    """Write a count with four digits and a prefix, ``"unknown"`` for ``None``."""
    if number is None:
        return "unknown"
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        # Compared after rounding, so that 999,999 is 1.000 M and not 1000 K.
        if number >= factor * 0.99995:
            digits = number / factor
            places = 3 if digits < 9.9995 else 2 if digits < 99.995 else 1
            return f"{digits:.{places}f} {prefix}{unit}"
    whole = f"{number:.0f}" if number == int(number) else f"{number:.1f}"
    return f"{whole} {unit}".rstrip()


def _effective_params(counts: Row | Report) -> float:
    whole = counts.float_params + counts.int8_params / _INT8_PER_FLOAT
    return whole + counts.binary_params / _BITS_PER_FLOAT


def _effective_ops(counts: Row | Report) -> float | None:
    return effective_ops(counts.float_ops, counts.int8_ops, counts.binary_ops)


def effective_ops(
    float_ops: int | None, int8_ops: int | None, binary_ops: int | None
) -> float | None:
    """Return effective operations: float + 8-bit / 8 + binary / 64; ``None`` if one is unknown.

    Args:
        float_ops: Multiply-accumulates in floating point.
        int8_ops: Of eight bits by eight.
        binary_ops: Of one bit by one bit.
    """
    if float_ops is None or int8_ops is None or binary_ops is None:
        return None
    return float_ops + int8_ops / _INT8_OPS_PER_WORD + binary_ops / _OPS_PER_WORD
