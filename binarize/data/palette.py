"""Colours for label maps."""

from __future__ import annotations

import colorsys

__all__ = ["palette"]

_GOLDEN = 0.618033988749895


def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return ``count`` distinct RGB colours, always the same ones.

    Hues advance by the golden ratio, so that any prefix is spread over the circle; brightness
    alternates to separate similar hues.
    """
    colors = []
    for index in range(count):
        hue = (0.58 + index * _GOLDEN) % 1.0
        value = (0.95, 0.65, 0.8)[index % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.62, value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)
