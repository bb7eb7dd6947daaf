"""Self-contained HTML pages that send no requests and are readable without scripts."""

from binarize.page.document import (
    Live,
    Section,
    document,
    figure_image,
    live_state,
    png_image,
    served_policy,
    write_page,
)
from binarize.page.graph import Node, flow_chart
from binarize.page.markup import Markup, element
from binarize.page.paged import Paged, folded, notebook_view
from binarize.page.table import Cell, table
from binarize.page.treemap import Tile, treemap

__all__ = [
    "Cell",
    "Live",
    "Markup",
    "Node",
    "Paged",
    "Section",
    "Tile",
    "document",
    "element",
    "figure_image",
    "flow_chart",
    "folded",
    "live_state",
    "notebook_view",
    "png_image",
    "served_policy",
    "table",
    "treemap",
    "write_page",
]
