"""Choose which layers stay in float to keep a network within a budget."""

from binarize.budget.amount import Budget
from binarize.budget.convert import convert, plan

__all__ = ["Budget", "convert", "plan"]
