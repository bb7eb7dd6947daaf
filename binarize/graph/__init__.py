"""Model conversion: trace a network, plan its conversion, rewrite it."""

from binarize.graph.convert import Traced, convert, plan
from binarize.graph.plan import Decision, Plan

__all__ = ["Decision", "Plan", "Traced", "convert", "plan"]
