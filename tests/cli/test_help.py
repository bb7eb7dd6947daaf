"""Help: every command has examples, the examples parse, and nothing heavy is imported for it."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from binarize.cli.app import build_parser


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command and sub-command with its parser."""

    def inner(
        name: str, parser: argparse.ArgumentParser
    ) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, below in action.choices.items():
                    yield from inner(f"{name} {word}".strip(), below)

    yield from inner("", build_parser())


ALL = dict(commands())


def examples(text: str) -> list[str]:
    """Command lines of a help text, continued lines joined."""
    tail = text.partition("examples:\n")[2].replace("\\\n", " ")
    return [line.strip() for line in tail.splitlines() if re.match(r"\s+binarize ", line)]


def test_the_promised_commands_exist() -> None:
    assert set(ALL) >= {
        *("convert", "train", "eval", "predict", "report", "demo", "doctor"),
        *("rules ls", "rules show", "rules cp", "rules validate"),
    }


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "wanted"), [(["con"], "convert"), (["convert", "--dry"], "--dry-run")]
)
def test_shells_complete_commands_and_options(
    words: list[str], wanted: str, tmp_path: Path
) -> None:
    shtab = pytest.importorskip(
        "shtab", reason="shtab is not installed; run `pip install '.[test]'`"
    )
    script = tmp_path / "completion.bash"
    script.write_text(shtab.complete(build_parser(), "bash"), encoding="utf-8")
    line = f"COMP_WORDS=(binarize {' '.join(words)}); COMP_CWORD={len(words)}; _shtab_binarize"
    told = subprocess.run(
        ["bash", "-c", f'source "$0"; {line}; echo "${{COMPREPLY[@]}}"', script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.stdout.split() == [wanted], told.stderr


@pytest.mark.parametrize("name", ALL)
def test_help_shows_examples(name: str, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = run(*name.split(), "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert examples(answer.out)
    assert max(map(len, answer.out.splitlines())) <= 80


@pytest.mark.parametrize("name", ALL)
def test_help_examples_are_command_lines_that_parse(name: str) -> None:
    for line in examples(ALL[name].format_help()):
        if "..." not in line:
            args = build_parser().parse_args(shlex.split(line.partition(" > ")[0])[1:])
            assert callable(args.run)


@pytest.mark.parametrize(
    "name", [name for name in ALL if name not in ("", "data", "rules", "recipes")]
)
def test_every_command_answers_json_and_debug(name: str) -> None:
    known = {word for action in ALL[name]._actions for word in action.option_strings}
    assert {"--json", "--quiet", "--debug"} <= known


@pytest.mark.parametrize("name", ALL)
def test_every_argument_is_explained(name: str) -> None:
    for action in ALL[name]._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action.dest


def test_without_a_command_the_help_is_shown(run) -> None:
    answer = run()
    assert answer.code == 0
    assert "binarize demo" in answer.out


def test_version(run) -> None:
    assert re.match(r"binarize \S+", run("--version").out)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from binarize.cli import main\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "except SystemExit as left:\n"
        "    assert left.code == 0\n"
        "heavy = {'torch', 'timm', 'rich', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: binarize train" in done.stdout
