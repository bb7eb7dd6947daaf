"""Folders and repositories on the Hugging Face Hub: a network's file with its model card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from binarize.errors import FileError, ModelError
from binarize.file.card import MARK, model_card
from binarize.file.container import read_metadata, write_file
from binarize.file.contents import FORMAT, Contents
from binarize.file.load import load
from binarize.file.programs import FORMAT as PROGRAMS
from binarize.file.save import model_contents
from binarize.writing import atomic_write_dir

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

_FILE = "model.safetensors"
_CARD = "README.md"


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Save a network to a folder that :func:`from_pretrained` loads and the Hub displays.

    The folder gets ``model.safetensors``, as :func:`binarize.save` writes it, and ``README.md``, a
    model card: policy, sizes, preprocessing, classes, and how to load it. A ``README.md`` that
    binarize did not write is kept.

    Args:
        model: A converted or packed network; it stays unchanged.
        folder: The folder, created with its parents if needed. Other files in it are kept.
        description: As for :func:`binarize.save`.

    Raises:
        ModelError: As for :func:`binarize.save`.
        FileError: The folder cannot be written to.
    """
    path = _local(folder)
    contents = model_contents(model, description)
    card = None
    if _is_ours(path / _CARD):
        card = model_card(contents.metadata, contents.size, path.resolve().name)
    _write(contents, card, path)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    description: Mapping[str, Any] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a binarized network",
) -> str:
    """Upload a network to the Hugging Face Hub, with the files of :func:`save_pretrained`.

    Args:
        model: A converted or packed network; it stays unchanged.
        repo_id: The repository, ``"user/name"``; created if needed.
        description: As for :func:`binarize.save`.
        private: Whether a new repository is private; None uses the account's default.
        revision: The branch, created if needed; None uses the main one.
        token: Access token; None uses that of ``hf auth login``, if any.
        commit_message: The commit message.

    Returns:
        URL of the commit.

    Raises:
        ModelError: As for :func:`binarize.save`; or ``huggingface_hub`` is not installed.
        FileError: The Hub rejects it or cannot be reached.
    """
    hub = _hub("repo_id", repo_id)
    _check_id(hub, "repo_id", repo_id)
    contents = model_contents(model, description)
    api = hub.HfApi(token=token, library_name="binarize")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        card: str | None = model_card(contents.metadata, contents.size, repo_id)
        if api.file_exists(repo_id, _CARD, revision=revision) and not _is_ours(
            Path(api.hf_hub_download(repo_id, _CARD, revision=revision))
        ):
            card = None
        with tempfile.TemporaryDirectory() as folder:
            _write(contents, card, Path(folder))
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
    except FileError:
        raise
    except Exception as error:  # of several libraries, including the HTTP client
        raise FileError(
            "repo_id",
            repo_id,
            f"the Hub rejected the upload ({_short(error)})",
            "check your connection and the token's rights (hf auth login)",
        ) from error
    return str(commit.commit_url)


def from_pretrained(
    source: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    packed: bool = False,
    task: str | Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Load a network from a folder or from the Hugging Face Hub.

    Args:
        source: A folder that :func:`save_pretrained` wrote, or a repository id, ``"user/name"``; a
            folder of that name takes precedence.
        model: As for :func:`binarize.load`.
        packed: As for :func:`binarize.load`.
        task: As for :func:`binarize.load`.
        revision: Branch, tag or commit of the repository; None uses the main branch.
        token: Access token for private repositories; None uses that of ``hf auth login``.
        cache_dir: Folder for downloads; None uses the Hub's own cache.
        local_files_only: Whether to use only earlier downloads.

    Returns:
        What :func:`binarize.load` returns.

    Raises:
        FileError: There is no such folder or repository, it has no network of binarize, it cannot
            be downloaded; or as for :func:`binarize.load`.
        ModelError: As for :func:`binarize.load`; or ``huggingface_hub`` is not installed.
    """
    folder = _local(source, "source")
    if folder.is_dir():
        if revision is not None:
            raise FileError(
                "revision", revision, f"{str(source)!r} is a folder and has no revisions", "omit it"
            )
        file = folder / _FILE
        if not file.is_file():
            raise FileError(
                "source",
                str(source),
                f"this folder has no {_FILE}",
                "give a folder that binarize.save_pretrained wrote, or load a file: binarize.load",
            )
    elif folder.exists():
        raise FileError("source", str(source), "this is a file", "load it with binarize.load")
    else:
        file = Path(_download(source, revision, token, cache_dir, local_files_only))
    if read_metadata(file).get("format", "pt") not in (FORMAT, PROGRAMS):
        raise FileError(
            "source",
            str(source),
            f"its {_FILE} does not hold a network of binarize",
            "load it with its own library, and convert it: binarize.convert",
        )
    return load(file, model, packed=packed, task=task)


def _download(
    source: str | os.PathLike[str],
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> str:
    name = os.fspath(source)
    if not isinstance(source, str) or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise FileError("source", name, "there is no such folder", "check the path")
    hub = _hub("source", name)
    _check_id(hub, "source", name)
    errors = hub.errors
    try:
        return str(
            hub.hf_hub_download(
                name,
                _FILE,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                library_name="binarize",
            )
        )
    except errors.LocalEntryNotFoundError as error:  # also an EntryNotFoundError
        rule = "there is no such folder, and the Hub is unreachable or local_files_only is set"
        remedy = "check the path or your connection"
        raise FileError("source", name, rule, remedy) from error
    except errors.EntryNotFoundError as error:
        raise FileError(
            "source",
            name,
            f"this repository has no {_FILE}",
            "give a repository that binarize.push_to_hub wrote",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileError(
            "revision", revision, f"{name} on the Hub has no such branch, tag or commit", "check it"
        ) from error
    except errors.GatedRepoError as error:
        raise FileError(
            "source", name, "you have no access to this repository", "request it on the Hub"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileError(
            "source",
            name,
            "there is no such folder, and no such repository on the Hub that you can read",
            "check the name; for a private repository give token=... (hf auth login)",
        ) from error
    except Exception as error:  # of several libraries, including the HTTP client
        raise FileError(
            "source",
            name,
            f"it cannot be downloaded ({_short(error)})",
            "check your connection and free disk space",
        ) from error


def _write(contents: Contents, card: str | None, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileError("folder", str(folder), "this is a file", "give another name")
    try:
        with atomic_write_dir(folder, ()) as temporary:
            write_file(temporary / _FILE, contents.entries, contents.metadata)
            if card is not None:
                (temporary / _CARD).write_text(card, encoding="utf-8")
    except (OSError, FileError) as error:
        cause = error.rule if isinstance(error, FileError) else error.strerror or error
        raise FileError(
            "folder",
            str(folder),
            f"it cannot be written to ({cause})",
            "check permissions and free disk space",
        ) from error


def _local(path: str | os.PathLike[str], argument: str = "folder") -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise FileError(argument, path, "not a path", "give a folder's name, such as 'unet'")
    return Path(path)


def _is_ours(card: Path) -> bool:
    """Check whether a model card may be replaced: there is none, or binarize wrote it."""
    if not card.is_file():
        return True
    try:
        return MARK in card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _hub(argument: str, value: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ModelError(
            argument, value, "the Hub needs huggingface_hub", "pip install huggingface_hub"
        ) from error
    return huggingface_hub


def _check_id(hub: Any, argument: str, name: str) -> None:
    try:
        hub.utils.validate_repo_id(name)
    except hub.errors.HFValidationError as error:
        raise FileError(
            argument, name, "must be a folder or a repository id", "write 'user/name'"
        ) from error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]
