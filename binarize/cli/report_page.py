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
    """Run networks on an image, and show it with their predictions side by side.

    Args:
        networks: The networks by title. Task, size and colours are the first one's, or, if its file
            does not record them, the next one's.
        path: The image.

    Raises:
        BinarizeError: No file records the task, or a network does not accept the image.
        DataError: The image cannot be read.
    """
    import torch
    from PIL import Image

    from binarize.cli.images import as_input
    from binarize.cli.start import try_out
    from binarize.data.dense import normalisation
    from binarize.data.images import read_image, resize_image
    from binarize.data.palette import palette
    from binarize.data.rendering import prediction_image
    from binarize.train import open_task

    known = next((s.settings for s in networks.values() if s.settings.get("task")), None)
    if known is None:
        raise BinarizeError(
            "image",
            str(path),
            "the network's file does not record its task",
            "report a file of binarize train, or omit --image",
        )
    if known["task"] not in ("segmentation", "multilabel", "depth"):
        raise BinarizeError(
            "image", str(path), f"the task {known['task']!r} cannot be shown yet", "omit --image"
        )
    task = open_task(str(known["task"]), num_classes=256, max_depth=known.get("max_depth"))
    image = read_image(path)
    shape = known.get("size")
    batch = as_input(
        image if shape is None else resize_image(image, tuple(shape)),
        normalisation(known.get("normalize") or "imagenet"),
    )
    rows, columns = image.shape[-2:]
    decoded = {}
    for title, source in networks.items():
        try_out(source.network, batch)
        with torch.no_grad():
            decoded[title] = task.decode(source.network(batch), (rows, columns))[0]
    depths = None
    if task.name == "depth":  # all in the same colours, to compare them
        depths = (
            min(float(values.min()) for values in decoded.values()),
            max(float(values.max()) for values in decoded.values()),
        )
    colors = known.get("palette") or palette(256)
    shown = {"input": Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())}
    for title, values in decoded.items():
        shown[title] = prediction_image(task.name, values, colors, depths)
    figures = (
        element("figure", _png(picture, title), element("figcaption", title))
        for title, picture in shown.items()
    )
    name = element("p", path.name)
    return Section(
        "predictions", "Predictions", Markup(name + element("div", *figures, class_="pictures"))
    )


def _png(picture: Any, title: str) -> Markup:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return png_image(file.getvalue(), title)


def _short(value: Any) -> str:
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.4f}" if known else "–"
