"""The documentation site: every page is in the navigation, and links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

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
WRITTEN = sorted({*(path.name for path in (CHECKOUT / "docs").glob("*.md")), *SITE.PAGES})


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
    assert sorted(in_navigation(config["nav"])) == sorted([*WRITTEN, *SITE.REFERENCES])
    assert all((CHECKOUT / hook).is_file() for hook in config["hooks"])


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]*)\)", text_of(page)):
        file, _, anchor = target.partition("#")
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
