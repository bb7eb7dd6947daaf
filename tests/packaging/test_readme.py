"""What the README shows works: its Python blocks run, its links and commands exist."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
SHELL = re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S)
SETUP = ["pip install . && binarize demo", "pip install '.[test]' && pytest"]


def commands() -> list[str]:
    """Every ``binarize`` command line of the shell blocks, without comments."""
    lines = "".join(SHELL).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("binarize ")]


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


@pytest.mark.parametrize("line", commands())
def test_shell_command_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from binarize.cli import main

    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    if words[:2] == ["rules", "validate"]:  # the file that the line above it makes
        assert exit_code(main, ["rules", "cp", "bidense", words[2]]) == 0
    assert exit_code(main, words) == 0


def exit_code(main, words: list[str]) -> int:
    """Run the command line, which may return its exit code or leave by it."""
    try:
        return int(main(words) or 0)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_link_leads_somewhere(target: str) -> None:
    assert (CHECKOUT / target).exists()
