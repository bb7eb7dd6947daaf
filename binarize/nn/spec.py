"""The specification of a binary layer, as data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from binarize.errors import BinarizeError, PolicyError
from binarize.nn.parts import (
    ACTIVATIONS,
    BINARIZERS,
    BYPASSES,
    NORMS,
    TRANSPOSED_SCALES,
    WEIGHTS,
)

__all__ = ["UnitSpec", "exchanged"]

# Arguments of the parts that the layer supplies.
_NO_OPTIONS = ("channels", "channel_dim", "dim", "groups")
# Parts that a unit may omit; a rule file writes "none".
_OPTIONAL = ("bypass", "inner", "activation")


def exchanged(unit: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace keys of a unit one by one; a part's options are replaced with it.

    Args:
        unit: As from :meth:`UnitSpec.to_dict`.
        changes: The new values by key.
    """
    gone = {f"{part}_options" for part in changes if part in unit and changes[part] != unit[part]}
    return {**{key: value for key, value in unit.items() if key not in gone}, **changes}


@dataclass(frozen=True)
class UnitSpec:
    """The named parts of a binary layer (the ``[unit]`` of a rule file).

    Attributes:
        binarizer: Activation binarizer, a key of ``BINARIZERS``.
        binarizer_options: Keyword arguments of the binarizer, e.g. ``{"scale": "layer"}``.
        weight: Weight binarizer, a key of ``WEIGHTS``.
        weight_options: Keyword arguments of the weight binarizer, e.g. ``{"bits": 3}``.
        transposed_scale: Whether the weight scale of transposed convolutions is per
            ``"output-channel"`` (it factors out of the sum) or per ``"input-channel"``.
        bypass: Full-precision path, one of ``BYPASSES``, or ``None`` for no bypass.
        norm: Norm on the binary layer's output; ``"batch"``.
        inner: Activation between norm and bypass, a key of ``ACTIVATIONS``; ``None`` for none.
        activation: What replaces ReLU-like activations, a key of ``ACTIVATIONS``; ``None`` keeps
            them.
        activation_options: Keyword arguments of the activation.
    """

    binarizer: str = "dab"
    binarizer_options: Mapping[str, Any] = field(default_factory=dict)
    weight: str = "scaled-sign"
    weight_options: Mapping[str, Any] = field(default_factory=dict)
    transposed_scale: str = "output-channel"
    bypass: str | None = "contiguous"
    norm: str = "batch"
    inner: str | None = None
    activation: str | None = "shifted-prelu"
    activation_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check("binarizer", self.binarizer, BINARIZERS)
        self._check("weight", self.weight, WEIGHTS)
        self._check("transposed_scale", self.transposed_scale, TRANSPOSED_SCALES)
        self._check("norm", self.norm, NORMS)
        if self.bypass is not None:
            self._check("bypass", self.bypass, BYPASSES)
        if self.inner is not None:
            self._check("inner", self.inner, ACTIVATIONS)
        if self.activation is not None:
            self._check("activation", self.activation, ACTIVATIONS)
            self._try("activation_options", ACTIVATIONS[self.activation], self.activation_options)
        self._try("binarizer_options", BINARIZERS[self.binarizer], self.binarizer_options)
        self._try("weight_options", WEIGHTS[self.weight], self.weight_options)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as in a rule file; :meth:`from_dict` reads it."""
        unit = {
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in vars(self).items()
        }
        unit = {key: value for key, value in unit.items() if value != {}}
        for key in _OPTIONAL:
            unit[key] = "none" if unit[key] is None else unit[key]
        if self.inner is None:
            del unit["inner"]
        return unit

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UnitSpec:
        """Read what :meth:`to_dict` wrote.

        Raises:
            PolicyError: A part or an option is unknown.
        """
        absent = {key: None for key in _OPTIONAL if data.get(key) == "none"}
        return cls(**{**data, **absent})

    def changed(self, changes: Mapping[str, Any]) -> UnitSpec:
        """Return the unit with some parts replaced, see :func:`exchanged`.

        Raises:
            PolicyError: A part or an option is unknown.
        """
        return self.from_dict(exchanged(self.to_dict(), changes)) if changes else self

    @staticmethod
    def _try(key: str, part: Callable[..., Any], options: Any) -> None:
        """Build a part once, to report a wrong option with the policy instead of with a layer."""
        if not isinstance(options, Mapping):
            raise PolicyError(f"unit.{key}", options, "not a table", "write {option = value}")
        known = [n for n in inspect.signature(part).parameters if n not in _NO_OPTIONS]
        for name in options:
            if name not in known:
                remedy = f"use one of {', '.join(known)}" if known else "remove the options"
                raise PolicyError(f"unit.{key}", name, "no such option", remedy)
        try:
            part(1, **options)
        except BinarizeError as error:
            raise PolicyError(f"unit.{key}", dict(options), error.rule, error.remedy) from None

    @staticmethod
    def _check(key: str, value: object, known: Any) -> None:
        if not isinstance(value, str) or value not in known:
            raise PolicyError(
                f"unit.{key}", value, "no such part", f"use one of {', '.join(sorted(known))}"
            )
