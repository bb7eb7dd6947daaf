"""Each tutorial is followed from top to bottom: its Python in one session, its commands between."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from binarize.cli import main

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = CHECKOUT / "docs" / "tutorials"
PAGES = sorted(path.name for path in FOLDER.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str]]:
    text = (FOLDER / page).read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert text.count("\n```") == 2 * len(found), "a block without a language"
    return found


def test_there_are_tutorials() -> None:
    assert len(PAGES) >= 6
    for page in PAGES:
        assert any(language == "python" for language, _ in blocks(page)), page
        # Other blocks are only shown; they must not be a way around the test.
        assert {language for language, _ in blocks(page)} <= {"python", "sh", "console"}


@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_can_be_followed(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if page == "binarizer.md":
        from binarize.nn import parts

        monkeypatch.setitem(parts.BINARIZERS, "tanh-sign", None)  # taken out again afterwards
    session: dict[str, Any] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), session)
            assert capsys.readouterr().out.strip() or "print(" not in text
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                assert line.startswith("binarize "), line
                assert main(shlex.split(line)[1:]) == 0, line
