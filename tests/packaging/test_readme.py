"""What README and guide show works: their Python blocks run, their links and commands exist."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = (
    "README.md",
    "docs/guide.md",
    "docs/mixed.md",
    "docs/multitask.md",
    "docs/training.md",
    "docs/video.md",
)
PAGES = {name: (CHECKOUT / name).read_text("utf-8") for name in FILES}
PYTHON = {
    name: re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) for name, text in PAGES.items()
}
SHELL = {name: re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S) for name, text in PAGES.items()}
SETUP = ["pip install '.[all]' && binarize demo", "pip install '.[test]' && pytest"]
# The largest file that a picture of the documentation may be.
LARGEST = 150_000


def commands(name: str) -> list[str]:
    """Every ``binarize`` command line of the shell blocks, continued lines joined."""
    lines = "".join(SHELL[name]).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("binarize ")]


def test_set_up_is_exactly_two_commands() -> None:
    readme = PAGES["README.md"]
    setup = readme[readme.index("## Set up\n") :]
    setup = setup[: setup.index("\n## ")]
    assert re.findall(r"^```sh\n(.*)\n```$", setup, re.M) == SETUP
    assert setup.count("pip install") == len(SETUP)
    # Beside them only the runtime of devices is installed.
    assert readme.count("pip install") == len(SETUP) + readme.count("\npip install ./runtime\n")


@pytest.mark.parametrize("name", PAGES)
def test_there_are_blocks_to_run(name: str) -> None:
    assert PYTHON[name]
    assert SHELL[name] or "```sh" not in PAGES[name]
    assert PAGES[name].count("```python") == len(PYTHON[name])
    assert PAGES[name].count("```sh") == len(SHELL[name])


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, blocks in PYTHON.items() for i in range(len(blocks))]
)
def test_python_block_runs(
    name: str,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_block(name, number)
    if "print(" in PYTHON[name][number]:
        assert capsys.readouterr().out.strip()


def run_block(name: str, number: int) -> None:
    script = Path(f"block_{number}.py").absolute()
    script.write_text(PYTHON[name][number], encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


def test_readme_commands_run_on_the_file_of_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from binarize.cli import main

    monkeypatch.chdir(tmp_path)
    run_block("README.md", 0)
    inline = re.findall(r"`(binarize report [^`]+)`", PAGES["README.md"])
    assert inline
    assert commands("README.md")
    for line in [*commands("README.md"), *inline]:
        assert exit_code(main, shlex.split(line)[1:]) == 0, line


@pytest.mark.timeout(400)
def test_shell_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from binarize.cli import main

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    monkeypatch.setattr("webbrowser.open", lambda *_: True)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64), "orange").save("photo.jpg")
    assert len(commands("docs/guide.md")) >= 8
    for line in commands("docs/guide.md"):
        # Small synthetic scenes take the place of a data set that has to be fetched.
        short = " --count 16 --size 64x64" + " --epochs 1" * line.startswith("binarize train")
        run = line.replace("--data camvid --root data/camvid", f"--data scenes{short}")
        if line.startswith("binarize bench"):
            run += " --versions float,packed --rounds 2 --no-memory"
        if line.startswith("binarize sensitivity"):
            run += " --minutes 0"  # one layer
        # It serves until Ctrl-C, which comes at once here.
        wanted = 130 if line.startswith("binarize view") else 0
        assert exit_code(main, shlex.split(run)[1:]) == wanted, run
    assert list(Path("out").iterdir())


def exit_code(main, words: list[str]) -> int:
    """Run the command line, which may return its exit code or leave by it."""
    try:
        return int(main(words) or 0)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (name, target)
        for name, text in PAGES.items()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text)
    ],
)
def test_link_leads_somewhere(name: str, target: str) -> None:
    path = (CHECKOUT / name).parent / target
    assert path.exists()
    if target.endswith(".png"):
        assert path.stat().st_size < LARGEST
