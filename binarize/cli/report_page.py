"""What a report's page shows beside the report: accuracy, latency, predictions, an inspection."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.errors import BinarizeError
from binarize.page import Cell, Markup, Section, element, png_image, table

if TYPE_CHECKING:
    from binarize.cli.sources import Source
    from binarize.latency import Profile

__all__ = ["latency_section", "metric_table", "prediction_section", "result_sections"]


def result_sections(path: Path) -> list[Section]:
    """Return the accuracy of a training's network, from ``metrics.json`` beside its file.

    Args:
        path: The network's file.
    """
    try:
        record = json.loads((path.parent / "metrics.json").read_text(encoding="utf-8"))
        if path.name not in record["files"].values():
            return []
        results = {k: record[k] for k in ("val", "test") if isinstance(record.get(k), dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [Section("accuracy", "Accuracy", metric_table(results))] if results else []


def metric_table(results: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return a table of metrics, a column for each split; lists (values per class) are omitted.

    Args:
        results: The metrics by split.
    """
    names = dict.fromkeys(name for split in results.values() for name in split)
    rows: list[tuple[str | None, list[Cell]]] = []
    for name in names:
        values = [split.get(name) for split in results.values()]
        if not any(isinstance(value, list) for value in values):
            rows.append((None, [Cell(name), *(Cell(_short(v), numeric=True) for v in values)]))
    return table("", ("Metric", *results), rows, static=True)


def latency_section(profile: Profile) -> Section:
    """Return the latency of the network and of each layer.

    Args:
        profile: What ``binarize profile`` measured.
    """
    titles = {"binarize": "1 bit", "int8": "8 bits", "keep": "float"}
    actions = [a for a in titles if any(a in row.milliseconds for row in profile.layers)]
    rows: list[tuple[str | None, list[Cell]]] = []
    for row in profile.layers:
        times = [row.milliseconds.get(action) for action in actions]
        cells = [Cell("" if t is None else f"{t:.3f}", t, numeric=True) for t in times]
        planned = titles.get(row.planned, row.planned)
        rows.append((None, [Cell(row.site), Cell(row.kind), Cell(planned), *cells]))
    heads = ("Layer", "Kind", "By policy", *(f"{titles[action]}, ms" for action in actions))
    m, whole = profile.machine, profile.whole
    text = (
        f"{whole['policy']:.2f} ms by policy {profile.policy!r}, {whole['keep']:.2f} ms in float, "
        f"for {profile.inputs}; {profile.rest:.3f} ms belong to no layer. {m.processor}, "
        f"{m.kernels} kernels, {m.threads} thread(s), medians of {profile.rounds} rounds."
    )
    content = element("p", text) + table("latency-table", heads, rows)
    return Section("latency", "Latency", Markup(content))


def prediction_section(networks: Mapping[str, Source], path: Path) -> Section:
    """Run networks on an image, and show it with their predictions side by side, head by head.

    Args:
        networks: The networks by title. One whose file does not record its task is taken to have
            the task and the size of the first that does.
        path: The image.

    Raises:
        BinarizeError: No file records the task, a task has no picture, or a network does not accept
            the image.
        DataError: The image cannot be read.
    """
    from binarize.cli.images import predict_heads, read_input, shown
    from binarize.data.dense import normalisation
    from binarize.data.palette import palette
    from binarize.data.rendering import prediction_image
    from binarize.train import open_task
    from binarize.train.tasks.multitask import heads

    known = next((s.settings for s in networks.values() if s.settings.get("task")), None)
    if known is None:
        raise BinarizeError(
            "image",
            str(path),
            "the network's file does not record its task",
            "report a file of binarize train, or omit --image",
        )
    image = read_input(path, known)
    stats = normalisation(known.get("normalize") or "imagenet", known.get("bands"))
    found: dict[str, dict[str, Any]] = {}
    for title, source in networks.items():
        # A teacher may be that of one head.
        own = source.settings if source.settings.get("task") else known
        task = open_task(str(own["task"]), num_classes=256, max_depth=own.get("max_depth"))
        tasks = {head or one.name: one.name for head, one in heads(task).items()}
        if "classification" in tasks.values():
            rule = "the task 'classification' has no picture"
            raise BinarizeError("image", str(path), rule, "omit --image")
        shape = own.get("size")
        decoded = predict_heads(
            source.network, task, image, stats, tuple(shape) if shape else None, own
        )
        for head, values in zip(tasks, decoded.values(), strict=True):
            found.setdefault(head, {})[title] = (tasks[head], values)
    palettes = (source.settings.get("palette") for source in networks.values())
    colors = next(filter(None, palettes), None) or palette(256)
    pictures = {"input": shown(image, stats)}
    for head, predictions in found.items():
        depths = None
        if any(task == "depth" for task, _ in predictions.values()):  # to compare their colours
            metres = [values for _, values in predictions.values()]
            depths = min(float(v.min()) for v in metres), max(float(v.max()) for v in metres)
        for title, (task, values) in predictions.items():
            shown_as = f"{head}, {title}" if len(found) > 1 else title
            pictures[shown_as] = prediction_image(task, values, colors, depths)
    figures = (
        element("figure", _png(picture, title), element("figcaption", title))
        for title, picture in pictures.items()
    )
    name_ = element("p", path.name)
    return Section(
        "predictions", "Predictions", Markup(name_ + element("div", *figures, class_="pictures"))
    )


def _png(picture: Any, title: str) -> Markup:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return png_image(file.getvalue(), title)


def _short(value: Any) -> str:
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.4f}" if known else "–"
