"""Choose which layers stay float, so that a network stays within a budget."""

from binarize.budget.amount import Budget
from binarize.budget.convert import convert, plan

__all__ = ["Budget", "convert", "plan"]
