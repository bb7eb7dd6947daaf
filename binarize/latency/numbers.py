"""Measured latencies as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from binarize.errors import BinarizeError, FileError
from binarize.reading import read_json
from binarize.writing import atomic_write

__all__ = ["LayerLatency", "Machine", "Profile"]

FORMAT = "binarize profile"


@dataclass(frozen=True)
class Machine:
    """What latencies depend on besides the network.

    Attributes:
        processor: Its name.
        kernels: Instruction set of the 1-bit kernels.
        threads: Number of threads that torch uses.
        torch: Version of torch.
        binarize: Version of this package.
    """

    processor: str
    kernels: str
    threads: int
    torch: str
    binarize: str


@dataclass(frozen=True)
class LayerLatency:
    """One layer and what follows it up to the next: norm, activation, additions, resizing.

    Attributes:
        site: Dotted name.
        kind: Class of the float layer.
        shape: Shape of its weight.
        planned: The policy's action.
        milliseconds: Per call of the whole network, by action; medians over the rounds.
        errors: Half the interquartile range over the rounds, by action.
    """

    site: str
    kind: str
    shape: tuple[int, ...]
    planned: str
    milliseconds: Mapping[str, float]
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Profile:
    """The latency of a packed network, layer by layer, under each treatment.

    Attributes:
        network: Class of the network.
        policy: Name of the policy.
        inputs: Sizes of the inputs.
        machine: The machine that it was measured on.
        rounds: Number of runs of each network.
        layers: The layers, in order of execution.
        rest: Milliseconds of operations that belong to no layer.
        whole: Measured milliseconds of whole networks: ``"policy"``, ``"keep"`` (float) and
            ``"int8"`` (8 bits where the policy uses one).
    """

    network: str
    policy: str
    inputs: str
    machine: Machine
    rounds: int
    layers: tuple[LayerLatency, ...]
    rest: float
    whole: Mapping[str, float]

    def predict(self, actions: Mapping[str, str] | None = None) -> float:
        """Predict the latency of a network whose layers are treated differently.

        Args:
            actions: Action by site; the policy decides about the other layers.

        Returns:
            Milliseconds.

        Raises:
            BinarizeError: A layer was not measured under its action.
        """
        given = actions or {}
        total = self.rest
        for layer in self.layers:
            total += self.of(layer.site, given.get(layer.site, layer.planned))
        return total

    def of(self, site: str, action: str) -> float:
        """Return the milliseconds of a layer under an action.

        Raises:
            BinarizeError: It was not measured.
        """
        layer = next((layer for layer in self.layers if layer.site == site), None)
        if layer is not None and action in ("bypass", "remove"):
            action = layer.planned  # the layer is removed, and others include its time
        if layer is None or action not in layer.milliseconds:
            raise BinarizeError(
                "profile",
                f"{site}: {action}",
                "this was not measured",
                "profile this network with the same policy and overrides",
            )
        return layer.milliseconds[action]

    def check(self, machine: Machine) -> None:
        """Raise an error if the profile is from another machine.

        Raises:
            BinarizeError: Processor, kernels, threads or versions differ.
        """
        mine, theirs = asdict(self.machine), asdict(machine)
        for name, value in mine.items():
            if theirs[name] != value:
                raise BinarizeError(
                    "profile",
                    f"{name} {value}",
                    f"this machine has {theirs[name]}, so latencies differ",
                    "profile again on this machine: binarize profile",
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; :meth:`from_dict` reads it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """Read what :meth:`to_dict` wrote."""
        known = {key: data[key] for key in cls.__dataclass_fields__}
        known["machine"] = Machine(**known["machine"])
        known["layers"] = tuple(
            LayerLatency(**{**row, "shape": tuple(row["shape"])}) for row in known["layers"]
        )
        return cls(**known)

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON; an existing file is replaced.

        Raises:
            FileError: It cannot be written.
        """
        try:
            with atomic_write(Path(path)) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            cause = error.strerror or error
            raise FileError(
                "path",
                str(path),
                f"it cannot be written ({cause})",
                "check the folder and the disk",
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: There is no such file, or it is not a profile.
        """
        return read_json(
            path,
            cls.from_dict,
            form=FORMAT,
            argument="profile",
            what="a readable profile",
            remedy="write one: binarize profile MODEL -o profile.json",
        )

    def __str__(self) -> str:
        actions = [a for a in _TITLES if any(a in layer.milliseconds for layer in self.layers)]
        rows = [("Layer", "Shape", "Policy", *(f"{_TITLES[a]}, ms" for a in actions))]
        for layer in self.layers:
            shape = "×".join(map(str, layer.shape))
            rows.append((layer.site, shape, layer.planned, *(_cell(layer, a) for a in actions)))
        rows.append(("everything else", "", "", f"{self.rest:.3f}", *[""] * (len(actions) - 1)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        m = self.machine
        eight = f", in 8 bits {self.whole['int8']:.2f} ms" if "int8" in self.whole else ""
        lines = [
            f"{self.network} by policy {self.policy!r}, {self.inputs}: "
            f"{self.whole['policy']:.2f} ms; float {self.whole['keep']:.2f} ms{eight}",
            f"{m.processor}, {m.kernels} kernels, {m.threads} thread(s), torch {m.torch}, "
            f"medians of {self.rounds} rounds",
        ]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _cell(layer: LayerLatency, action: str) -> str:
    if action not in layer.milliseconds:
        return ""
    return f"{layer.milliseconds[action]:.3f} ±{layer.errors[action]:.3f}"


_TITLES = {"binarize": "1 bit", "int8": "8 bits", "keep": "float"}
