"""Rules and overrides: the first that matches a layer decides it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import binarize
from binarize.errors import PolicyError
from binarize.policy import Match, Policy, Rule, Site, load_policy, matches, with_overrides

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
    site = Site(
        names=("decoder.blocks.4.conv1", "decoder.blocks.-1.conv1"),
        roles=frozenset({"vector"}),
        kinds=frozenset({"conv", "pointwise"}),
        cls="Conv2d",
    )
    assert matches(rule(), site)
    assert matches(rule(name=("decoder.*",)), site)
    assert matches(rule(name=("encoder.*", "*.conv1")), site)
    assert matches(rule(name=("decoder.blocks.-1.*",)), site)
    assert not matches(rule(name=("decoder.blocks.-2.*",)), site)
    assert not matches(rule(name=("decoder",)), site)
    assert not matches(rule(name=("conv1",)), site)
    assert matches(rule(role=("input", "vector")), site)
    assert matches(rule(kind=("depthwise", "pointwise")), site)
    assert matches(rule(cls=("Conv2d",)), site)
    assert not matches(rule(cls=("Conv2",)), site)
    assert not matches(rule(name=("decoder.*",), role=("input",)), site)
    assert not matches(rule(kind=("pointwise",), cls=("Linear",)), site)
    # Names are told apart by case on every system.
    assert not matches(rule(name=("DECODER.*",)), site)


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
        ("2.-1", {"2.1"}),
        ("-3.-2", {"1.0"}),
        ("*.-1", {"1.1", "2.1"}),
        ("2.-3", None),
        ("position:first 2", {"1.0"}),
        ("position:last 3", {"2.0", "2.1"}),
        ("position:last 4", {"1.1", "2.0", "2.1"}),
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
        ({"position:two": "keep"}, "'last 2'"),
        ({"position:first 0": "keep"}, "'first 2'"),
        ({3: "keep"}, "function"),
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


def test_a_position_counts_the_layers_that_the_other_keys_match() -> None:
    ends = {"match": {"position": ["first 1", "last 2"]}, "action": "keep"}
    got = actions([ends, {"match": {}, "action": "binarize"}])
    assert {site for site, action in got.items() if action == "keep"} == {"0", "2.1", "3"}
    plain = {"match": {"class": "Conv2d", "position": "last 2"}, "action": "keep"}
    got = actions([plain, {"match": {}, "action": "binarize"}])
    assert {site for site, action in got.items() if action == "keep"} == {"2.0", "3"}


def test_positions_leave_out_what_never_runs() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.spare = nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    plan = binarize.plan(Spare(), example_inputs=X, overrides={"position:last 2": "keep"})
    decided = {d.site: d.action for d in plan.layers}
    assert (decided["net.2.1"], decided["spare"]) == ("keep", "binarize")


def narrow(name: str, layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and name != "0"


@pytest.mark.parametrize(
    "overrides",
    [
        {narrow: "keep"},
        {narrow: "keep", "2.1": "binarize"},
        [{"match": narrow, "action": "keep"}],
    ],
)
def test_a_function_chooses_layers(overrides: object) -> None:
    made = binarize.plan(net(), example_inputs=X, overrides=overrides)
    kept = {d.site: d for d in made.layers if d.action == "keep"}
    assert set(kept) == {"0", "1.0", "2.0", "3"}
    assert "narrow" in kept["2.0"].reason
    # The plan holds names, no function: it is data as ever.
    assert binarize.Plan.from_dict(made.to_dict()) == made
    assert binarize.plan(net(), made.policy, example_inputs=X).layers == made.layers


def test_a_function_that_chooses_by_another_name_of_a_shared_layer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.out = (
                nn.Conv2d(3, 8, 3),
                nn.Conv2d(8, 8, 3),
                nn.Conv2d(8, 2, 1),
            )
            self.other = self.one
            self.last = nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.last(self.other(self.one(self.stem(x)))))

    chosen = {lambda name, layer: name == "other": "keep"}
    plan = binarize.plan(Shared(), example_inputs=X, overrides=chosen)
    assert {d.site for d in plan.layers if d.action == "keep"} == {"stem", "one", "out"}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda name, layer: False, "matched no layer"),
        (lambda name: True, "failed (TypeError"),
        (lambda name, layer: layer.widths, "failed (AttributeError"),
    ],
)
def test_functions_that_cannot_be_used(function: object, words: str) -> None:
    with pytest.raises(PolicyError) as raised:
        binarize.plan(net(), example_inputs=X, overrides={function: "keep"})
    message = str(raised.value)
    assert message.startswith("overrides=")
    assert words in message
    assert "\n" not in message


def test_rules_by_role_may_match_nothing_without_a_word() -> None:
    plan = binarize.plan(net(), example_inputs=X)
    assert plan.unmatched == ()
    assert "matched nothing" not in str(plan)


class CalledTwice(nn.Module):
    """One ReLU module, called at two places of one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.one, self.two = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.two(self.act(self.one(self.stem(x))))))


def test_two_plans_are_compared_place_by_place() -> None:
    plain = binarize.plan(CalledTwice(), example_inputs=X)
    assert plain.diff(plain) == []
    careful = binarize.plan(CalledTwice(), example_inputs=X, overrides={"one": "keep"})
    lines = plain.diff(careful)
    assert lines == [
        "one: binarize -> keep",
        "act called by (root) #0: replace -> keep",
    ]
    # The other way round, and for the second call.
    assert careful.diff(plain)[0] == "one: keep -> binarize"
    careful = binarize.plan(CalledTwice(), example_inputs=X, overrides={"two": "keep"})
    assert "act called by (root) #1: replace -> keep" in plain.diff(careful)


def test_the_comparison_tells_the_units_parts_and_lost_bypasses() -> None:
    one = binarize.plan(net(), example_inputs=X)
    other = binarize.plan(net(), "bidense-released", example_inputs=X)
    assert "unit.bypass: 'contiguous' -> 'interleaved'" in one.diff(other)
    bare = Policy("bare", unit=replace(BIDENSE.unit, bypass=None), rules=BIDENSE.rules)
    lines = one.diff(binarize.plan(net(), bare, example_inputs=X))
    assert lines == [
        "unit.bypass: 'contiguous' -> 'none'",
        *(f"{site}: binarize -> binarize without bypass" for site in ("1.0", "1.1", "2.0", "2.1")),
    ]
