"""``binarize frontier`` from a trained network to a table, and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from binarize.cli.networks import Recipe, build

OPTIONS = (
    *("--data", "scenes", "--size", "32x24", "--count", 8, "--batch-size", 4, "--epochs", 1),
    *("--rounds", 1, "--no-engines", "--sensitivity-images", 4, "--threads", 1, "--recalibrate", 2),
)


def words(run_folder: Path, output: Path, *more: object) -> tuple[object, ...]:
    return ("frontier", run_folder / "float.safetensors", *OPTIONS, "--output", output, *more)


def test_points_and_again(run: Any, float_run: Path, tmp_path: Path) -> None:
    points = ("--point", "deploy", "--point", "99%,1s")
    answer = run(*words(float_run, tmp_path, *points, "--json", "--quiet"))
    assert answer.code == 0, answer.err
    made = answer.json
    found = [(point["name"], point["kind"]) for point in made["points"]]
    assert [pair for pair in found if "bf16" not in pair[0]] == [
        ("float", "float"),
        ("deploy", "binarized"),
        ("99%,1s", "binarized"),
    ]
    assert made["metric"] == "mIoU"
    for point in made["points"]:
        assert set(point["metrics"]) == {"val", "test"}
        assert len(point["seconds"]) == 1
        if point["kind"] == "binarized":
            assert (tmp_path / point["file"]).stat().st_size == point["bytes"]
    assert "99%,1s" in (tmp_path / "99_1s.toml").read_text()

    # Nothing is trained or measured twice: what is there already is what counts.
    files = [p for p in tmp_path.rglob("*") if p.suffix in (".safetensors", ".toml")]
    before = {p: p.stat().st_mtime_ns for p in files}
    answer = run(*words(float_run, tmp_path, *points))
    assert answer.code == 0, answer.err
    assert {p: p.stat().st_mtime_ns for p in files} == before
    assert "for at most 0.01 lost" in answer.out


def test_another_float_network_is_trained_alike(run: Any, float_run: Path, tmp_path: Path) -> None:
    rival = "demo:UNet,widths=[4,8]"
    answer = run(
        *words(float_run, tmp_path, "--point", "bidense", "--rival", rival, "--json", "--quiet")
    )
    assert answer.code == 0, answer.err
    kinds = {point["name"]: point["kind"] for point in answer.json["points"]}
    assert kinds[rival] == "rival"


def test_a_rival_starts_from_weights_of_its_own(run: Any, float_run: Path, tmp_path: Path) -> None:
    rival = build(Recipe("demo:UNet", arguments={"widths": [4, 8]}))
    name = next(iter(rival.state_dict()))
    save_file({name: rival.state_dict()[name]}, tmp_path / "weights.safetensors")
    text = f"demo:UNet,widths=[4,8],encoder_weights={tmp_path / 'weights.safetensors'}"
    options = "--point", "bidense", "--rival", text
    answer = run(*words(float_run, tmp_path, *options))
    assert answer.code == 0, answer.err
    assert answer.err.count("encoder: 1 of 1 tensors loaded") == 1
    assert "demo:UNet,widths=[4,8]" in answer.out
    assert "weights.safetensors" not in answer.out


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (
            ("--point", "3 apples"),
            "is not a size, number of operations, latency, drop or agreement",
        ),
        (("--point", "1B"), "budget='1B': the minimum of policy 'deploy' is"),
        (("--rival", "demo:UNet,width=3"), "unexpected keyword argument 'width'"),
        (("--rival", "demo:UNet,encoder_weights=no.pt"), "rival='no.pt'"),
        (("--rounds", "0"), "rounds=0: must be at least 1"),
        (("--policy", "depoly"), "did you mean 'deploy'"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    run: Any, float_run: Path, tmp_path: Path, more: tuple[str, ...], text: str
) -> None:
    answer = run(*words(float_run, tmp_path, *more))
    assert answer.code == 1
    assert text in answer.err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_binary_network_is_no_start(run: Any, binary_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    answer = run("frontier", binary_run / "binary.safetensors", *OPTIONS, "--output", folder)
    assert answer.code == 1
    assert "the frontier starts from a float network that train saved" in answer.err
    assert not folder.exists()
