"""The container: tensors and strings to a safetensors file and back.

Layout: 8 bytes of header length (little-endian), a JSON header, the tensors' bytes. One of the
header's strings is ``checksum``, the CRC-32 of the whole file with zeros in its place. This module
writes files itself, rather than with the safetensors package, so that the same tensors always give
the same bytes, the size is known before a tensor is read, and the tensors are never all copied at
once. The safetensors package reads them, and checks the header against the data.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from binarize.errors import FileError, ModelError
from binarize.writing import atomic_write

_CHECKSUM = "checksum"
_SUM = re.compile(rb'"checksum":"([^"]{8})"')

__all__ = [
    "Entry",
    "check_sum",
    "check_version",
    "file_size",
    "read_file",
    "read_metadata",
    "write_file",
]

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: Its name in the file.
        dtype: Its dtype.
        shape: Its shape.
        keys: Keys of the state_dict that it represents.
        read: Returns the tensor; called once, when the file is written.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    # The widest dtypes first, so that every tensor starts at a multiple of its element size.
    return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))


def _header(entries: Sequence[Entry], metadata: Mapping[str, str], checksum: int = 0) -> bytes:
    header: dict[str, Any] = {}
    if metadata:  # same length for any checksum, which is known when all is written
        header["__metadata__"] = {**metadata, _CHECKSUM: f"{checksum:08x}"}
    start = 0
    for entry in _ordered(entries):
        if entry.dtype not in _CODES:
            raise ModelError(
                "model",
                f"{entry.keys[0]} of {entry.dtype}",
                "a file cannot hold tensors of this dtype",
                f"use one of {', '.join(str(kind).removeprefix('torch.') for kind in _CODES)}",
            )
        header[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.size],
        }
        start += entry.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_size(entries: Sequence[Entry], metadata: Mapping[str, str]) -> int:
    """Return the bytes of the file that :func:`write_file` would write."""
    return len(_header(entries, metadata)) + sum(entry.size for entry in entries)


def write_file(
    path: str | os.PathLike[str], entries: Sequence[Entry], metadata: Mapping[str, str]
) -> None:
    """Write a file completely or not at all.

    Args:
        path: The file to write; an existing file is replaced.
        entries: The tensors.
        metadata: Strings for the header.

    Raises:
        FileError: The folder is missing or cannot be written to, or the disk is full. No partial
            file is left, and an existing file stays.
    """
    _check_path(path)
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise FileError("path", str(path), "this is a folder", "give the name of a file in it")
    if not os.path.isdir(target.parent):
        raise FileError(
            "path",
            str(path),
            f"there is no folder {str(target.parent)!r}",
            "create the folder first",
        )
    header = _header(entries, metadata)
    checksum = zlib.crc32(header)
    try:
        with atomic_write(target) as temporary, open(temporary, "xb") as file:
            file.write(header)
            for entry in _ordered(entries):
                data = _to_bytes(entry)
                checksum = zlib.crc32(data, checksum)
                file.write(data)
            file.seek(0)
            file.write(_header(entries, metadata, checksum))
    except OSError as error:
        raise FileError(
            "path",
            str(path),
            f"it cannot be written ({error.strerror or error})",
            "check permissions and free disk space",
        ) from error


def _check_path(path: object) -> None:
    if not isinstance(path, str | os.PathLike):
        raise FileError("path", path, "not a path", "give a file name such as 'unet.safetensors'")


def _to_bytes(entry: Entry) -> bytes:
    tensor = entry.read().detach().cpu().contiguous()
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise RuntimeError(f"{entry.name} changed while it was written")
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def check_version(path: str | os.PathLike[str], metadata: Mapping[str, str], newest: int) -> None:
    """Reject a file format of a later release.

    Args:
        path: The file, for the error message.
        metadata: Strings of its header.
        newest: The newest supported format version.

    Raises:
        FileError: It is newer.
    """
    version = metadata.get("format_version", "")
    if version.isdecimal() and int(version) > newest:
        raise FileError(
            "path",
            str(path),
            f"its format version {version} is newer than {newest}, which this release reads",
            "update: pip install -U binarize-torch",
        )


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a file.

    Args:
        path: A safetensors file.

    Returns:
        The header's strings, and the tensors by name.

    Raises:
        FileError: There is no such file, or it is not a complete safetensors file.
    """
    _check_path(path)
    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileError("path", str(path), "there is no such file", "check the path")
    if os.path.isdir(name):
        raise FileError("path", str(path), "this is a folder", "give the file itself")
    try:
        with safe_open(name, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if sys.platform == "win32":
                # They are the file's own memory, and Windows replaces no file that is mapped.
                tensors = {key: tensor.clone() for key, tensor in tensors.items()}
            return dict(file.metadata() or {}), tensors
    except SafetensorError as error:
        raise FileError(
            "path",
            str(path),
            f"not a safetensors file, or an incomplete one ({_short(error)})",
            "get the file again from its source",
        ) from error
    except OSError as error:
        raise FileError(
            "path", str(path), f"it cannot be read ({_short(error)})", "check its permissions"
        ) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the header's strings of a safetensors file; empty for other files.

    :func:`read_file` reports any errors in the file.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, TypeError, ValueError, SafetensorError):
        return {}


def check_sum(path: str | os.PathLike[str]) -> None:
    """Reject a file with a wrong checksum; files of earlier releases have none.

    Raises:
        FileError: It is damaged.
    """
    if not _is_sound(path):
        raise FileError(
            "path",
            str(path),
            "its checksum is wrong: the file is damaged",
            "get the file again from its source",
        )


def _is_sound(path: str | os.PathLike[str]) -> bool:
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > os.path.getsize(path):
            return True  # not a safetensors file: its reader will report it
        header = file.read(length)
        found = _SUM.search(header)
        if found is None:
            return True
        zero = header[: found.start(1)] + b"0" * 8 + header[found.end(1) :]
        checksum = zlib.crc32(start + zero)
        while data := file.read(1 << 20):
            checksum = zlib.crc32(data, checksum)
    return found[1] == b"%08x" % checksum


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:100]
