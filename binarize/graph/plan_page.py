"""A plan as an HTML page, and as the small table of a notebook."""

from __future__ import annotations

from binarize.graph.plan import Plan
from binarize.page import Cell, Markup, Section, document, element, folded, notebook_view, table
from binarize.policy.write import to_toml

__all__ = ["notebook_html", "plan_page"]

_HEADS = ("Place", "Part", "Kind", "Shape", "Decision", "Weights", "Roles", "Reason", "Rule")


def plan_page(plan: Plan) -> str:
    """The page: all decisions, and the policy.

    Args:
        plan: The plan.
    """
    sections = [Section("decisions", "Decisions", table("decision-table", _HEADS, _rows(plan)))]
    notes = [f"not traced {scope or '(root)'}: {why}" for scope, why in plan.opaque.items()]
    notes += [f"rule matched nothing: {rule}" for rule in plan.unmatched]
    if notes:
        listed = element("ul", *(element("li", note) for note in notes))
        sections.append(Section("notes", "Notes", listed))
    text = element("pre", element("code", to_toml(plan.policy, inherit=False)), tabindex=0)
    sections.append(Section("policy", "Policy", text))
    return document("Conversion plan", plan.headline(), sections)


def notebook_html(plan: Plan) -> Markup:
    """The headline, and the decisions as a static table.

    Args:
        plan: The plan.
    """
    decisions = table("", _HEADS, _rows(plan), static=True)
    return notebook_view(plan.headline(), folded(f"{len(plan.decisions)} decisions", decisions))


def _rows(plan: Plan) -> list[tuple[str | None, list[Cell]]]:
    return [
        (
            None,
            [
                Cell(d.site or "(root)"),
                Cell(d.part),
                Cell(d.kind),
                Cell("×".join(map(str, d.shape))),
                Cell(d.action, mark=d.action),
                Cell(f"{d.weights:,}" if d.weights else "", d.weights or None, numeric=True),
                Cell(", ".join(d.roles)),
                Cell(d.reason),
                Cell(d.rule),
            ],
        )
        for d in plan.decisions
    ]
