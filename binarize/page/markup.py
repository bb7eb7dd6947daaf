"""HTML and SVG elements whose text is always escaped."""

from __future__ import annotations

from html import escape

__all__ = ["Markup", "element"]

_VOID = frozenset({"br", "col", "hr", "img", "input", "meta", "source"})


class Markup(str):
    """Text that is already HTML; every other string is escaped when it is added to an element."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: object) -> Markup:
    """Build an element.

    Args:
        name: Name of the tag.
        *children: Its content: :class:`Markup` unchanged, other strings escaped.
        **attributes: Its attributes; ``None`` and ``False`` omit one, ``True`` writes the
            bare name. A trailing underscore is dropped (``class_``), others become hyphens.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    if name in _VOID:
        return Markup(opening)
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"{opening}{inside}</{name}>")
