"""Read weight files into networks, and write float networks."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from binarize.cli.checkpoints import Skipped, load_checkpoint
from binarize.cli.networks import nearest
from binarize.errors import FileError
from binarize.file.container import Entry, write_file
from binarize.file.contents import DESCRIPTION

__all__ = [
    "Matched",
    "file_kind",
    "load_encoder",
    "load_weights",
    "read_header",
    "read_tensors",
    "save_float",
]

KEY = DESCRIPTION
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, KeyError)
_ENDINGS = ("*.safetensors", "*.st", "*.pt", "*.pth", "*.ckpt", "*.bin")


@dataclass(frozen=True)
class Matched:
    """How much of a file was loaded into a network.

    Attributes:
        loaded: Number of tensors that were loaded.
        total: Number of tensors in the file.
        missing: Names of the network's tensors that are not in the file.
        unused: Names of the file's tensors that are not in the network.
    """

    loaded: int
    total: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.loaded} of {self.total} tensors loaded"
        if self.missing:
            text += f", {len(self.missing)} of the network's unchanged"
        return text


def _existing(path: Path, argument: str) -> Path:
    if not path.is_file():
        near = sorted(str(file) for pattern in _ENDINGS for file in path.parent.glob(pattern))
        hint = nearest(str(path), near) if near else "check the path"
        rule = "is a folder" if path.is_dir() else "no such file"
        raise FileError(argument, str(path), rule, hint)
    return path


def file_kind(path: Path) -> str:
    """Return a file's type by content: "safetensors", "onnx", or "torch" for all others."""
    with open(path, "rb") as file:
        start = file.read(16)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length <= max(2, path.stat().st_size):
        return "safetensors"
    if path.suffix in (".safetensors", ".st"):
        return "safetensors"  # but damaged
    # ONNX starts with its format version, a small number, followed by the producer.
    if path.suffix == ".onnx" or (start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x3a")):
        return "onnx"
    return "torch"


def read_header(path: Path, argument: str) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other weight files.

    Raises:
        FileError: The file is missing or damaged.
    """
    _existing(path, argument)
    try:
        if file_kind(path) != "safetensors":
            return {}
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, argument, error) from error


def read_tensors(path: Path, argument: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or a checkpoint without running its code.

    Of Lightning's checkpoints, whose hyperparameters may be any object, and others' the tensors
    alone are read. Names lose the ``_orig_mod.`` of modules that were compiled.

    Raises:
        FileError: The file is missing, damaged, or has no named tensors.
    """
    _existing(path, argument)
    try:
        if file_kind(path) == "safetensors":
            with safe_open(str(path), "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = load_checkpoint(path)
    except (SafetensorError, pickle.UnpicklingError, *_BROKEN) as error:
        raise _damaged(path, argument, error) from error
    tensors = _named_tensors(found)
    entries = found.values() if isinstance(found, Mapping) else [found]
    if not tensors and any(isinstance(entry, Skipped) for entry in entries):
        raise FileError(
            argument,
            str(path),
            "contains no named weights, but a pickled network, which would run code",
            "save network.state_dict() instead",
        )
    if not tensors:
        keys = f" under {_some(found)}" if isinstance(found, Mapping) and found else ""
        raise FileError(
            argument, str(path), f"contains no named weights{keys}", "give a state_dict"
        )
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def _named_tensors(found: Any, depth: int = 0) -> dict[str, Tensor]:
    """Return a checkpoint's tensors, from the mapping at any depth that has the most.

    Wrappers use many names (student, state_dict, model, net, ema...); an optimizer's state has
    numbers or its own names instead of the network's.
    """
    if not isinstance(found, Mapping) or depth > 4:
        return {}
    own = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    inner = [
        _named_tensors(value, depth + 1)
        for key, value in found.items()
        if isinstance(key, str) and "optim" not in key and "scheduler" not in key
    ]
    return max([own, *inner], key=len)


def _fitting(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, argument: str
) -> dict[str, Tensor]:
    """Return the tensors under the network's names, without wrappers' prefixes.

    Wrappers (DataParallel, torch.compile, Lightning, EMA) prefix all names of a network with
    ``module.``, ``_orig_mod.``, ``model.`` and the like, and may add their own entries. If all
    names of the network exist under one prefix, these are used.

    Raises:
        FileError: All names exist under several prefixes.
    """
    if any(name in own for name in tensors):
        return dict(tensors)
    wanted = next(iter(own), "")
    found = [name.removesuffix(wanted) for name in tensors if name.endswith(f".{wanted}")]
    whole = [
        prefix
        for prefix in found
        if all(
            f"{prefix}{name}" in tensors for name in own if not name.endswith("num_batches_tracked")
        )
    ]
    if len(whole) > 1:
        shown = " and with ".join(whole[:3])
        raise FileError(
            argument,
            str(path),
            f"contains two fitting networks, with names that start with {shown}",
            "save the state_dict of one of them",
        )
    if not whole and len(found) != 1:
        return dict(tensors)
    prefix = (whole or found)[0]
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_weights(
    network: nn.Module, path: Path, *, partial: bool = False, argument: str = "weights"
) -> Matched:
    """Load a file's weights into a network.

    Args:
        network: The network; unchanged when this fails.
        path: The file.
        partial: Load what fits by name and shape, instead of requiring everything.
        argument: Name of the option, for messages.

    Raises:
        FileError: The file is missing or damaged, or does not fit.
    """
    if read_header(path, argument).get("format") == "binarize":
        raise FileError(
            argument,
            str(path),
            "belongs to a converted network, not to a float one",
            "give float weights here, or this file as the model",
        )
    own = network.state_dict()
    tensors = _fitting(read_tensors(path, argument), own, path, argument)
    fits = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    missing = tuple(name for name in own if name not in fits)
    unused = tuple(name for name in tensors if name not in fits)
    if not fits:
        raise FileError(
            argument,
            str(path),
            f"no tensor fits: the file has {_some(tensors)}, the network {_some(own)}",
            "give the weights of this network, or the network of these weights",
        )
    wanted = [name for name in missing if not name.endswith("num_batches_tracked")]
    if not partial and (wanted or unused):
        raise FileError(argument, str(path), _misfit(tensors, own, wanted, unused), _MEND)
    network.load_state_dict(fits, strict=False)
    return Matched(len(fits), len(tensors), missing, unused)


_MEND = "give the weights of exactly this network, or --partial to load what fits"


def _misfit(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    missing: list[str],
    unused: tuple[str, ...],
) -> str:
    for name in unused:
        if name in own:
            return (
                f"does not fit: {name} is {tuple(tensors[name].shape)} in the file and "
                f"{tuple(own[name].shape)} in the network"
            )
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_some(missing)})")
    if unused:
        parts.append(f"{len(unused)} unknown ({_some(unused)})")
    return f"does not fit: {' and '.join(parts)}"


