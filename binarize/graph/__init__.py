"""Model conversion: trace a network, plan its conversion, rewrite it."""

from binarize.graph.convert import Traced, convert, plan
from binarize.graph.decisions import Decision, LayerDecision
from binarize.graph.plan import Plan

__all__ = ["Decision", "LayerDecision", "Plan", "Traced", "convert", "plan"]
