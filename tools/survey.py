#!/usr/bin/env python3
"""Convert and check every network of timm, segmentation-models-pytorch and torchvision.

    python tools/survey.py --jobs 2 -o docs/coverage.md

One core of an AMD EPYC took 25 minutes. ``docs/coverage.json``, which it writes next to the
document, is not kept in the repository: it is attached to each release.
"""

from __future__ import annotations

import argparse
import sys

from zoos import build_quickly, catalogue

from binarize.cli import main
from binarize.cli.coverage import add_survey_options, run_survey
from binarize.cli.output import Output
from binarize.cli.parser import Parser, add_common

_EPILOG = """\
examples:
  python tools/survey.py --jobs 2 -o docs/coverage.md
  python tools/survey.py 'timm:resnet*' 'smp:Unet/*' -o few.md
  python tools/survey.py convnext --list"""


def build_parser() -> Parser:
    """Return the parser: the options of ``binarize coverage``, and ``--light``."""
    parser = Parser(
        prog="python tools/survey.py",
        description="Convert every network of three libraries and check each against its original. "
        "Nothing is downloaded, and most checks run on the meta device.",
        epilog=_EPILOG,
    )
    add_survey_options(parser)
    parser.add_argument(
        "--light",
        action="store_true",
        help="only convert and compare shapes, except for one network of every family",
    )
    add_common(parser, run)
    return parser


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Survey the three libraries."""
    command = "python tools/survey.py"
    return run_survey(args, out, catalogue, command, light=args.light, build=build_quickly)


if __name__ == "__main__":
    sys.exit(main(parser=build_parser()))
