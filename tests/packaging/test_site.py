"""The documentation site: every page is in the navigation, and links lead somewhere."""

from __future__ import annotations

import importlib.util
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from latex2mathml.converter import convert

import binarize

CHECKOUT = Path(__file__).resolve().parents[2]


def hooks() -> ModuleType:
    """Import the site's hooks, which need no MkDocs until it calls them."""
    spec = importlib.util.spec_from_file_location("site_hooks", CHECKOUT / "tools" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = hooks()
DOCS = CHECKOUT / "docs"
WRITTEN = sorted({*(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")), *SITE.PAGES})


def text_of(page: str) -> str:
    """A page as the site shows it, without its code blocks."""
    text = (CHECKOUT / SITE.source(page)).read_text("utf-8")
    return re.sub(r"^```.*?^```$", "", SITE.translate(text, page), flags=re.M | re.S)


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", text_of(page), re.M):
        name, count = SITE.slug(re.sub(r"[`*]|\[|\]\(.*?\)", "", title)), 1
        while (made := name if count == 1 else f"{name}_{count - 1}") in found:
            count += 1
        found.add(made)
    return found


def in_navigation(entries: Any) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, str):
                yield value
            else:
                yield from in_navigation(value)


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(in_navigation(config["nav"])) == sorted(
        [*WRITTEN, *SITE.REFERENCES, SITE.COMMANDS]
    )
    assert all((CHECKOUT / hook).is_file() for hook in config["hooks"])


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]*)\)", text_of(page)):
        file, _, anchor = target.partition("#")
        file = file and posixpath.normpath(posixpath.join(posixpath.dirname(page), file))
        if not file.endswith(".md") and file:
            assert (CHECKOUT / "docs" / file).is_file(), target
            continue
        assert (file or page) in WRITTEN, target
        assert not anchor or anchor in anchors(file or page), target


@pytest.mark.parametrize("page", WRITTEN)
def test_links_of_the_repository_lead_somewhere(page: str) -> None:
    path = CHECKOUT / SITE.source(page)
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)\s#]+)", text):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "before", "after"),
    [
        ("index.md", "[g](docs/guide.md#from-python)", "[g](guide.md#from-python)"),
        ("index.md", "![a](docs/images/a.png)", "![a](images/a.png)"),
        ("index.md", "[MIT](LICENSE) [x](https://a.b/docs/c.md)", "MIT [x](https://a.b/docs/c.md)"),
        (
            "guide.md",
            "[r](../rules/README.md#a) [b](training.md)",
            "[r](rules.md#a) [b](training.md)",
        ),
        ("guide.md", "[`examples/cpp`](../examples/cpp) is", "`examples/cpp` is"),
        ("rules.md", "[s](../docs/sensitivity.md) [k](#keys)", "[s](sensitivity.md) [k](#keys)"),
        ("tutorials/a.md", "[t](../training.md) [b](b.md)", "[t](../training.md) [b](b.md)"),
        ("tutorials/a.md", "[r](../../rules/README.md#a)", "[r](../rules.md#a)"),
        ("guide.md", "[a](tutorials/a.md)", "[a](tutorials/a.md)"),
        ("index.md", "```\n[g](docs/guide.md)\n```\n", "```\n[g](docs/guide.md)\n```\n"),
    ],
)
def test_links_are_translated(page: str, before: str, after: str) -> None:
    assert SITE.translate(before, page) == after


def test_anchors_are_those_of_the_repository() -> None:
    assert SITE.slug("Every policy on CamVid, 192×144: five_epochs") == (
        "every-policy-on-camvid-192144-five_epochs"
    )


@pytest.mark.parametrize("page", SITE.REFERENCES)
def test_the_reference_has_every_public_name(page: str) -> None:
    module = importlib.import_module(SITE.REFERENCES[page][0])
    text = SITE.reference(page)
    shown = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith("::: ")}
    constants = {
        name
        for name in module.__all__
        if not str(getattr(getattr(module, name), "__module__", None)).startswith("binarize")
    }
    assert shown == set(module.__all__) - constants
    if module is binarize:
        assert constants == {"nn", "ops"}  # pages of their own


def test_the_page_of_the_commands_has_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from binarize.cli.app import _COMMANDS

    monkeypatch.setenv("COLUMNS", "40")  # put back afterwards: the page has its own width
    monkeypatch.setenv("NO_COLOR", "")
    text = SITE.commands()
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles[0] == "binarize"
    assert {title.split()[1] for title in titles[1:]} == set(_COMMANDS)
    assert "binarize rules validate" in titles  # those of commands as well
    assert len(set(titles)) == len(titles)
    assert text.count("```sh\n") >= len(_COMMANDS)
    assert not re.search(r"^examples:", text, re.M)


@pytest.mark.parametrize("page", WRITTEN)
def test_equations_are_complete(page: str) -> None:
    """They are between lines of two dollars, and their TeX is known to the converter."""
    text = text_of(page)
    found = SITE._EQUATION.findall(text)
    assert text.count("$$") == 2 * len(found)
    assert (page == "method.md") == bool(found)
    for tex in found:
        assert "\\" not in convert(tex), tex
