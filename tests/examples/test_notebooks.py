"""The notebooks run from top to bottom in a fresh process, and show what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# What the last expressions of a notebook are shown as: pages for tables, images for predictions.
SHOWN = {
    "convert_and_distil.ipynb": ["text/html", "text/html", "image/png"],
    "choose_and_deploy.ipynb": ["text/html"] * 4 + ["image/png"],
}
# IPython displays a cell's last expression as Jupyter does; no kernel is needed for that.
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
shell = InteractiveShell.instance()
shell.ast_node_interactivity = "last_expr"
shown = []
for cell in cells:
    if cell["cell_type"] == "code":
        with capture_output() as captured:
            done = shell.run_cell("".join(cell["source"]))
        done.raise_error()
        if done.result is not None:
            data = shell.display_formatter.format(done.result)[0]
            shown.append(next(k for k in ("image/png", "text/html", "text/plain") if k in data))
print(json.dumps(shown))
"""


def test_no_notebook_is_forgotten_and_none_has_outputs() -> None:
    assert {path.name for path in EXAMPLES.glob("*.ipynb")} == set(SHOWN)
    for name in SHOWN:
        notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None


@pytest.mark.parametrize("name", SHOWN)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(EXAMPLES / name)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == SHOWN[name]
