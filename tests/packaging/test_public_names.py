"""The package's names: there when asked for, and light until then."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import binarize


def python(*arguments: str) -> None:
    """Run code in a process of its own, in which nothing is imported yet."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_promised_names_exist() -> None:
    assert set(binarize.__all__) >= {
        *("convert", "plan", "report", "save", "load", "policies", "recalibrate"),
        *("Trainer", "BinarizeError", "ops", "nn"),
    }
    assert set(binarize.__all__) <= set(dir(binarize))
    for name in binarize.__all__:
        thing = getattr(binarize, name)
        assert inspect.ismodule(thing) == (name in ("nn", "ops")), name


def test_type_checkers_know_the_same_names() -> None:
    tree = ast.parse(Path(binarize.__file__).read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [alias for node in imports for alias in node.names if alias.asname is not None]
    assert sorted(alias.name for alias in names) == binarize.__all__
    assert all(alias.name == alias.asname for alias in names)


def test_importing_the_package_imports_no_torch() -> None:
    python(
        "-W",
        "error",
        "-c",
        "import binarize, sys\n"
        "assert 'convert' in dir(binarize) and 'nn' in dir(binarize)\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)\n",
    )


def test_report_is_a_function_whoever_imports_its_package_first() -> None:
    python(
        "-c",
        "import binarize.report.numbers\n"
        "from binarize.report import Report\n"
        "import binarize\n"
        "assert callable(binarize.report), binarize.report\n"
        "from binarize.report import terminal\n"
        "from binarize import report\n"
        "import torch\n"
        "assert isinstance(binarize.report(torch.nn.Linear(2, 3)), Report)\n"
        "assert report is binarize.report\n",
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'binarize' has no attribute 'convrt'"):
        binarize.convrt  # noqa: B018
