"""The installed distribution says one version, offers its command and carries its licence."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import binarize

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("binarize-torch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("binarize-torch is not installed; run `pip install '.[test]'`")


def test_version_is_the_same_everywhere(distribution: importlib.metadata.Distribution) -> None:
    assert distribution.version == binarize.__version__
    assert 'dynamic = ["version"]' in (CHECKOUT / "pyproject.toml").read_text()


def test_changelog_knows_the_version_or_is_unreleased() -> None:
    first = re.search(r"^## \[(.+?)\]", (CHECKOUT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None
    assert first[1] in ("Unreleased", binarize.__version__)


def test_licence_travels_along(distribution: importlib.metadata.Distribution) -> None:
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert [name for name in distribution.files or [] if name.name == "LICENSE"]


def test_console_script_is_declared(distribution: importlib.metadata.Distribution) -> None:
    (script,) = distribution.entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("binarize", "binarize.cli:main")
    assert callable(script.load())


def test_module_and_console_script_answer(tmp_path: Path) -> None:
    said = []
    script = shutil.which("binarize", path=str(Path(sys.executable).parent))
    for command in ([sys.executable, "-m", "binarize"], [script] if script else []):
        if command:
            run = subprocess.run(
                [*command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120
            )
            assert run.returncode == 0, run.stderr
            assert "convert" in run.stdout
            said.append(run.stdout)
    assert len(set(said)) == 1


def test_ci_runs_the_command_of_the_readme() -> None:
    command = "pip install '.[test]' && pytest"
    assert command in (CHECKOUT / "README.md").read_text()
    assert command in (CHECKOUT / ".ci" / "run").read_text()
