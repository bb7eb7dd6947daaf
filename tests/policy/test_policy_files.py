"""Rule files: what is bundled, how they inherit, and how their mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import binarize
from binarize.errors import PolicyError
from binarize.nn import UnitSpec
from binarize.policy import Match, Policy, Rule, load_policy, policies, policy_files, validate
from binarize.policy.loader import from_dict
from binarize.policy.schema import KINDS, ROLES

QUIET = settings(max_examples=60, deadline=None, database=None, derandomize=True)
MINIMAL = 'name = "mine"\n[[rules]]\naction = "binarize"\nreason = "all"\n'


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source: object) -> str:
    with pytest.raises(PolicyError) as raised:
        load_policy(source)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("policy=")
    rule_and_remedy = message.split(": ", 1)[1]
    assert ";" in rule_and_remedy
    return message


@pytest.mark.parametrize("name", ["bidense", "bidense-released"])
def test_bundled_policies_load_and_hold(name: str) -> None:
    policy = policies()[name]
    assert policy.name == name
    assert policy.summary
    assert policy.source
    assert policy.rules
    assert all(rule.reason for rule in policy.rules)
    assert load_policy(name) == policy
    assert load_policy(policy_files()[name]) == policy
    assert load_policy(str(policy_files()[name])) == policy
    assert load_policy(policy) is policy
    assert validate(name) == []
    assert validate(policy_files()[name]) == []


def test_policies_is_public_and_sorted() -> None:
    assert binarize.policies() == policies()
    assert list(policies()) == sorted(policies())
    assert list(policy_files()) == list(policies())


def test_the_two_policies_differ_where_the_paper_and_its_code_do() -> None:
    paper, released = policies()["bidense"].unit, policies()["bidense-released"].unit
    assert (paper.binarizer_options["scale"], released.binarizer_options["scale"]) == (
        "layer",
        "channel",
    )
    assert (paper.bypass, released.bypass) == ("contiguous", "interleaved")
    assert (paper.transposed_scale, released.transposed_scale) == (
        "output-channel",
        "input-channel",
    )
    # Three values per channel in ReActNet's activation, two in the released one.
    assert paper.activation_options.get("out_shift", True) is True
    assert released.activation_options["out_shift"] is False


@pytest.mark.parametrize("name", ["bidense", "bidense-released"])
def test_policies_become_plain_data_and_come_back(name: str) -> None:
    policy = policies()[name]
    assert from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


selectors = st.builds(
    Match,
    name=st.lists(st.sampled_from(["a.*", "b", "*"]), max_size=2).map(tuple),
    role=st.lists(st.sampled_from(sorted(ROLES)), max_size=2).map(tuple),
    kind=st.lists(st.sampled_from(sorted(KINDS)), max_size=2).map(tuple),
    cls=st.lists(st.sampled_from(["Conv2d", "Linear"]), max_size=2).map(tuple),
)
kept = st.builds(Rule, match=selectors, action=st.just("keep"), reason=st.text(min_size=1))
UNITS = [{}, {"weight": "binary-bases", "weight_options": {"bases": 2}}, {"bypass": "none"}]
made = st.builds(
    Rule,
    match=selectors,
    action=st.just("binarize"),
    reason=st.text(min_size=1),
    unit=st.sampled_from(UNITS),
)
rules = st.one_of(kept, made)


@QUIET
@given(
    st.lists(rules, min_size=1, max_size=4),
    st.sampled_from([None, "contiguous", "interleaved"]),
    st.sampled_from([None, "shifted-prelu"]),
    st.sampled_from(["all", "all-but-head", "none"]),
)
def test_any_policy_survives_plain_data(
    given_rules: list[Rule], bypass: str | None, activation: str | None, replace: str
) -> None:
    policy = Policy(
        name="mine",
        unit=UnitSpec(bypass=bypass, activation=activation),
        rules=tuple(given_rules),
        replace_activations=replace,
    )
    assert from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("bidens", "'bidense'"), ("bidense-release", "'bidense-released'")]
)
def test_unknown_policy_offers_the_nearest_names(wrong: str, nearest: str) -> None:
    message = refusal(wrong)
    assert repr(wrong) in message
    assert nearest in message
    with pytest.raises(PolicyError, match="did you mean"):
        validate(wrong)


@pytest.mark.parametrize("path", ["none.toml", "rules/bidense"])
def test_a_path_is_not_taken_for_a_name(path: str) -> None:
    assert refusal(path) == f"policy={path!r}: no such rule file; check the path"


def test_policy_unlike_any_lists_all_of_them() -> None:
    message = refusal("xyz")
    assert "bidense-released" in message


def test_missing_files_folders_and_wrong_types(tmp_path: Path) -> None:
    refusal(tmp_path / "no.toml")
    refusal("no/such/file.toml")
    refusal(tmp_path)
    refusal(3)
    refusal(None)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ('sumary = "x"\n' + MINIMAL, "'summary'"),
        (MINIMAL.replace("[[rules]]", '[unit]\nbinarizr = "dab"\n[[rules]]'), "'binarizer'"),
        (MINIMAL + 'match = { rol = "input" }\n', "'role'"),
        (MINIMAL + 'match = { role = "inputs" }\n', "'input'"),
        (MINIMAL + 'match = { kind = ["conv", "depthwis"] }\n', "'depthwise'"),
        (MINIMAL.replace('"binarize"', '"binarise"'), "'binarize'"),
        (MINIMAL + 'reasn = "x"\n', "'reason'"),
        ('replace_activations = "al"\n' + MINIMAL, "all"),
        (MINIMAL.replace("[[rules]]", '[unit]\nbinarizer = "dap"\n[[rules]]'), "dab"),
        (MINIMAL.replace("[[rules]]", '[unit]\nbypass = "contigous"\n[[rules]]'), "contiguous"),
    ],
)
def test_every_key_and_value_is_checked_and_the_nearest_offered(
    tmp_path: Path, text: str, nearest: str
) -> None:
    path = write(tmp_path, "mine.toml", text)
    found = validate(path)
    assert len(found) == 1, found
    assert nearest in found[0]
    assert found[0] in refusal(path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ('binarizer_options = { scal = "layer" }', "scal"),
        ('binarizer_options = { scale = "layers" }', "layers"),
        ("activation_options = { outshift = true }", "outshift"),
    ],
)
def test_options_of_the_parts_are_checked_with_the_file(
    tmp_path: Path, options: str, named: str
) -> None:
    path = write(
        tmp_path, "mine.toml", MINIMAL.replace("[[rules]]", f"[unit]\n{options}\n[[rules]]")
    )
    found = validate(path)
    assert len(found) == 1, found
    assert named in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        'name = "mine"\n',
        "name = 3\n" + MINIMAL.split("\n", 1)[1],
        'name = "mine"\nrules = 3\n',
        'name = "mine"\nunit = "dab"\n' + MINIMAL.split("\n", 1)[1],
        'name = "mine"\nrules = [3]\n',
        'name = "mine"\n[[rules]]\nreason = "no action"\n',
        'name = "mine"\n[[rules]]\nmatch = "conv"\naction = "keep"\n',
        'name = "mine"\n[[rules]]\nmatch = { role = 3 }\naction = "keep"\n',
        'name = "mine"\n[[rules]]\naction = ["keep"]\n',
        "name = \n",
        'name = "mine"\nextends = "bidense"\nrules = 3\n',
        'name = "mine"\nextends = "bidense"\nunit = 3\n',
    ],
)
def test_malformed_files_are_refused_and_never_crash(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "mine.toml", text)
    assert validate(path)
    refusal(path)


def test_unreadable_bytes(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "\xff"')
    assert len(validate(path)) == 1
    refusal(path)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine.toml",
        'name = "mine"\nsumary = "x"\n[unit]\nweight = "scaled"\n'
        '[[rules]]\nmatch = { rol = "input" }\naction = "keep"\n'
        '[[rules]]\nmatch = { kind = "depthwis" }\naction = "kep"\n',
    )
    found = validate(path)
    assert len(found) == 5
    message = refusal(path)
    for problem in found:
        assert "\n" not in problem
        assert problem in message


def test_extends_inherits_and_puts_its_own_rules_first(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine.toml",
        'name = "mine"\nextends = "bidense"\nreplace_activations = "none"\n'
        '[unit]\nbypass = "interleaved"\n'
        '[[rules]]\nmatch = { class = "Linear" }\naction = "keep"\nreason = "no linear"\n',
    )
    policy, parent = load_policy(path), policies()["bidense"]
    assert policy.name == "mine"
    assert policy.replace_activations == "none"
    assert policy.unit.bypass == "interleaved"
    assert policy.unit.binarizer_options == parent.unit.binarizer_options
    assert policy.rules[0].match.cls == ("Linear",)
    assert policy.rules[1:] == parent.rules
    assert from_dict(policy.to_dict()) == policy


def test_extends_a_file_beside_it_and_over_two_steps(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", MINIMAL)
    write(
        tmp_path, "middle.toml", 'name = "middle"\nextends = "base.toml"\nsummary = "from middle"\n'
    )
    path = write(tmp_path, "top.toml", 'name = "top"\nextends = "middle.toml"\n')
    policy = load_policy(path)
    assert policy.name == "top"
    assert policy.summary == "from middle"
    assert [rule.action for rule in policy.rules] == ["binarize"]


def test_circles_and_missing_parents(tmp_path: Path) -> None:
    one = write(tmp_path, "one.toml", 'name = "one"\nextends = "two.toml"\n')
    write(tmp_path, "two.toml", 'name = "two"\nextends = "one.toml"\n')
    assert "circular" in refusal(one)
    assert "circular" in validate(one)[0]
    own = write(tmp_path, "own.toml", 'name = "own"\nextends = "own.toml"\n')
    assert "circular" in refusal(own)
    orphan = write(tmp_path, "orphan.toml", 'name = "orphan"\nextends = "bidence"\n')
    assert "'bidense'" in refusal(orphan)
    lost = write(tmp_path, "lost.toml", 'name = "lost"\nextends = "nowhere.toml"\n')
    assert "nowhere.toml" in refusal(lost)


def test_policies_cannot_be_changed_by_accident() -> None:
    policy = policies()["bidense"]
    with pytest.raises(AttributeError):
        policy.name = "other"
    policies().clear()
    assert policies()["bidense"] == policy
