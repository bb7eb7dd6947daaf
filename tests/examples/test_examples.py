"""Every example runs, and says what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROMISED = {
    "distil_unet.py": ["mIoU", "times smaller"],
    "own_network.py": ["same outputs: True", "drop", "replace"],
    "own_rules.py": ["layer4 kept", "own rules: ", "did you mean 'bidense'"],
}


def test_no_example_is_forgotten() -> None:
    own = {"paper_network.py"}  # has a test file of its own
    assert {path.name for path in EXAMPLES.glob("*.py")} - own == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_example_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    for words in PROMISED[name]:
        assert words in done.stdout
    assert "not traced" not in done.stdout
