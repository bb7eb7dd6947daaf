"""Convert, report, rules, doctor: what they say and write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from binarize.cli.convert import show_plan
from binarize.cli.networks import Recipe, build
from binarize.cli.output import Output
from binarize.data import UnlabelledFolder
from binarize.file import load
from binarize.graph import plan
from binarize.policy import load_policy, validate
from binarize.policy.loader import _MATCH, _REPLACE, _RULE, _TOP, _UNIT
from binarize.policy.schema import ACTIONS, KINDS, ROLES
from binarize.prepare import prepare_student
from binarize.writing import jsonable

NET = ("demo:UNet", "--model-arg", "widths=[8,16]")


def test_the_plan_is_told_by_decision_and_reason(run) -> None:
    answer = run("convert", *NET, "--plan-only")
    assert answer.code == 0, answer.err
    assert "keep 1 layer: reads the image" in answer.out
    assert "binarize 4 layers: convolution or pointwise linear layer" in answer.out
    assert re.search(r"^    down\.0\.conv1 +Conv2d +16×8×3×3$", answer.out, re.M)
    assert "relu#0" not in answer.out
    assert run("convert", *NET, "--dry-run").out == answer.out
    assert "down.0:relu#0" in run("convert", *NET, "--dry-run", "--all").out


def test_one_layer_is_told_as_one(run) -> None:
    text = " ".join(
        run("convert", *NET, "--plan-only", "--keep", "down.*", "--keep", "up.*.conv1").out.split()
    )
    assert "1 layer becomes binary, " in text
    whole = " ".join(run("convert", *NET, "--plan-only").out.split())
    assert "4 layers become binary, 2 stay float" in whole


def test_the_plan_tells_units_of_other_parts(run, tmp_path: Path) -> None:
    rules = tmp_path / "mine.toml"
    unit = 'unit = { weight = "binary-bases", weight_options = { bases = 3 } }'
    rules.write_text(
        f'name = "mine"\nextends = "bidense"\n[[rules]]\nmatch = {{ name = "up.*" }}\n'
        f'action = "binarize"\nreason = "it hurts"\n{unit}\n'
    )
    answer = run("convert", *NET, "--plan-only", "--policy", rules)
    assert answer.code == 0, answer.err
    assert re.search(
        r"^binarize \d layers? with weight='binary-bases', bases=3: it hurts$", answer.out, re.M
    )
    assert "convolution or pointwise linear layer" in answer.out
    text = " ".join(answer.out.split())
    assert re.search(r"4 layers become binary \(\d with modified units\), ", text)


def test_the_plan_for_a_program(run) -> None:
    answer = run("convert", *NET, "--plan-only", "--json", "--quiet", "--keep", "up.*")
    assert answer.err == ""
    made = plan(build(Recipe("demo:UNet", arguments={"widths": [8, 16]})),
                overrides={"up.*": "keep"})  # fmt: skip
    assert answer.json["decisions"] == jsonable(made.to_dict()["decisions"])
    assert answer.json["counts"]["layer keep"] == 4
    assert answer.json["binary_share"] == made.binary_share


def test_convert_saves_the_weights_it_was_given(run, float_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    answer = run("convert", *NET, "--classes", 6, "--weights", float_run / "float.safetensors",
                 "-o", target, "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "random weights" not in answer.err
    assert answer.json["bytes"] == target.stat().st_size
    assert answer.json["ratio"] == answer.json["float_bytes"] / answer.json["bytes"]
    network = build(Recipe("demo:UNet", 6, arguments={"widths": [8, 16]}))
    weights = load(target, model=network).get_submodule("down.0.conv1").weight
    from safetensors.torch import load_file

    given = load_file(float_run / "float.safetensors")["down.0.conv1.weight"]
    assert torch.equal(weights.sign(), torch.where(given < 0, -1.0, 1.0))


def test_convert_takes_what_train_saved(run, float_run: Path, tmp_path: Path) -> None:
    words = (float_run / "float.safetensors", "-o", tmp_path / "out.safetensors")
    answer = run("convert", *words, "--json")
    assert answer.code == 0, answer.err
    assert "random weights" not in answer.err
    assert answer.json["counts"]["layer binarize"] == 4


def test_convert_without_weights_says_so(run, tmp_path: Path) -> None:
    answer = run("convert", *NET, "-o", tmp_path / "out.safetensors")
    assert answer.code == 0, answer.err
    assert "starts from random weights" in answer.err
    assert "times smaller" in answer.out


def test_a_timm_network_by_name(run, tmp_path: Path) -> None:
    target = tmp_path / "net.safetensors"
    spec = ("timm:test_resnet", "--classes", 5, "--size", "64x64")
    assert run("convert", *spec, "-o", target).code == 0
    answer = run("report", target, "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.json["inputs"] == "1×3×64×64"
    assert answer.json["file_bytes"] == target.stat().st_size
    assert answer.json["ops"] < answer.json["reference_ops"] / 4


def test_report_knows_the_size_of_the_training(run, binary_run: Path) -> None:
    answer = run("report", binary_run / "binary.safetensors", "--depth", 1)
    assert answer.code == 0, answer.err
    assert "operations for 1×3×24×32" in answer.out
    assert "unknown" not in answer.out


def test_report_by_specification(run) -> None:
    plain = run("report", *NET, "--json", "--quiet").json
    assert plain["policy"] is None
    assert plain["ops"] is None
    made = run("report", *NET, "--policy", "bidense", "--size", "32x24", "--json", "--quiet").json
    assert made["policy"] == "bidense"
    assert made["params"] < plain["params"] / 4


def test_long_names_and_brackets_survive_a_narrow_terminal(
    run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    answer = run("convert", *NET, "--plan-only", "--keep", "up.[0]*")
    assert "override 'up.[0]*'" in answer.out.replace("\n", " ").replace("  ", " ")
    made = plan(build(Recipe("demo:UNet")))
    show_plan(made, Output(), everything=True)
    assert max(map(len, capsys.readouterr().out.splitlines())) < 200


def test_rules_ls_and_show(run) -> None:
    table = run("rules", "ls").out
    assert "bidense-released" in table
    found = {policy["name"]: policy for policy in run("rules", "ls", "--json").json}
    assert found["bidense"]["rules"] >= 3
    text = run("rules", "show", "bidense").out
    assert text == Path(found["bidense"]["file"]).read_text(encoding="utf-8")
    assert run("rules", "show", "bidense", "--json").json == jsonable(
        load_policy("bidense").to_dict()
    )


def test_rules_cp_makes_a_policy_of_its_own(run, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    assert run("rules", "cp", "bidense", target).code == 0
    assert load_policy(target).name == "mine"
    assert load_policy(target).rules == load_policy("bidense").rules
    assert run("rules", "cp", "bidense-released", target, "--force").code == 0
    assert load_policy(target).rules == load_policy("bidense-released").rules
    assert run("rules", "cp", "bidense", tmp_path, "--json").json["file"] == str(
        tmp_path / "bidense.toml"
    )


def test_rules_validate_tells_all_mistakes(run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('name = "x"\nbypas = 1\n[[rules]]\naction = "drop"\n')
    answer = run("rules", "validate", "bidense", bad)
    assert answer.code == 1
    assert "bidense: good" in answer.out
    assert answer.out.count("bad.toml: ") == len(validate(bad)) >= 2
    told = run("rules", "validate", bad, "--json")
    assert told.code == 1
    assert told.json == {str(bad): validate(bad)}


README = Path(__file__).resolve().parents[2] / "rules" / "README.md"


@pytest.mark.skipif(not README.is_file(), reason="rules/README.md lies in the checkout")
def test_the_rules_readme_tells_every_key_and_word() -> None:
    text = README.read_text(encoding="utf-8")
    words = [*_TOP, *_UNIT, *_RULE, *_MATCH]
    quoted = [*ROLES, *KINDS, *_REPLACE, *ACTIONS, "contiguous", "interleaved"]
    missing = [word for word in words if f"| `{word}` |" not in text]
    missing += [word for word in quoted if f'`"{word}"`' not in text]
    assert missing == []
    for role, meaning in ROLES.items():
        assert f'| `"{role}"` |' in text, meaning


@pytest.mark.skipif(not README.is_file(), reason="rules/README.md lies in the checkout")
def test_the_rules_readme_s_blocks_work(run, tmp_path: Path, monkeypatch, capsys) -> None:
    text = README.read_text(encoding="utf-8")
    whole, rule = re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)
    for block in (whole, f'name = "mine"\nextends = "bidense"\n{rule}'):
        (tmp_path / "block.toml").write_text(block)
        assert validate(tmp_path / "block.toml") == []
    monkeypatch.chdir(tmp_path)
    import shlex

    for shell in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        for line in shell.splitlines():
            words = shlex.split(line, comments=True)
            assert run(*words[1:]).code == 0, line
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    exec(compile(code, "rules/README.md", "exec"), {})


def test_doctor_finds_everything(run) -> None:
    answer = run("doctor", "--json")
    assert answer.code == 0, answer.err
    facts = answer.json
    assert facts["ok"] is True
    assert facts["checks"]["round trip"] == "convert, save and load agree"
    assert facts["torch"]["devices"][0] == "cpu"
    assert {"bidense", "bidense-released"} <= set(facts["policies"])
    assert facts["packages"]["torch"]["version"].startswith(torch.__version__.split("+")[0])


def test_doctor_says_what_is_missing(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import binarize.cli.doctor as doctor

    monkeypatch.setattr(doctor, "_NEEDED", {"torch": "torch", "no_such_library": "no-such"})
    monkeypatch.setattr("binarize.file.load", lambda *a, **k: 1 / 0)
    answer = run("doctor")
    assert answer.code == 1
    assert "MISSING  ModuleNotFoundError" in answer.out
    assert "failed: ZeroDivisionError" in answer.out
    assert "something is missing" in answer.out


def test_partial_weights(run, tmp_path: Path) -> None:
    network = build(Recipe("demo:UNet", 6, arguments={"widths": [8, 16]}))
    save_file({"stem.weight": network.stem.weight.detach()}, tmp_path / "part.safetensors")
    words = ("convert", *NET, "--weights", tmp_path / "part.safetensors", "--plan-only")
    refused = run(*words)
    assert refused.code == 1
    assert "missing (norm.weight" in refused.err
    answer = run(*words, "--partial")
    assert answer.code == 0
    assert "1 of 1 tensors loaded" in answer.err


def test_convert_within_a_budget(run, tmp_path: Path) -> None:
    net = ("convert", "demo:UNet", "--model-arg", "widths=[8,16]", "--size", "32x24")
    rules, file = tmp_path / "mine.toml", tmp_path / "x.safetensors"
    answer = run(*net, "--budget", "16kB", "--save-policy", rules, "-o", file, "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert file.stat().st_size == answer.json["bytes"] <= 16000
    reasons = [row["reason"] for row in answer.json["decisions"] if row["part"] == "layer"]
    assert sum(reason.startswith("kept by the budget of 16kB: ") for reason in reasons) > 0
    again = run(*net, "--policy", rules, "--plan-only", "--json", "--quiet")
    assert again.json["decisions"] == answer.json["decisions"]
    for words, text in (
        (("--budget", "much"), "budget='much': is not a size, number of operations"),
        (("--budget", "1kB"), "budget='1kB': the minimum of policy 'bidense' is "),
        (("--budget", "drop=0.1"), "this budget needs measured losses of the layers"),
        (("--budget", "9kB", "--sensitivity", tmp_path / "no.json"), "cannot be read"),
        (("--sensitivity", tmp_path / "no.json"), "it has no effect without a budget"),
    ):
        answer = run(*net, "--plan-only", *words, "--quiet")
        assert answer.code == 1
        assert len(answer.err.splitlines()) == 1
        assert text in answer.err


@pytest.mark.parametrize("budget", [(), ("--budget", "10%")])
def test_costs_before_and_after(run, tmp_path: Path, budget: tuple[str, ...]) -> None:
    words = ("demo:UNet", "--classes", 2, "--size", "64x48", *budget)
    planned = run("convert", *words, "--plan-only", "--json", "--quiet")
    assert planned.code == 0, planned.err
    costs = planned.json["costs"]
    file = tmp_path / "net.st"
    answer = run("convert", *words, "-o", file, "--json", "--quiet")
    assert answer.json["costs"] == costs
    assert costs["bytes"] == file.stat().st_size
    counted = run("report", file, "--json", "--quiet").json
    assert costs["ops"] == counted["ops"]
    assert costs["float_ops"] == counted["reference_ops"]
    assert costs["float_bytes"] == answer.json["float_bytes"]
    if budget:
        assert 0.05 < costs["bytes"] / costs["float_bytes"] <= 0.1
    text = run("convert", *words, "--plan-only", "--quiet").out
    assert "bytes: 1.553 MB before," in text
    assert "ops: 28.46 MOPs before," in text


def test_a_share_of_more_than_all_is_refused(run) -> None:
    answer = run("convert", "demo:UNet", "--plan-only", "--budget", "110%")
    assert answer.code == 1
    assert "write for example '3MB', '10%', '5GOPs', '12ms'" in answer.err


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        pixels = torch.randint(0, 256, (30, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def test_calibration_on_a_folder(run, tmp_path: Path) -> None:
    folder, target = photos(tmp_path / "photos", 5), tmp_path / "unet.safetensors"
    torch.manual_seed(0)
    answer = run(
        "convert", *NET, "-o", target, "--calibrate", folder, "--images", 3, "--size", "32x24"
    )
    assert answer.code == 0, answer.err
    assert "converting, and calibrating on 3 images" in answer.err
    torch.manual_seed(0)
    teacher = build(Recipe("demo:UNet", arguments={"widths": [8, 16]})).eval()
    data = UnlabelledFolder(folder, (24, 32), normalize="imagenet")
    batch = torch.stack([data[i]["image"] for i in (0, 1, 3)])
    expected = prepare_student(teacher, batches=[batch], calibrate=True).eval()
    found = load(target, model=teacher).eval()
    assert torch.allclose(found(batch), expected(batch), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "32x24", "--images", "0"), "images=0: must be positive; use 32 or so"),
        ((), "--size: --calibrate needs the width and height that images are resized to; give"),
        (("--size", "32x24", "--calibrate", "nowhere"), "images='nowhere': "),
        (("--size", "32x24", "--dry-run"), "there is nothing to fit in a preview; omit it, or"),
    ],
)
def test_calibration_that_cannot_be(run, tmp_path: Path, words, message: str) -> None:
    folder, target = photos(tmp_path / "photos", 1), tmp_path / "unet.safetensors"
    answer = run("convert", *NET, "-o", target, "--calibrate", folder, *words)
    assert answer.code == 1
    assert message in answer.err
    assert not target.exists()
