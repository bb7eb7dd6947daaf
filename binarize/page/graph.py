"""Draw a network as a flow chart: operations from top to bottom, tensors as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from binarize.page.markup import Markup, element

__all__ = ["Node", "flow_chart"]

_WIDTH, _HEIGHT, _STEP, _LANE = 330, 26, 44, 356
# How far lines that skip nodes bend to the left: grows with the steps skipped, up to a limit.
_BEND, _PER_STEP, _BEND_LIMIT = 22, 7, 300
_CHARACTERS = 46


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: Text of its box.
        detail: Tooltip.
        mark: CSS class of its colour.
        inputs: Indices of the nodes whose results it takes, all before its own.
        id: Identifies it on the page.
        link: Anchor within the page that it links to.
    """

    name: str
    detail: str
    mark: str
    inputs: tuple[int, ...]
    id: str | None = None
    link: str | None = None


def flow_chart(nodes: Sequence[Node], title: str) -> Markup:
    """Draw a flow chart as SVG.

    Each node is placed below its dependencies; nodes that could run concurrently are side by side.

    Args:
        nodes: The nodes in execution order.
        title: Alternative text.
    """
    depths: list[int] = []
    for node in nodes:
        depths.append(1 + max((depths[i] for i in node.inputs), default=-1))
    lanes = _lanes(nodes, depths)
    edges = [(source, i) for i, node in enumerate(nodes) for source in dict.fromkeys(node.inputs)]
    bends = [_bend(depths[b] - depths[a]) for a, b in edges if _passes(depths, lanes, a, b)]
    left = 0.75 * max(bends, default=0) + 8
    places = [
        (left + _LANE * k, 6.0 + _STEP * depth) for k, depth in zip(lanes, depths, strict=True)
    ]
    lines = [
        _edge(places[a], places[b], depths[b] - depths[a], _passes(depths, lanes, a, b))
        for a, b in edges
    ]
    boxes = [_box(node, *place) for node, place in zip(nodes, places, strict=True)]
    width = left + _LANE * (1 + max(lanes, default=0))
    height = 12 + _STEP * (max(depths, default=0) + 1)
    arrow = element(
        "marker",
        element("path", d="M0 0 8 4 0 8z"),
        id="arrow",
        viewBox="0 0 8 8",
        refX=7,
        refY=4,
        markerWidth=7,
        markerHeight=7,
        orient="auto",
    )
    return element(
        "svg",
        element("title", title),
        element("defs", arrow),
        *lines,
        *boxes,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        class_="flow",
        role="group",
        aria_label=title,
    )


def _lanes(nodes: Sequence[Node], depths: Sequence[int]) -> list[int]:
    """Return each node's column: below its first input if possible, else the first free one."""
    last = list(depths)
    for i, node in enumerate(nodes):
        for source in node.inputs:
            last[source] = max(last[source], depths[i] - 1)
    lanes = [0] * len(nodes)
    # For each column, the step down to which a node or its longest line occupies it.
    taken: dict[int, int] = {}
    for i in sorted(range(len(nodes)), key=lambda i: (depths[i], i)):
        inputs = nodes[i].inputs
        own = lanes[inputs[0]] if inputs else 0
        if taken.get(own, -1) >= depths[i]:
            above = min((depths[source] for source in inputs), default=-1)
            own = next(k for k in range(len(nodes)) if taken.get(k, -1) <= above or k not in taken)
        lanes[i] = own
        # Lines that stay in the first column bend around its nodes.
        taken[own] = depths[i] if own == 0 else max(depths[i], last[i])
    return lanes


def _passes(depths: Sequence[int], lanes: Sequence[int], a: int, b: int) -> bool:
    """Return whether a straight line between two nodes would cross others."""
    return lanes[a] == lanes[b] == 0 and depths[b] - depths[a] > 1


def _bend(steps: int) -> float:
    return min(_BEND + _PER_STEP * steps, _BEND_LIMIT)


def _edge(start: tuple[float, float], end: tuple[float, float], steps: int, passes: bool) -> Markup:
    if passes:
        x, y = start[0], start[1] + _HEIGHT * 0.6
        far, down = start[0] - _bend(steps), end[1] + _HEIGHT * 0.4
        path = f"M{x:.0f} {y:.0f}C{far:.0f} {y:.0f} {far:.0f} {down:.0f} {end[0]:.0f} {down:.0f}"
        return element("path", d=path, class_="edge long", marker_end="url(#arrow)")
    x, y = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    to, down = end[0] + _WIDTH / 2, end[1]
    # A branch that ends further down stays in its own lane until the last step.
    turn = down - _STEP + _HEIGHT if start[0] > end[0] else y
    path = f"M{x:.0f} {y:.0f}V{turn:.0f}" if turn > y else f"M{x:.0f} {y:.0f}"
    middle = (max(turn, y) + min(down, max(turn, y) + _STEP - _HEIGHT)) / 2
    last = min(down, max(turn, y) + _STEP - _HEIGHT)
    path += f"C{x:.0f} {middle:.0f} {to:.0f} {middle:.0f} {to:.0f} {last:.0f}"
    path += f"V{down:.0f}" if down > last else ""
    return element("path", d=path, class_="edge", marker_end="url(#arrow)")


def _box(node: Node, x: float, y: float) -> Markup:
    name = node.name
    if len(name) > _CHARACTERS:
        name = "…" + name[1 - _CHARACTERS :]
    parts = (
        element("title", f"{node.name}\n{node.detail}"),
        element("rect", x=f"{x:.0f}", y=f"{y:.0f}", width=_WIDTH, height=_HEIGHT, rx=5),
        element("text", name, x=f"{x + _WIDTH / 2:.0f}", y=f"{y + 17:.0f}"),
    )
    kind = f"node {node.mark}"
    if node.link is None:
        return element("g", *parts, class_=kind, id=node.id)
    return element("a", *parts, class_=kind, id=node.id, href=node.link)
