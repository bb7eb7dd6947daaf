"""Budgets: what is chosen is the best there is, what it costs is what the file has."""

from __future__ import annotations

import functools
import itertools
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.budget import Budget
from binarize.errors import BinarizeError, FileError
from binarize.policy import load_policy
from binarize.report import Sensitivity, SiteSensitivity

X = torch.zeros(1, 3, 16, 16)
LAYERS = ("wide", "grouped", "up", "thin")


class Net(nn.Module):
    """Four layers to decide about; one is called twice, one has groups, one upsamples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.wide = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(128)
        self.grouped = nn.Conv2d(128, 128, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(128, 64, 2, 2)
        self.thin = nn.Conv2d(64, 64, 1)
        self.again = self.thin
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.wide(self.stem(x).relu())).relu()
        x = self.thin(self.up(self.grouped(x).relu()).relu()).relu()
        return self.head(self.again(x).relu())


def measured(losses: dict[str, float], **changes: Any) -> Sensitivity:
    rows = tuple(
        SiteSensitivity(site, "Conv2d", (), "binarize", 0.5, loss, None, 2 * loss, None, loss / 2)
        for site, loss in losses.items()
    )
    whole = Sensitivity(
        "Net", "bidense", "alone", False, "mIoU", 0.6, None, None, None, 8, 8, len(rows), rows
    )
    return replace(whole, **changes)


SOME = "200kB"
LOSSES = {"wide": 0.07, "grouped": 0.03, "up": 0.01, "thin": 0.02}


def kept(plan: binarize.Plan) -> set[str]:
    return {d.site for d in plan.layers if d.action == "keep"} - {"stem", "head"}


@functools.cache
def cost(kind: str, keep: Any = ()) -> float:
    """Bytes or operations with these layers kept by ordinary overrides."""
    overrides = dict.fromkeys(keep, "keep")
    made = binarize.report(binarize.convert(Net(), example_inputs=X, overrides=overrides))
    return made.file_bytes if kind == "bytes" else made.ops


def written(kind: str, amount: float) -> str:
    return f"{amount:.0f}B" if kind == "bytes" else f"{amount:.0f}OPs"


@pytest.mark.parametrize("kind", ["bytes", "ops"])
def test_the_best_choice_there_is(kind: str) -> None:
    sets = [s for n in range(4) for s in itertools.combinations(LAYERS, n)]
    costs = {chosen: cost(kind, chosen) for chosen in sets}
    for chosen in sets[::3]:
        # Reasons take a few bytes of the header, and are not part of what is counted here.
        limit = costs[chosen] + 400 * (kind == "bytes") + 1
        plan = binarize.plan(
            Net(), example_inputs=X, budget=written(kind, limit), sensitivity=measured(LOSSES)
        )
        best = max(sum(LOSSES[s] for s in other) for other in sets if costs[other] <= limit)
        assert sum(LOSSES[s] for s in kept(plan)) == pytest.approx(best), chosen


@pytest.mark.parametrize("known", [None, measured(LOSSES)])
@pytest.mark.parametrize("kind", ["bytes", "ops"])
def test_what_is_chosen_fits_and_more_room_is_never_worse(
    kind: str, known: Any, tmp_path: Path
) -> None:
    worth = dict.fromkeys(LAYERS, 1.0) if known is None else LOSSES
    least, most = cost(kind), cost(kind, LAYERS[:1] + LAYERS[2:])
    before = -1.0
    for step in range(4):
        limit = round(least * 1.05 + (most - least) * step / 3)
        student = binarize.convert(
            Net(), example_inputs=X, budget=written(kind, limit), sensitivity=known
        )
        if kind == "bytes":
            binarize.save(student, tmp_path / "x.safetensors")
            assert os.path.getsize(tmp_path / "x.safetensors") <= limit
        else:
            assert binarize.report(student).ops <= limit
        value = sum(worth[site] for site in kept(student.binarize_plan))
        assert value >= before
        before = value
    assert before > 0


def test_the_bytes_that_reasons_take_count_too() -> None:
    # Kept by a short override, and just small enough; the budget's own rules are longer.
    limit = cost("bytes", ("up",)) + 20
    known = measured({**dict.fromkeys(LAYERS, 0.001), "up": 1.0})
    student = binarize.convert(Net(), example_inputs=X, budget=f"{limit}B", sensitivity=known)
    assert binarize.report(student).file_bytes <= limit
    assert "up" not in kept(student.binarize_plan)


def test_a_drop_is_met_with_the_fewest_bytes() -> None:
    sets = [s for n in range(4) for s in itertools.combinations(LAYERS, n)]
    costs = {chosen: cost("bytes", chosen) for chosen in sets}
    total = sum(LOSSES.values())
    for budget, allowed in (("drop=0.1", 0.1), ("drop=0.06", 0.06), ("drop=0.03", 0.03)):
        plan = binarize.plan(Net(), example_inputs=X, budget=budget, sensitivity=measured(LOSSES))
        good = [s for s in sets if total - sum(LOSSES[x] for x in s) <= allowed + 1e-9]
        assert kept(plan) == set(min(good, key=costs.__getitem__)), budget
    # The share of predictions that changes is half of these losses here.
    plan = binarize.plan(
        Net(), example_inputs=X, budget="agreement=0.97", sensitivity=measured(LOSSES)
    )
    assert sum(LOSSES[s] for s in LAYERS if s not in kept(plan)) / 2 <= 0.03 + 1e-9


def test_a_budget_that_asks_for_nothing_is_the_policy_alone() -> None:
    plan = binarize.plan(Net(), example_inputs=X, budget="drop=1", sensitivity=measured(LOSSES))
    assert kept(plan) == set()
    assert binarize.plan(Net(), example_inputs=X).diff(plan) == []


def test_every_layer_says_why() -> None:
    limit = f"{cost('bytes', ('wide',)) + 800:.0f}B"
    plan = binarize.plan(Net(), example_inputs=X, budget=limit, sensitivity=measured(LOSSES))
    reasons = {d.site: d.reason for d in plan.layers}
    assert reasons["wide"].startswith(f"kept by the budget of {limit}: ")
    assert (
        "kB more in float; binary alone, it moves the output by 0.1400, place 1 of 4"
        in (reasons["wide"])
    )
    assert reasons["up"].startswith(f"does not fit the budget of {limit}: ")
    assert reasons["up"].endswith("place 4 of 4")
    assert reasons["stem"].startswith("reads the image")
    assert plan.policy.name == f"bidense, {limit}"
    plain = binarize.plan(Net(), example_inputs=X, budget=limit)
    assert "without sensitivities, the cheapest layers come first" in str(plain)
    drop = binarize.plan(Net(), example_inputs=X, budget="drop=0.06", sensitivity=measured(LOSSES))
    assert "permitted by the budget of drop=0.06: " in str(drop)
    assert "binary alone, it loses 0.0100 mIoU, place 4 of 4" in str(drop)


@pytest.mark.parametrize("overrides", [None, {"thin": "keep", "role:prediction": "keep"}])
def test_the_choice_as_a_rule_file_gives_the_same_plan(overrides: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"example_inputs": X}
    made = binarize.plan(
        Net(), budget=SOME, sensitivity=measured(LOSSES), overrides=overrides, **options
    )
    assert 0 < len(kept(made)) < 4
    path = tmp_path / "mine.toml"
    made.policy.save(path)
    text = path.read_text()
    assert 'extends = "bidense"' in text
    assert "[unit]" not in text
    again = binarize.plan(Net(), path, **options)
    assert again.decisions == made.decisions
    assert made.diff(again) == []
    assert again.policy == replace(made.policy, name="mine")
    # A person changes a word of it.
    site = sorted(kept(made) - {"thin"})[0]
    rule = f'match = {{ name = "{site}" }}\naction = "keep"'
    assert rule in text
    path.write_text(text.replace(rule, rule.replace("keep", "binarize")))
    assert f"{site}: keep -> binarize" in made.diff(binarize.plan(Net(), path, **options))


# With the bits of Group-Net and of LQ-Nets. "thin" loses more by them than with one bit.
MORE = {
    "wide": {"groupnet": 0.04, "lqnet": 0.02},
    "grouped": {"groupnet": 0.03, "lqnet": 0.0},
    "up": {"groupnet": 0.0, "lqnet": -0.001},
    "thin": {"groupnet": 0.03, "lqnet": math.nan},
}
NAMES = ("groupnet", "lqnet")
UNITS = {
    "groupnet": {"weight": "binary-bases", "weight_options": {"bases": 5}},
    "lqnet": {
        "binarizer": "learned-levels",
        "binarizer_options": {"bits": 3},
        "weight": "learned-levels",
        "weight_options": {"bits": 3},
    },
}


def measured_more(
    losses: dict[str, float] = LOSSES, losses_with: dict[str, dict[str, float]] = MORE
) -> Sensitivity:
    known = measured(losses)
    more = {
        site: {
            name: {"distance": 2 * loss, "drop": loss, "disagreement": loss / 2}
            for name, loss in given.items()
        }
        for site, given in losses_with.items()
    }
    return replace(known, sites=tuple(replace(row, more=more[row.site]) for row in known.sites))


def loss_of(site: str, option: str) -> float:
    if option in ("binarize", "keep"):
        return LOSSES[site] if option == "binarize" else 0.0
    loss = MORE[site][option]
    return max(loss, 0.0) if math.isfinite(loss) else 1.0


@functools.cache
def costs_of(options: tuple[str, ...]) -> dict[str, float]:
    """Bytes and operations with the open layers as these options say, the others in float."""
    rules: list[dict[str, Any]] = [{"match": {"name": ["grouped", "thin"]}, "action": "keep"}]
    for site, option in zip(OPEN, options, strict=True):
        rule = {"match": {"name": site}, "action": "keep" if option == "keep" else "binarize"}
        rules.append({**rule, "unit": UNITS[option]} if option in UNITS else rule)
    made = binarize.report(binarize.convert(Net(), example_inputs=X, overrides=rules))
    return {"bytes": made.file_bytes, "ops": made.ops}


OPEN = ("wide", "up")
EVERY = list(itertools.product(("binarize", "keep", *NAMES), repeat=2))
EVERY.remove(("keep", "keep"))  # nothing would be binary
OTHERS_KEPT: dict[str, Any] = {
    "example_inputs": X,
    "overrides": {"grouped": "keep", "thin": "keep"},
}


def chosen_options(plan: binarize.Plan) -> tuple[str, ...]:
    names = {str(unit): name for name, unit in UNITS.items()}
    decided = {d.site: d for d in plan.layers}
    return tuple(names.get(str(decided[site].unit), decided[site].action) for site in OPEN)


@pytest.mark.parametrize("kind", ["bytes", "ops"])
def test_the_best_choice_with_more_bits(kind: str) -> None:
    costs = {options: costs_of(options)[kind] for options in EVERY}
    least, most = min(costs.values()), max(costs.values())
    known, seen = measured_more(), set()
    for share in (0.03, 0.1, 0.3, 0.99):
        limit = least + share * (most - least) + 400 * (kind == "bytes")
        budget = written(kind, limit)
        plan = binarize.plan(
            Net(), budget=budget, sensitivity=known, more_bits=NAMES, **OTHERS_KEPT
        )
        found = chosen_options(plan)
        # Reasons take a few bytes of the header, and are not part of what is counted here.
        assert costs[found] <= limit
        fitting = [x for x in EVERY if costs[x] <= limit - 700 * (kind == "bytes")]
        best = min(sum(map(loss_of, OPEN, options)) for options in fitting)
        assert sum(map(loss_of, OPEN, found)) <= best + 1e-12, share
        seen.update(found)
        student = binarize.convert(
            Net(), budget=budget, sensitivity=known, more_bits=NAMES, **OTHERS_KEPT
        )
        report = binarize.report(student)
        assert (report.file_bytes if kind == "bytes" else report.ops) <= limit
    assert seen & set(NAMES)
    assert "keep" in seen


def test_a_drop_is_met_with_the_fewest_bytes_of_more_bits() -> None:
    plan = binarize.plan(
        Net(), budget="drop=0.03", sensitivity=measured_more(), more_bits=NAMES, **OTHERS_KEPT
    )
    good = [x for x in EVERY if sum(map(loss_of, OPEN, x)) <= 0.03 + 1e-9]
    assert chosen_options(plan) == min(good, key=lambda x: costs_of(x)["bytes"])


def test_layers_say_which_bits_they_get_and_why(tmp_path: Path) -> None:
    known = measured_more()
    options: dict[str, Any] = {"example_inputs": X, "budget": "90kB", "sensitivity": known}
    plan = binarize.plan(Net(), more_bits="lqnet", **options)
    decided = {d.site: d for d in plan.layers}
    assert decided["wide"].unit == UNITS["lqnet"]
    assert decided["wide"].reason.startswith("bits of lqnet by the budget of 90kB: ")
    assert decided["wide"].reason.endswith(
        "kB more; binary alone, it moves the output by 0.1400, place 1 of 4; with these bits it "
        "moves the output by 0.0400"
    )
    assert decided["thin"].unit is None
    plan.policy.save(tmp_path / "mine.toml")
    again = binarize.plan(Net(), tmp_path / "mine.toml", example_inputs=X)
    assert again.decisions == plan.decisions
    # Without more_bits what was measured of them changes nothing.
    plain = binarize.plan(Net(), **options)
    assert plain == binarize.plan(Net(), **{**options, "sensitivity": measured(LOSSES)})


def test_a_projection_that_goes_gets_no_bits() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3, padding=1)
            self.body = nn.Conv2d(32, 64, 3, padding=1)
            self.projection = nn.Conv2d(32, 64, 1)
            self.head = nn.Conv2d(64, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head((self.body(x) + self.projection(x)).relu())

    net = Block()
    known = measured_more(
        {"body": 0.2, "projection": 0.02},
        {"body": {"groupnet": 0.1}, "projection": {"groupnet": 0.01}},
    )
    more = [{"match": {"name": "body"}, "action": "binarize", "unit": UNITS["groupnet"]}]
    made = binarize.convert(net, example_inputs=X, overrides=more)
    limit = f"{binarize.report(made).file_bytes + 300}B"
    plan = binarize.plan(
        net, example_inputs=X, budget=limit, sensitivity=known, more_bits="groupnet"
    )
    rules = {rule.match.name[0]: rule for rule in plan.policy.rules if rule.match.name}
    assert {d.site: d.action for d in plan.layers}["projection"] == "remove"
    assert not rules["projection"].unit
    assert rules["body"].unit == UNITS["groupnet"]


def test_overrides_and_layers_the_policy_keeps_stay() -> None:
    plan = binarize.plan(
        Net(),
        "conservative",
        example_inputs=X,
        budget="500kB",
        overrides={"thin": "binarize", "grouped": "keep"},
    )
    decided = {d.site: d for d in plan.layers}
    assert decided["thin"].action == "binarize"
    assert decided["grouped"].reason == "override 'grouped'"
    assert decided["wide"].reason.startswith("downsamples")


def test_what_sensitivities_may_be(tmp_path: Path) -> None:
    known = measured(LOSSES)
    file = known.save(tmp_path)[0]
    plans = [
        binarize.plan(Net(), example_inputs=X, budget=SOME, sensitivity=given)
        for given in (known, known.to_dict(), file, str(file))
    ]
    assert all(plan == plans[0] for plan in plans)
    # Layers that make numbers of the output that are none have to stay.
    nan = measured({**LOSSES, "up": float("nan")})
    limit = f"{cost('bytes', ('up',)) + 1000}B"
    assert kept(binarize.plan(Net(), example_inputs=X, budget=limit, sensitivity=nan)) == {"up"}


def test_a_layer_that_never_runs_has_no_claim() -> None:
    net = Net()
    net.idle = nn.Conv2d(64, 64, 1)  # as cheap as the cheapest of the others
    plan = binarize.plan(net, example_inputs=X, budget=SOME)
    assert "idle" not in kept(plan) != set()


def test_nothing_of_the_network_changes() -> None:
    net = Net()
    before = {
        key: (id(value), value.clone()) for key, value in net.state_dict(keep_vars=True).items()
    }
    binarize.plan(net, example_inputs=X, budget=SOME)
    for key, value in net.state_dict(keep_vars=True).items():
        assert id(value) == before[key][0]
        assert torch.equal(value, before[key][1])


@pytest.mark.parametrize(
    ("text", "kind", "limit"),
    [
        ("3MB", "bytes", 3e6),
        ("1.5 kB", "bytes", 1500),
        ("2MiB", "bytes", 2 * 2**20),
        ("70B", "bytes", 70),
        ("10%", "share", 0.1),
        ("12.5 %", "share", 0.125),
        ("5GOPs", "ops", 5e9),
        ("2.5e2 mops", "ops", 2.5e8),
        ("12ms", "time", 12),
        ("0.5 s", "time", 500),
        ("time = 40%", "time share", 0.4),
        ("drop=0.02", "drop", 0.02),
        ("agreement = 0.9", "agreement", 0.9),
    ],
)
def test_how_budgets_are_written(text: str, kind: str, limit: float) -> None:
    (read,) = Budget.parse(text)
    assert (read.kind, read.limit) == (kind, pytest.approx(limit))


def test_units_are_powers_of_their_prefixes() -> None:
    for power, prefix in enumerate(("", "k", "M", "G", "T")):
        units = {f"{prefix}OPs": 10 ** (3 * power)}
        if power < 4:
            units |= {f"{prefix}B": 10 ** (3 * power)}
        if 0 < power < 4:
            units |= {f"{prefix}iB": 2 ** (10 * power)}
        for unit, factor in units.items():
            assert Budget.parse(f"3{unit}")[0].limit == 3 * factor
    for unit, milliseconds in (("us", 0.001), ("ms", 1), ("s", 1000)):
        assert Budget.parse(f"3{unit}")[0].limit == pytest.approx(3 * milliseconds)


@pytest.mark.parametrize("text", ["", "3", "MB", "3MX", "-3MB", "0MB", "1.2.3MB", "drop=0", 3,
                                  "agreement=1.1", "loss=0.1", "drop0.1", "3MB 5GOPs",
                                  "0%", "101%"])  # fmt: skip
def test_what_is_no_budget(text: Any) -> None:
    with pytest.raises(BinarizeError) as caught:
        binarize.plan(Net(), example_inputs=X, budget=text)
    assert str(caught.value) == (
        f"budget={text!r}: is not a size, number of operations, latency, drop or agreement; write "
        "for example '3MB', '10%', '5GOPs', '12ms', 'time=40%', '12ms,3MB', 'drop=0.02' or "
        "'agreement=0.9'"
    )


@pytest.mark.parametrize(
    ("budget", "known", "text"),
    [
        ("1kB", None, "budget='1kB': the minimum of policy 'bidense' is {least}; give at "
                      "least that, or use another policy"),
        ("10OPs", None, "budget='10OPs': the minimum of policy 'bidense' is {ops}; give"),
        ("9MB", None, "budget='9MB': the float network needs only "),
        ("drop=0.02", None, "budget='drop=0.02': this budget needs measured losses of the layers; "
                            "give sensitivity=binarize.sensitivity(model, data, task=...)"),
        ("drop=0.001", measured(LOSSES), "with only up binary, it is already 0.01; "
                                         "allow more, or skip the conversion"),
        ("agreement=0.999", measured(LOSSES), "with only up binary, it is already 0.995"),
        ("drop=0.02", measured(LOSSES, mode="without"), "measure with mode='alone'"),
        (SOME, measured({"wide": 1.0}), "sensitivity='grouped': there is no distance for this "
                                          "layer; measure this network with the same policy and "
                                          "overrides"),
        (SOME, {"sites": []}, "is not the result of binarize.sensitivity (KeyError"),
        (SOME, "no-such.json", "sensitivity='no-such.json': cannot be read"),
        (None, measured(LOSSES), "it has no effect without a budget; give a budget too"),
    ],
)  # fmt: skip
def test_mistakes(budget: Any, known: Any, text: str) -> None:
    text = text.format(least=f"{cost('bytes') / 1000:.3f} kB", ops=f"{cost('ops') / 1000:.3f} kOPs")
    with pytest.raises(BinarizeError) as caught:
        binarize.convert(Net(), example_inputs=X, budget=budget, sensitivity=known)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"more_bits": ["groupnet"]},
            "more_bits='list': it has no effect without a budget; give a budget too, such as '3MB'",
        ),
        (
            {"more_bits": ["groupnet"], "budget": SOME},
            "more_bits='groupnet': this needs the measured loss of wide with these bits; give "
            "sensitivity=binarize.sensitivity(model, data, more_bits=['groupnet']), or its file",
        ),
        (
            {"more_bits": ["cbnn"], "budget": "drop=0.1", "sensitivity": measured_more()},
            "(model, data, more_bits=['cbnn']), or its file, measured with a task",
        ),
        ({"more_bits": "grupnet", "budget": SOME}, "did you mean 'groupnet'"),
        (
            {"more_bits": "bnn", "budget": SOME},
            "more_bits='bnn': its weights and activations have one bit each; name a multi-bit "
            "policy such as 'cbnn', 'lqnet' or 'groupnet'",
        ),
    ],
)
def test_mistakes_about_more_bits(options: Any, text: str) -> None:
    with pytest.raises(BinarizeError) as caught:
        binarize.plan(Net(), example_inputs=X, **options)
    assert text in str(caught.value)


def test_any_policy_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for policy in binarize.policies().values():
        odd = replace(policy, source='a "quote", a \\ and\na line', replace_activations="none")
        one = odd if policy.name.startswith("bi") else policy
        one.save(path)
        assert load_policy(path) == replace(one, name="x")
    with pytest.raises(
        FileError, match="a rule file must end in .toml; give a name such as mine.toml"
    ):
        policy.save(tmp_path / "x.json")
    with pytest.raises(FileError, match="cannot be written"):
        policy.save(tmp_path / "none" / "x.toml")
