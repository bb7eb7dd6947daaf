"""The model card of a file: a README.md for people and the Hugging Face Hub, from its header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from binarize.file.contents import DESCRIPTION, decode
from binarize.graph.plan import Plan

__all__ = ["MARK", "model_card"]

MARK = "<!-- Written by binarize, which replaces this page; delete this line to keep your text. -->"

_LONGEST = 200  # arguments of a network that are shown

_PIPELINES = {
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "classification": "image-classification",
}
_PURPOSES = {
    "segmentation": "semantic segmentation",
    "depth": "depth estimation",
    "classification": "image classification",
    "multilabel": "multi-label classification",
}
# As in binarize.data and binarize.runtime, which files must not depend on; a test compares them.
_NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_CONVERTED = """\
import binarize

network = binarize.from_pretrained({source})
packed = binarize.from_pretrained({source}, packed=True)  # runs on 1-bit kernels
"""
_PROGRAMS = """\
import binarize

packed = binarize.from_pretrained({source})  # compiled programs
"""


def model_card(metadata: Mapping[str, str], size: int, name: str) -> str:
    """Write the model card of a file.

    Args:
        metadata: Strings of the file's header.
        size: Bytes of the file.
        name: The name to load it by: a repository id or a folder.

    Returns:
        Markdown, with the YAML front matter that the Hub reads.
    """
    described = json.loads(metadata.get(DESCRIPTION, "null")) or {}
    settings: Mapping[str, Any] = described.get("settings") or {}
    plan = (
        Plan.from_dict({**decode(metadata["plan"]), "origin": None}) if "plan" in metadata else None
    )
    origin = json.loads(metadata.get("origin", "null"))
    parts = [
        _head(settings),
        f"# {name.rstrip('/').rpartition('/')[2]}\n",
        _opening(settings, plan),
        _facts(plan, origin, described, size),
        _preprocessing(settings),
        _classes(settings),
        _loading(name, plan, origin),
        MARK,
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _head(settings: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: binarize"]
    if settings.get("task") in _PIPELINES:
        lines.append(f"pipeline_tag: {_PIPELINES[settings['task']]}")
    return "\n".join(
        [*lines, "tags:", "- binarize", "- binary-neural-network", "- 1-bit", "---", ""]
    )


def _opening(settings: Mapping[str, Any], plan: Plan | None) -> str:
    purpose = _PURPOSES.get(settings.get("task") or "", "")
    what = "A network with 1-bit layers" + (f" for {purpose}" if purpose else "")
    how = f", made by policy `{plan.policy.name}`" if plan else ", packed for inference"
    return f"{what}{how} of `binarize`.\n"


def _facts(plan: Plan | None, origin: Any, described: Mapping[str, Any], size: int) -> str:
    rows = []
    if origin:
        given = ", ".join(f"{key}={value!r}" for key, value in sorted(origin["arguments"].items()))
        given = given if len(given) < _LONGEST else "..."  # the whole configuration of transformers
        rows.append(("network", f"`{origin['library']}`: `{origin['name']}({given})`"))
    elif (described.get("recipe") or {}).get("spec"):
        rows.append(("network", f"`{described['recipe']['spec']}`"))
    rows.append(("file", f"{size:,} bytes"))
    if plan is not None:
        whole = plan.reference["bytes"]
        rows += [
            ("in float", f"{whole:,} bytes, {whole / size:.1f} times as many"),
            ("parameters in float", f"{plan.reference['params']:,}"),
            ("1-bit weights", f"{plan.binary_share:.1%}"),
            ("policy", f"`{plan.policy.name}`: {plan.policy.summary}".rstrip(": ")),
        ]
        if plan.example:
            shapes = ", ".join("×".join(map(str, shape)) for shape in plan.example)
            rows.append(("converted for inputs of", shapes))
    return _table(("property", "value"), rows)


def _preprocessing(settings: Mapping[str, Any]) -> str:
    rows = []
    if settings.get("size"):
        rows.append(("size, rows × columns", "×".join(map(str, settings["size"]))))
    if settings.get("normalize"):
        rows += _normalization(settings["normalize"], settings.get("bands"))
    if settings.get("max_depth"):
        rows.append(("largest depth", str(settings["max_depth"])))
    return "## Preprocessing\n\n" + _table(("property", "value"), rows) if rows else ""


def _normalization(given: Any, bands: int | None) -> list[tuple[str, str]]:
    stats = _NORMALIZATIONS.get(given) if isinstance(given, str) else given
    if stats is None:
        return [("normalization", f"`{given}`")]
    mean, std = (", ".join(map(str, values)) for values in stats)
    return [
        ("channels", f"{bands} bands" if bands else "red, green, blue, scaled to 0 to 1"),
        ("subtract the mean", mean),
        ("divide by the standard deviation", std),
    ]


def _classes(settings: Mapping[str, Any]) -> str:
    names = settings.get("classes") or []
    if not names:
        return ""
    colors = settings.get("palette") or []
    if len(colors) != len(names):
        return "## Classes\n\n" + _table(("index", "class"), list(enumerate(names)))
    rows = [
        (i, n, ", ".join(map(str, c))) for i, (n, c) in enumerate(zip(names, colors, strict=True))
    ]
    return "## Classes\n\n" + _table(("index", "class", "color (R, G, B)"), rows)


def _loading(name: str, plan: Plan | None, origin: Any) -> str:
    text = (_PROGRAMS if plan is None else _CONVERTED).format(source=json.dumps(name))
    need = ""
    if plan is not None and not origin:
        text = text.replace('")', '", model)').replace('", packed', '", model, packed')
        need = "`model` is the float network, built by its own code with any weights.\n\n"
    return f"## Load\n\n{need}```sh\npip install binarize-torch\n```\n\n```python\n{text}```\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
