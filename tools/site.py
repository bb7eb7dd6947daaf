"""Hooks of the documentation site (mkdocs.yml): pages from outside docs/, the reference, links.

`docs/` and the README are read in the repository, too: their links lead to files. Here
they lead to pages, or become plain text where the site has none. Equations become MathML, which
browsers draw without a script. The page of the commands is the parser's own help.
"""

from __future__ import annotations

import argparse
import importlib
import os
import posixpath
import re
from collections.abc import Iterator
from typing import Any

__all__ = [
    "COMMANDS",
    "PAGES",
    "REFERENCES",
    "on_config",
    "on_files",
    "on_page_content",
    "on_page_markdown",
]

COMMANDS = "commands.md"
"""The page of the command line, made from its help."""

PAGES = {
    "index.md": "README.md",
    "rules.md": "rules/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site that lie elsewhere in the repository."""

REFERENCES = {
    "reference/index.md": ("binarize", "Networks, files and reports"),
    "reference/train.md": ("binarize.train", "Training"),
    "reference/data.md": ("binarize.data", "Data sets"),
    "reference/nn.md": ("binarize.nn", "Binary layers"),
    "reference/ops.md": ("binarize.ops", "Operations on tensors"),
    "reference/runtime.md": ("binarize.runtime", "ONNX Runtime"),
}
"""Pages of the reference, by module: all its public names, from their docstrings."""

_FENCE = re.compile(r"^(```.*?^```$)", re.M | re.S)
_LINK = re.compile(
    r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:)([^)\s#]*)(#[^)\s]*)?\)"
)
_EQUATION = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.M | re.S)
_IMAGE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?([^<]+)</code>")


def source(page: str) -> str:
    """Return the file of a page, from the root of the repository."""
    return PAGES.get(page, f"docs/{page}")


def slug(title: str, separator: str = "-") -> str:
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


def translate(markdown: str, page: str) -> str:
    """Let links and images lead to pages and files of the site.

    Args:
        markdown: A page's text.
        page: Its name on the site.
    """
    here, pages = posixpath.dirname(source(page)), {file: name for name, file in PAGES.items()}

    def place(target: str) -> str | None:
        file = posixpath.normpath(posixpath.join(here, target))
        name = pages.get(file, file[5:] if file.startswith("docs/") else None)
        return name and posixpath.relpath(name, posixpath.dirname(page) or ".")

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if not target:
            return found[0]
        name = place(target)
        return text if name is None else f"[{text}]({name}{anchor})"

    def image(found: re.Match[str]) -> str:
        return f"![{found[1]}]({place(found[2])})"

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(link, _IMAGE.sub(image, part)) for part in parts[::2]]
    return "".join(parts).replace("<details>", '<details markdown="1">')


def reference(page: str) -> str:
    """Return the text of a page of the reference."""
    name, title = REFERENCES[page]
    module = importlib.import_module(name)
    lines = [f"# {title}", "", f"`import {name}`", ""]
    for public in sorted(module.__all__, key=str.lower):
        thing = getattr(module, public)
        home = getattr(thing, "__module__", None)
        if home is not None and home.startswith("binarize"):
            lines.append(f"::: {home}.{thing.__qualname__}\n")
    return "\n".join(lines)


def commands() -> str:
    """Return the page of the command line: for each command what it does, examples, options."""
    from binarize.cli.app import build_parser

    os.environ.update(COLUMNS="100", NO_COLOR="1")
    lines = ["# Commands", "", "What `binarize COMMAND --help` prints, for every command.", ""]
    for parser in _parsers(build_parser()):
        description, epilog = parser.description or "", parser.epilog or ""
        parser.description = parser.epilog = None
        before, _, examples = epilog.partition("examples:\n")
        examples = examples.partition("\n\nEvery command has")[0]
        lines += [f"## {parser.prog}", "", " ".join(description.split()), "", before.strip(), ""]
        if examples:
            code = re.sub(r"^  ", "", examples.strip("\n"), flags=re.M)
            lines += ["```sh", code, "```", ""]
        lines += ["```text", parser.format_help().strip(), "```", ""]
    return "\n".join(lines)


def _parsers(parser: Any) -> Iterator[Any]:
    """Yield a parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in dict.fromkeys(action.choices.values()):
                yield from _parsers(inner)


def equations(markdown: str) -> str:
    """Turn the equations between lines of ``$$`` into MathML."""
    from latex2mathml.converter import convert

    return _EQUATION.sub(lambda found: convert(found[1], display="block"), markdown)


def on_config(config: Any) -> Any:
    """Give headings the anchors that they have in the repository."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from elsewhere and the reference."""
    from mkdocs.structure.files import File

    for page, file in PAGES.items():
        with open(posixpath.join(posixpath.dirname(config.config_file_path), file)) as text:
            files.append(File.generated(config, page, content=text.read()))
    for page in REFERENCES:
        files.append(File.generated(config, page, content=reference(page)))
    files.append(File.generated(config, COMMANDS, content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Translate the links and equations of a page."""
    name = page.file.src_uri
    if name in REFERENCES or name == COMMANDS:
        return markdown
    return equations(translate(markdown, name))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Show the roles of docstrings as code."""
    return _ROLE.sub(r"<code>\1</code>", html)
