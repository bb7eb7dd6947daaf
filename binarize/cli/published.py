"""Params and OPs as the BiDense paper prints them: ConvNeXt-Tiny + UPerNet at 480×480, ADE20K."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Published"]


@dataclass(frozen=True)
class Published:
    """One row of the paper's tables.

    Attributes:
        name: Our name of the row; a network that is in both tables has one row.
        method: The paper's name of it.
        tables: The tables that contain it.
        policy: The bundled policy, or ``None`` for the float network.
        params: Params, in thousands.
        ops: OPs, in billions.
    """

    name: str
    method: str
    tables: tuple[int, ...]
    policy: str | None
    params: int
    ops: float


ROWS = (
    Published("float", "ConvNeXt, pretrained", (1,), None, 40020, 288.36),
    Published("float-scratch", "ConvNeXt", (1, 4), None, 40023, 288.37),
    Published("bnn", "BNN", (1,), "bnn", 1470, 4.84),
    Published("reactnet", "ReActNet", (1, 4), "reactnet", 1531, 4.98),
    Published("adabin", "AdaBin", (1,), "adabin", 1484, 5.24),
    Published("bisrnet", "BiSRNet", (1,), "bisrnet", 1639, 5.07),
    Published("bidense", "BiDense", (1, 4), "bidense", 1626, 5.37),
    Published("no-dab", "1) w/o DAB", (4,), "bidense-no-dab", 1484, 5.11),
    Published("no-cfb", "2) w/o CFB", (4,), "bidense-no-cfb", 1626, 5.28),
    Published("no-threshold", "3) w/o thresholds", (4,), "bidense-no-threshold", 1531, 5.24),
    Published("bias-threshold", "4) threshold b", (4,), "bidense-bias-threshold", 1579, 5.31),
    Published("mean-threshold", "5) threshold k·mean", (4,), "bidense-mean-threshold", 1579, 5.37),
    Published("no-scale", "6) w/o scales", (4,), "bidense-no-scale", 1579, 5.24),
    Published("mad-scale", "7) scale MAD(x)", (4,), "bidense-mad-scale", 1579, 5.37),
    Published("learned-scale", "8) scale learned", (4,), "bidense-learned-scale", 1626, 5.31),
)
