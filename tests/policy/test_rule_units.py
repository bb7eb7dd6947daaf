"""A rule may give its layers a unit of other parts: from the file to the packed network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import PolicyError
from binarize.graph.plan import Plan
from binarize.nn import BinaryLayer, UnitSpec
from binarize.policy import load_policy, validate

X = torch.zeros(1, 3, 16, 16)
FIVE = {"weight": "binary-bases", "weight_options": {"bases": 5}}
THREE = {
    "binarizer": "learned-levels",
    "binarizer_options": {"bits": 3},
    "weight": "learned-levels",
    "weight_options": {"bits": 3},
}
OVERRIDES = [
    {"match": {"name": "two"}, "action": "binarize", "unit": FIVE, "reason": "it hurts"},
    {"match": {"kind": "transposed"}, "action": "binarize", "unit": THREE, "reason": "so does it"},
]
RULES = """
name = "mine"
extends = "bidense"

[[rules]]
match = { name = "two" }
action = "binarize"
unit = { weight = "binary-bases", weight_options = { bases = 5 } }
reason = "it hurts"

[[rules]]
match = { kind = "transposed" }
action = "binarize"
reason = "so does it"
[rules.unit]
binarizer = "learned-levels"
binarizer_options = { bits = 3 }
weight = "learned-levels"
weight_options = { bits = 3 }
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x).relu()).relu()
        return self.head(self.up(self.two(x).relu()).relu())


