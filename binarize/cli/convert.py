"""``binarize convert``: convert a network, or preview the conversion."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.networks import FORMS, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent
from binarize.cli.policy_options import add_budget_options, add_override_options, overrides
from binarize.errors import BinarizeError, FileError

if TYPE_CHECKING:
    from binarize.cli.sources import Source
    from binarize.graph import Decision, Plan

__all__ = ["add", "run"]

_DESCRIPTION = """\
Decide layer by layer what becomes binary, convert, and save one bit per binary weight. The float
weights become the latent weights, so give --weights. Then fine-tune the network (binarize train);
binarize report shows its size and cost."""

_EXAMPLES = [
    (
        "binarize convert smp:Unet:resnet34 --classes 11 --dry-run",
        "preview the conversion: every decision and its reason",
    ),
    (
        "binarize convert timm:resnet50 --weights resnet50.pt -o resnet50.safetensors",
        "convert a network with its trained weights",
    ),
    (
        "binarize convert smp:Unet:resnet18 --classes 11 --policy mine.toml \\\n"
        "      --keep-float 'decoder.blocks.4.*' -o unet.safetensors",
        "your own rules, with one part of the network left in float",
    ),
    (
        "binarize convert runs/float/float.safetensors --budget 3MB \\\n"
        "      --sensitivity out/sensitivity.json --save-policy mine.toml --dry-run",
        "keep the most sensitive layers in float within 3 MB; writes rules to edit",
    ),
    (
        "binarize convert runs/float/float.safetensors --budget 3MB --more-bits lqnet \\\n"
        "      --sensitivity out/sensitivity.json --dry-run",
        "the same, and some layers get three bits (also measured with --more-bits)",
    ),
    (
        "binarize convert runs/float/float.safetensors --calibrate photos \\\n"
        "      -o unet.safetensors",
        "fit layers to the float network on a folder of images, without training",
    ),
    (
        "binarize convert nets.py:make --size 256x192 --dry-run --json",
        "your own network; the plan as JSON",
    ),
    (
        "binarize convert volumes.py:make --size 64x64x32 -o volumes.safetensors",
        "three dimensions (several inputs: see example_inputs in docs/guide.md)",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "convert",
        run,
        help="binarize a network, or preview the plan",
        usage="MODEL [-o FILE | --dry-run]",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "model", metavar="MODEL", help=f"{FORMS}, or a float network that train saved"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to save it")
    parser.add_argument(
        "--dry-run",
        "--plan-only",
        dest="plan_only",
        action="store_true",
        help="show the decisions; change and write nothing",
    )
    parser.add_argument(
        "--all", action="store_true", help="with --dry-run: also list activations and additions"
    )
    parser.add_argument(
        "--policy", default="bidense", metavar="NAME|FILE", help="the rules (default bidense)"
    )
    add_override_options(parser)
    add_budget_options(parser)
    parser.add_argument(
        "--save-policy", type=Path, metavar="FILE", help="write the rules, overrides included"
    )
    parser.add_argument(
        "--size",
        type=extent,
        metavar="WxH[xD]",
        help="an accepted image size (default: found automatically)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="fit latent weights, norms and activations to the float network on the images of a "
        "folder, without training (see --images)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=32,
        metavar="N",
        help="how many of the images of --calibrate, evenly spaced (default 32)",
    )
    parser.add_argument(
        "--normalize",
        choices=["imagenet", "symmetric", "none"],
        help="normalisation of the images of --calibrate (default: the file's, else imagenet)",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the float network's weights")
    parser.add_argument(
        "--encoder-weights", type=Path, metavar="FILE", help="weights of its backbone only"
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept --weights that fit only part of the network"
    )
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Plan, and unless ``--dry-run`` is given, convert and save."""
    if args.output is None and not args.plan_only:
        raise BinarizeError("output", None, "is required", "give -o FILE, or --dry-run to preview")
    if args.plan_only and args.calibrate is not None:
        raise BinarizeError(
            "calibrate",
            str(args.calibrate),
            "there is nothing to fit in a preview",
            "omit it, or --dry-run",
        )
    if args.output is not None and not args.output.parent.is_dir():
        raise FileError("output", str(args.output), "its folder does not exist", "create it first")
    from binarize.budget import Budget, convert, plan
    from binarize.budget.costs import before_and_after
    from binarize.cli.examples import example_for, shell_remedies
    from binarize.cli.sources import is_file, open_source
    from binarize.cli.weights import load_encoder, load_weights
    from binarize.policy import load_policy

    load_policy(args.policy)
    if args.budget is not None:
        Budget.parse(args.budget)
    with out.step(f"building {args.model}"):
        recipe = None if is_file(args.model) else recipe_from(args, args.model)
        source = open_source(args.model, recipe)
        network: Any = source.network
        # Here, so that the plan and a budget include it in the file's size.
        network.binarize_description = _description(source)
    if args.encoder_weights is not None:
        out.note(f"encoder: {load_encoder(network, args.encoder_weights)}")
    if args.weights is not None:
        out.note(f"weights: {load_weights(network, args.weights, partial=args.partial)}")
    example = example_for(network, source.recipe, args.size)
    options: dict[str, Any] = {
        "example_inputs": example,
        "overrides": overrides(args),
        "budget": args.budget,
        "sensitivity": args.sensitivity,
        "more_bits": args.more_bits,
        "profile": args.profile,
    }
    if args.plan_only:
        with out.step("tracing and planning"), shell_remedies(args.model):
            made = plan(network, args.policy, **options)
        _save_policy(made, args.save_policy, out)
        show_plan(made, out, everything=args.all)
        show_summary(made, out)
        costs = before_and_after(network, made, example)
        _show_costs(costs, out)
        out.emit({**describe(made), "costs": costs})
        return None

    from binarize.cli.calibration import calibration_batches
    from binarize.file import float_contents, save
    from binarize.prepare import prepare_student

    if args.weights is None and recipe is not None:
        out.note("note: without --weights the network starts from random weights")
    student: Any
    if args.calibrate is None:
        with out.step("tracing, planning, rewriting"), shell_remedies(args.model):
            student = convert(network, args.policy, **options)
    else:
        batches = calibration_batches(args, source)
        count = sum(len(batch["image"]) for batch in batches)
        doing = f"converting, and calibrating on {count} images"
        with out.step(doing), shell_remedies(args.model):
            student = prepare_student(
                network,
                args.policy,
                batches,
                norm_batches=len(batches),
                calibrate=True,
                **options,
            )
    with out.step(f"saving {args.output}"):
        save(student, args.output)
    _save_policy(student.binarize_plan, args.save_policy, out)
    bytes_, before = args.output.stat().st_size, float_contents(network).size
    show_summary(student.binarize_plan, out)
    costs = before_and_after(network, student.binarize_plan, example)
    _show_costs({**costs, "bytes": bytes_}, out)
    out.print(
        f"{args.output}: {bytes_:,} bytes, {before / bytes_:.1f} times smaller than the float "
        f"network's {before:,}",
        wrap=False,
    )
    out.print(
        f"next: binarize report {args.output}, binarize train --model {args.output}", wrap=False
    )
    out.emit(
        {
            "file": args.output,
            "bytes": bytes_,
            "float_bytes": before,
            "ratio": before / bytes_,
            "costs": {**costs, "bytes": bytes_},
            **describe(student.binarize_plan),
        }
    )
    return None


