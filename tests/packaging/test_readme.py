"""What the README shows works: its Python blocks run, its links and commands exist."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
SHELL = re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S)
SETUP = ["pip install . && binarize demo", "pip install '.[test]' && pytest"]


def commands() -> list[str]:
    """Every ``binarize`` command line of the shell blocks, continued lines joined."""
    lines = "".join(SHELL).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("binarize ")]


def test_set_up_is_exactly_two_commands() -> None:
    assert [line for block in SHELL for line in block.splitlines() if "pip" in line] == SETUP
    assert README.count("pip install") == len(SETUP)


def test_there_are_blocks_to_run() -> None:
    assert PYTHON
    assert SHELL
    assert README.count("```python") == len(PYTHON)
    assert README.count("```sh") == len(SHELL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / f"readme_{number}.py"
    script.write_text(PYTHON[number], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    if "print(" in PYTHON[number]:
        assert capsys.readouterr().out.strip()


def test_shell_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from binarize.cli import main

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64), "orange").save("photo.jpg")
    assert len(commands()) >= 8
    for line in commands():
        # Small made-up scenes take the place of a data set that has to be fetched.
        short = " --count 16 --size 64x64" + " --epochs 1" * line.startswith("binarize train")
        run = line.replace("--data camvid --root data/camvid", f"--data scenes{short}")
        if line.startswith("binarize bench"):
            run += " --versions float,packed --rounds 2 --no-memory"
        if line.startswith("binarize sensitivity"):
            run += " --minutes 0"  # one layer
        assert exit_code(main, shlex.split(run)[1:]) == 0, run
    assert list(Path("out").iterdir())


def exit_code(main, words: list[str]) -> int:
    """Run the command line, which may return its exit code or leave by it."""
    try:
        return int(main(words) or 0)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_link_leads_somewhere(target: str) -> None:
    assert (CHECKOUT / target).exists()