def converted(policy: Any = "bidense", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return binarize.convert(Net(), policy, example_inputs=X, **options)


def bits(network: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (module.weight_bits, module.activation_bits)
        for name, module in network.named_modules()
        if isinstance(module, BinaryLayer)
    }


def test_each_layer_has_the_unit_of_its_rule(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RULES)
    student = converted(path)
    assert bits(student) == {"one": (1, 1), "two": (5, 1), "up": (3, 3)}
    whole = load_policy("bidense").unit
    assert student.one.spec == whole
    # Only what the rule names is another part.
    assert student.two.spec == UnitSpec(**{**vars(whole), **FIVE})
    assert student.up.spec == UnitSpec(**{**vars(whole), **THREE})
    by_override = converted(overrides=OVERRIDES)
    assert by_override.binarize_plan.decisions == student.binarize_plan.decisions
    # What a rule that extends it inherits.
    further = tmp_path / "further.toml"
    further.write_text('name = "further"\nextends = "mine.toml"\n[unit]\nbypass = "none"\n')
    bare = converted(further)
    assert bits(bare) == bits(student)
    assert bare.two.bypass is None
    assert student.two.bypass is not None


def test_the_plan_tells_it_and_is_data() -> None:
    plan = binarize.plan(Net(), example_inputs=X, overrides=OVERRIDES)
    decided = {d.site: d for d in plan.layers}
    assert decided["two"].unit == FIVE
    assert decided["one"].unit is None
    assert decided["head"].unit is None
    assert plan.unit(decided["two"]).weight == "binary-bases"
    assert plan.unit(decided["one"]) == plan.policy.unit
    assert decided["two"].rule == "name=two -> binarize with weight='binary-bases', bases=5"
    assert decided["two"].rule in str(plan)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    plain = binarize.plan(Net(), example_inputs=X)
    assert plain.diff(plan) == [
        "two: binarize -> binarize with weight='binary-bases', bases=5",
        "up: binarize -> binarize with binarizer='learned-levels', bits=3, "
        "weight='learned-levels', bits=3",
    ]
    assert plan.diff(plan) == []
    # Files of plans without such rules hold nothing of them.
    assert "unit" not in {key for row in plain.to_dict()["decisions"] for key in row}
    assert "unit" not in {key for rule in plain.to_dict()["policy"]["rules"] for key in rule}


def test_a_policy_with_such_rules_survives_its_rule_file(tmp_path: Path) -> None:
    plan = binarize.plan(Net(), example_inputs=X, overrides=OVERRIDES)
    plan.policy.save(tmp_path / "mine.toml")
    text = (tmp_path / "mine.toml").read_text()
    assert 'unit = { weight = "binary-bases", weight_options = { bases = 5 } }' in text
    assert 'extends = "bidense"' in text
    assert load_policy(tmp_path / "mine.toml").rules == plan.policy.rules


def test_the_file_gives_the_network_back(tmp_path: Path) -> None:
    student = converted(overrides=OVERRIDES).train()
    for _ in range(3):  # so that norms and levels have moved
        student(torch.randn(4, 3, 16, 16))
    student.eval()
    path = tmp_path / "x.safetensors"
    binarize.save(student, path)
    assert path.stat().st_size == binarize.report(student).file_bytes
    image = torch.randn(2, 3, 20, 12)
    loaded = binarize.load(path, model=Net())
    assert bits(loaded) == bits(student)
    assert loaded.binarize_plan == student.binarize_plan
    assert torch.equal(loaded(image), student(image))
    packed = binarize.load(path, model=Net(), packed=True)
    torch.testing.assert_close(packed(image), student(image), atol=1e-4, rtol=1e-4)
    paths = {row.name: (row.path, row.reason) for row in binarize.report(packed).layers}
    assert [paths[name][0] for name in ("one", "two", "up")] == ["popcount"] * 3
    assert paths["two"][1].startswith("5 sums over signs")
    assert paths["up"][1].startswith("9 sums over signs")


def test_the_report_counts_it() -> None:
    rows = {row.name: row for row in binarize.report(converted(overrides=OVERRIDES)).layers}
    plain = {row.name: row for row in binarize.report(converted()).layers}
    assert [(rows[n].weight_bits, rows[n].activation_bits) for n in ("one", "two", "up")] == [
        (1, 1),
        (5, 1),
        (3, 3),
    ]
    assert rows["one"] == plain["one"]
    assert rows["two"].binary_params == 5 * plain["two"].binary_params
    assert rows["two"].binary_ops == 5 * (plain["two"].binary_ops or 0) > 0
    assert rows["up"].binary_params == 3 * plain["up"].binary_params
    assert rows["up"].binary_ops == 9 * (plain["up"].binary_ops or 0) > 0
    assert rows["two"].rule.endswith("-> binarize with weight='binary-bases', bases=5")


def test_a_bypass_of_its_own_counts_for_the_blocks_shortcut() -> None:
    """A layer whose rule takes its bypass away leaves the block's own addition."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.a = nn.Conv2d(8, 8, 3, padding=1)
            self.b = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head((x + self.b(self.a(x).relu())).relu())

    def addition(overrides: Any) -> str:
        plan = binarize.plan(Block(), example_inputs=X, overrides=overrides)
        return plan.additions[0].action

    bare = {"match": {"name": "a"}, "action": "binarize", "unit": {"bypass": "none"}}
    assert addition(None) == "drop"
    assert addition([bare]) == "keep"


def test_the_options_of_a_part_go_with_it(tmp_path: Path) -> None:
    """``dab`` has an option that ``sign`` has not; the same in a rule and below [unit]."""
    rule = {"match": {"name": "one"}, "action": "binarize", "unit": {"binarizer": "sign"}}
    assert converted(overrides=[rule]).one.spec.binarizer_options == {}
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nextends = "bidense"\n[unit]\nbinarizer = "sign"\n')
    assert load_policy(path).unit.binarizer_options == {}
    path.write_text('name = "mine"\nextends = "bidense"\n[unit]\nbinarizer = "dab"\n')
    assert load_policy(path).unit.binarizer_options == {"scale": "layer"}


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ('{ wieght = "sign" }', "rules[1].unit.wieght: unknown key, did you mean 'weight'"),
        ('{ weight = "bases" }', "rules[1].unit.weight='bases': no such part; use one of "),
        ('{ weight = ["sign"] }', "rules[1].unit.weight=['sign']: no such part; use one of "),
        ("{ weight_options = { bases = 5 } }", "rules[1].unit.weight_options='bases': no such "),
        (
            '{ weight = "binary-bases", weight_options = { bases = 40 } }',
            "must be a whole number from 1 to 16; give for example 2",
        ),
        (
            '{ activation = "maxout" }',
            "rules[1].unit.activation: an activation may follow several layers; set it in [unit], "
            "for all",
        ),
        (
            '"groupnet"',
            "rules[1].unit='groupnet': not a table; write for example {weight = 'binary-bases'}",
        ),
    ],
)
def test_mistakes(tmp_path: Path, unit: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    rule = f'[[rules]]\naction = "binarize"\nreason = "all"\nunit = {unit}\n'
    path.write_text(f'name = "mine"\nextends = "bidense"\n{rule}')
    (found,) = validate(path)
    assert said in found
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert found in str(caught.value)


def test_a_layer_that_is_kept_has_no_unit() -> None:
    wrong = {"match": {"name": "one"}, "action": "keep", "unit": FIVE}
    with pytest.raises(PolicyError) as caught:
        binarize.plan(Net(), example_inputs=X, overrides=[wrong])
    assert "rules[1].unit: a layer that is kept has no unit; remove it" in str(caught.value)
