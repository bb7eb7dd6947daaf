"""A plan as an HTML page, and as the small table of a notebook."""

from __future__ import annotations

from binarize.graph.decisions import Decision, LayerDecision
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
    return [(None, _cells(decision)) for decision in plan.decisions]


def _cells(decision: Decision) -> list[Cell]:
    layer = decision if isinstance(decision, LayerDecision) else None
    weights = layer.weights if layer else 0
    return [
        Cell(decision.site or "(root)"),
        Cell(decision.part),
        Cell(decision.kind),
        Cell("×".join(map(str, layer.shape)) if layer else ""),
        Cell(decision.action, mark=decision.action),
        Cell(f"{weights:,}" if weights else "", weights or None, numeric=True),
        Cell(", ".join(layer.roles) if layer else ""),
        Cell(decision.reason),
        Cell(decision.rule),
    ]
