"""The options that decide layers: a policy's overrides, and a budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_budget_options", "add_override_options", "overrides"]


def add_override_options(parser: Any) -> None:
    """Add the options that :func:`overrides` reads.

    Args:
        parser: A parser, or a group of one.
    """
    parser.add_argument(
        "--keep-float",
        "--keep",
        dest="keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help="layers to keep in float",
    )
    parser.add_argument(
        "--binarize", action="append", default=[], metavar="PATTERN", help="layers to binarize"
    )
    parser.add_argument(
        "--int8", action="append", default=[], metavar="PATTERN", help="layers to compute in 8 bits"
    )


def overrides(args: argparse.Namespace) -> dict[str, str] | None:
    """Return the overrides of ``--keep-float``, ``--int8`` and ``--binarize``."""
    given = {"keep": args.keep, "int8": args.int8, "binarize": args.binarize}
    return {layer: action for action, layers in given.items() for layer in layers} or None


def add_budget_options(parser: Any) -> None:
    """Add ``--budget``, and what its choice is made from.

    Args:
        parser: A parser, or a group of one.
    """
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="choose which layers get more than one bit by file size (3MB, or 10%% of the float "
        "network's), latency (12ms, or time=40%%), operations (5GOPs), several of these "
        "(12ms,3MB), the largest drop of the metric (drop=0.02), or the agreement with the float "
        "network (agreement=0.9)",
    )
    parser.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="sensitivity of the layers for --budget: sensitivity.json of binarize sensitivity "
        "(default: all equal, so the cheapest layers stay float)",
    )
    parser.add_argument(
        "--more-bits",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="what --budget may give to layers beside one bit and float: int8, or the bits of a "
        "policy, such as groupnet or lqnet; --sensitivity must have been measured with it",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="latency of the layers for a --budget of time: what binarize profile wrote on this "
        "machine (default: measured now)",
    )
