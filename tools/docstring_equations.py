"""Equations of docstrings as MathML: an extension of mkdocstrings (mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

__all__ = ["DocstringEquations"]

_BLOCK = re.compile(r"^( *)\.\. math::\n+((?:\1 +.*\n?)+)", re.M)
_INLINE = re.compile(r":math:`([^`]+)`")


class DocstringEquations(griffe.Extension):
    """Turns the equations of docstrings (``.. math::``, ``:math:``) into MathML."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite a docstring before it is parsed."""

        def block(found: re.Match[str]) -> str:
            latex = " ".join(found[2].split())
            return f"{found[1]}{convert(latex, display='block')}\n"

        def inline(found: re.Match[str]) -> str:
            return convert(" ".join(found[1].split()))

        if obj.docstring is not None:
            obj.docstring.value = _INLINE.sub(inline, _BLOCK.sub(block, obj.docstring.value))