def load_encoder(network: nn.Module, path: Path, argument: str = "encoder-weights") -> Matched:
    """Load a backbone's weights into a network's encoder, as far as they fit.

    Candidates are ``network.encoder``, ``network.backbone``, the timm network inside either, and
    the network itself; the one with the most tensors of the same name and shape is loaded.

    Raises:
        FileError: The file is missing or damaged, or nothing fits.
    """
    tensors = read_tensors(path, argument)
    places: list[nn.Module] = []
    for name in ("encoder", "backbone"):
        place = getattr(network, name, None)
        if isinstance(place, nn.Module):
            places.append(place)
            inner = getattr(place, "model", None)
            if isinstance(inner, nn.Module):
                places.append(inner)
    places.append(network)

    def fitting(place: nn.Module) -> dict[str, Tensor]:
        own = place.state_dict()
        named = _fitting(tensors, own, path, argument)
        return {k: v for k, v in named.items() if k in own and own[k].shape == v.shape}

    best = max(places, key=lambda place: len(fitting(place)))
    fits = fitting(best)
    if not fits:
        raise FileError(
            argument,
            str(path),
            f"no tensor fits: the file has {_some(tensors)}, "
            f"the encoder {_some(places[0].state_dict())}",
            "give weights of the same backbone, with its library's or torchvision's names",
        )
    best.load_state_dict(fits, strict=False)
    return Matched(
        len(fits),
        len(tensors),
        tuple(name for name in best.state_dict() if name not in fits),
        tuple(name for name in tensors if name not in fits),
    )


def save_float(network: nn.Module, path: Path, description: Mapping[str, Any]) -> None:
    """Write a float network's weights, with a description that says how to build it.

    Raises:
        FileError: The file cannot be written.
    """
    # A shared parameter is written twice, for readers that do not support sharing.
    entries = [_entry(name, value) for name, value in network.state_dict().items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            "output", str(path), f"cannot be written ({error})", "choose another path"
        ) from error
    write_file(path, entries, {"format": "pt", KEY: json.dumps(dict(description))})


def _entry(name: str, value: Tensor) -> Entry:
    return Entry(name, value.dtype, tuple(value.shape), (name,), lambda: value)


def _some(names: Any, count: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")


def _damaged(path: Path, argument: str, error: BaseException) -> FileError:
    text = " ".join(str(error).split())[:120]
    return FileError(
        argument,
        str(path),
        f"cannot be read ({text})",
        "it may be truncated: download or save it again",
    )
