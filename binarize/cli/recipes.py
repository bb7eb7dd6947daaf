"""``binarize recipes``: list, show, copy and validate training recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from binarize.cli.parser import Subparsers
from binarize.cli.toml_files import Kind, Library, add_file_commands

__all__ = ["add"]

_DESCRIPTION = """\
A recipe holds training settings: learning rate, epochs, class weights, distillation. It is a TOML
file. Copy one, edit it, validate it, and pass it as --recipe. Options of binarize train override
it."""

_EXAMPLES = [
    ("binarize recipes ls", "the bundled recipes, with their results"),
    ("binarize recipes show cnn-dense", "read one"),
    ("binarize recipes cp cnn-dense mine.toml", "start your own"),
    ("binarize recipes validate mine.toml", "all its errors at once"),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command and its own four."""
    kind = Kind(
        command="recipes",
        noun="recipe",
        nouns="training recipes",
        file="recipe",
        option="--recipe",
        example="cnn-dense",
        columns=("purpose", "result"),
        resolved="with all defaults filled in",
        library=_library,
        described=_described,
    )
    add_file_commands(commands, kind, _DESCRIPTION, _EXAMPLES)


def _library() -> Library:
    from binarize.train.recipes import load_recipe, recipe_files, validate_recipe

    return Library(recipe_files, load_recipe, validate_recipe)


def _described(name: str, recipe: Any, file: Path) -> Mapping[str, Any]:
    return {**recipe.to_dict(), "file": file}