def _description(source: Source) -> dict[str, Any]:
    """Return the file's description of the network: how to build it, and its training."""
    recipe = None if source.recipe is None else source.recipe.to_dict()
    return {"recipe": recipe, "settings": dict(source.settings)}


def _save_policy(plan: Plan, path: Path | None, out: Output) -> None:
    if path is not None:
        plan.policy.save(path)
        out.note(f"rules: {path}")


def _show_costs(costs: Mapping[str, float | None], out: Output) -> None:
    from binarize.report.numbers import readable

    for name, unit in (("bytes", "B"), ("ops", "OPs")):
        before, after = costs[f"float_{name}"], costs[name]
        if before is None or after is None:
            out.print(f"{name}: unknown, because some operations cannot be counted")
            continue
        out.print(
            f"{name}: {readable(round(before), unit)} before, {readable(round(after), unit)} after "
            f"({after / before:.1%})"
        )


def describe(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data: the counts and all decisions."""
    return {"binary_share": plan.binary_share, "counts": _counts(plan), **plan.to_dict()}


def _counts(plan: Plan) -> dict[str, int]:
    return dict(Counter(f"{d.part} {d.action}" for d in plan.decisions))


def show_plan(plan: Plan, out: Output, *, everything: bool = False) -> None:
    """Print the decisions, grouped by kind and reason.

    Args:
        plan: The plan.
        out: The output.
        everything: Also list activations and additions, not only layers.
    """
    from rich.markup import escape

    from binarize.graph import LayerDecision
    from binarize.policy.schema import format_unit

    groups: dict[tuple[str, str, str, str], list[Decision]] = {}
    for decision in plan.decisions:
        unit = format_unit(decision.unit) if isinstance(decision, LayerDecision) else ""
        kind = decision.part, decision.action, unit, decision.reason
        groups.setdefault(kind, []).append(decision)
    console = out.console
    width = max(len(decision.site) for decision in plan.layers)
    for (part, action, unit, reason), members in groups.items():
        plural = part if len(members) == 1 else f"{part}s"
        title = escape(f"{action} {len(members)} {plural}{unit}")
        console.print(f"[bold]{title}[/]: {escape(reason)}")
        if part != "layer" and not everything:
            continue
        for decision in members:
            shape = decision.shape if isinstance(decision, LayerDecision) else ()
            text = "×".join(map(str, shape))
            line = f"    {decision.site:<{width}}  {decision.kind:<10} {text}".rstrip()
            console.print(line, markup=False, style="dim", soft_wrap=True)


def show_summary(plan: Plan, out: Output) -> None:
    """Print the counts of a plan in one line, and its notes."""
    words = {
        "layer binarize": ("layer becomes binary", "layers become binary"),
        "layer keep": ("stays float", "stay float"),
        "layer int8": ("becomes 8-bit", "become 8-bit"),
        "layer bypass": (
            "projection shortcut becomes a bypass",
            "projection shortcuts become bypasses",
        ),
        "layer remove": (
            "projection is removed with its addition",
            "projections are removed with their additions",
        ),
        "addition drop": ("block shortcut is re-anchored", "block shortcuts are re-anchored"),
    }
    counts: Mapping[str, int] = _counts(plan)
    parts = [
        f"{counts[key]} {one if counts[key] == 1 else many}"
        for key, (one, many) in words.items()
        if key in counts
    ]
    if others := sum(decision.unit is not None for decision in plan.layers):
        parts[0] += f" ({others} with modified units)"
    out.print(
        f"{plan.policy.name}: {plan.binary_share:.1%} of the weights binary; {', '.join(parts)}"
    )
    for scope, cause in plan.opaque.items():
        out.print(f"not traced: {scope or 'the network itself'}: {cause}")
