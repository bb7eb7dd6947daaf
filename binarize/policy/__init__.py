"""Policies: which layers become binary, and the parts of the binary unit."""

from binarize.policy.loader import load_policy, policies, policy_files, validate
from binarize.policy.match import Site, matches, select, with_overrides
from binarize.policy.schema import Match, Policy, Rule

__all__ = [
    "Match",
    "Policy",
    "Rule",
    "Site",
    "load_policy",
    "matches",
    "policies",
    "policy_files",
    "select",
    "validate",
    "with_overrides",
]
