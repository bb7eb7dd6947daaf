"""Rules and overrides: the first that matches a layer decides it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import binarize
from binarize.errors import PolicyError
from binarize.policy import Match, Policy, Rule, load_policy, matches, with_overrides

BIDENSE = load_policy("bidense")
X = torch.zeros(1, 3, 16, 16)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, 2)),
        nn.Conv2d(8, 2, 1),
    )


def actions(overrides: object = None, policy: object = "bidense") -> dict[str, str]:
    made = binarize.plan(net(), policy, example_inputs=X, overrides=overrides)
    return {decision.site: decision.action for decision in made.layers}


def rule(**match: tuple[str, ...]) -> Rule:
    return Rule(Match(**match), "keep", "because")


def test_a_rule_needs_all_of_its_keys_and_any_of_their_values() -> None:
    facts = {
        "name": "decoder.blocks.4.conv1",
        "roles": frozenset({"vector"}),
        "kinds": frozenset({"conv", "pointwise"}),
        "cls": "Conv2d",
    }
    assert matches(rule(), **facts)
    assert matches(rule(name=("decoder.*",)), **facts)
    assert matches(rule(name=("encoder.*", "*.conv1")), **facts)
    assert not matches(rule(name=("decoder",)), **facts)
    assert not matches(rule(name=("conv1",)), **facts)
    assert matches(rule(role=("input", "vector")), **facts)
    assert matches(rule(kind=("depthwise", "pointwise")), **facts)
    assert matches(rule(cls=("Conv2d",)), **facts)
    assert not matches(rule(cls=("Conv2",)), **facts)
    assert not matches(rule(name=("decoder.*",), role=("input",)), **facts)
    assert not matches(rule(kind=("pointwise",), cls=("Linear",)), **facts)
    # Names are told apart by case on every system.
    assert not matches(rule(name=("DECODER.*",)), **facts)


def test_without_overrides_the_ends_are_kept() -> None:
    assert actions() == {
        "0": "keep",
        "1.0": "binarize",
        "1.1": "binarize",
        "2.0": "binarize",
        "2.1": "binarize",
        "3": "keep",
    }


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        ("2.*", {"2.0", "2.1"}),
        ("*.1", {"1.1", "2.1"}),
        ("kind:depthwise", {"1.0"}),
        ("kind:grouped", None),
        ("kind:pointwise", {"1.1"}),
        ("kind:transposed", {"2.1"}),
        ("class:ConvTranspose2d", {"2.1"}),
    ],
)
def test_selectors(selector: str, kept: set[str] | None) -> None:
    if kept is None:
        with pytest.raises(PolicyError, match="matched no layer"):
            actions({selector: "keep"})
        return
    got = actions({selector: "keep"})
    assert {site for site, action in got.items() if action == "keep"} == {"0", "3"} | kept


def test_roles_can_be_overridden() -> None:
    assert actions({"role:input": "binarize"})["0"] == "binarize"
    assert actions({"role:prediction": "binarize"})["3"] == "binarize"


def test_a_list_of_rule_tables() -> None:
    got = actions(
        [
            {"match": {"name": "2.*", "class": "Conv2d"}, "action": "keep", "reason": "mine"},
            {"match": {"kind": ["depthwise", "transposed"]}, "action": "keep", "reason": "two"},
        ]
    )
    assert {site for site, action in got.items() if action == "binarize"} == {"1.1"}


def test_the_reason_and_the_rule_reach_the_plan() -> None:
    made = binarize.plan(
        net(),
        example_inputs=X,
        overrides=[{"match": {"name": "2.0"}, "action": "keep", "reason": "too thin"}],
    )
    decision = next(d for d in made.layers if d.site == "2.0")
    assert decision.reason == "too thin"
    assert "2.0" in decision.rule


def test_the_first_match_wins() -> None:
    one = actions({"2.0": "binarize", "2.*": "keep"})
    assert (one["2.0"], one["2.1"]) == ("binarize", "keep")
    other = actions({"2.*": "keep", "*": "binarize"})
    assert (other["2.0"], other["0"], other["3"], other["1.0"]) == (
        "keep",
        "binarize",
        "binarize",
        "binarize",
    )
    policy = with_overrides(BIDENSE, {"a": "keep"})
    assert policy.rules[1:] == BIDENSE.rules
    assert policy.rules[0].match.name == ("a",)


def test_rules_of_a_policy_are_tried_in_order() -> None:
    everything = Rule(Match(), "binarize", "all")
    first = Rule(Match(name=("2.*",)), "keep", "no")
    keep_first = Policy(name="x", unit=BIDENSE.unit, rules=(first, everything))
    assert actions(policy=keep_first)["2.0"] == "keep"
    late = Policy(name="x", unit=BIDENSE.unit, rules=(everything, first))
    assert actions(policy=Policy(name="x", unit=BIDENSE.unit, rules=(everything,)))["2.0"] == (
        "binarize"
    )
    assert actions(policy=late)["2.0"] == "binarize"
    # A rule that names layers must match one; others only are told to have matched nothing.
    lost = Policy(name="x", unit=BIDENSE.unit, rules=(rule(name=("9.*",)), everything))
    with pytest.raises(PolicyError, match=r"9\.\*.*matched no layer"):
        actions(policy=lost)
    general = Policy(name="x", unit=BIDENSE.unit, rules=(rule(kind=("grouped",)), everything))
    plan = binarize.plan(net(), general, example_inputs=X)
    assert len(plan.unmatched) == 1
    assert "grouped" in plan.unmatched[0]
    assert plan.unmatched[0] in str(plan)


def test_the_policy_itself_is_not_changed() -> None:
    before = BIDENSE.to_dict()
    actions({"2.*": "keep"})
    assert BIDENSE.to_dict() == before


@pytest.mark.parametrize("overrides", [None, {}, []])
def test_no_overrides(overrides: object) -> None:
    assert with_overrides(BIDENSE, overrides).rules == BIDENSE.rules


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"decoder.blocks.4.*": "keep"}, "decoder.blocks.4.*"),
        ({"2.*": "keep", "encoder.*": "keep"}, "encoder.*"),
        ({"class:Linear": "keep"}, "Linear"),
        ({"kind:linear": "keep"}, "linear"),
        ({"role:tokens": "binarize"}, "tokens"),
        ({"": "keep"}, ""),
        ([{"match": {"name": "9"}, "action": "keep"}], "9"),
    ],
)
def test_an_override_that_matched_nothing_is_an_error(overrides: object, named: str) -> None:
    for call in (binarize.plan, binarize.convert):
        with pytest.raises(PolicyError) as raised:
            call(net(), example_inputs=X, overrides=overrides)
        message = str(raised.value)
        assert message.startswith("overrides=")
        assert "matched no layer" in message
        assert named in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "nearest"),
    [
        ({"2.*": "kep"}, "keep"),
        ({"2.*": 3}, "keep"),
        ({"kind:depthwis": "keep"}, "'depthwise'"),
        ({"role:inpt": "keep"}, "'input'"),
        ([{"match": {"nam": "x"}, "action": "keep"}], "'name'"),
        ([{"match": {"name": "x"}, "acton": "keep"}], "'action'"),
        ([3], "table"),
        (3, ""),
        ("2.*", ""),
    ],
)
def test_malformed_overrides_are_told_in_one_line(overrides: object, nearest: str) -> None:
    with pytest.raises(PolicyError) as raised:
        with_overrides(BIDENSE, overrides)
    message = str(raised.value)
    assert message.startswith("overrides=")
    assert nearest in message
    assert "\n" not in message
