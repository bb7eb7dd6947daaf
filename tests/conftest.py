"""What every test shares: the installed package is the one under test, and runs repeat."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "binarize-torch"


def installation() -> str:
    """How the distribution is installed: ``"wheel"``, ``"editable"`` or ``"none"``."""
    # The checkout never holds metadata of its own, so a hit is a real installation.
    try:
        origin = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return "none"
    editable = json.loads(origin or "{}").get("dir_info", {}).get("editable", False)
    return "editable" if editable else "wheel"


INSTALLATION = installation()

# Maps are small in here: a second thread costs more than it gives. Set before torch comes in,
# and inherited by child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if INSTALLATION == "wheel":
    # `python -m pytest` puts the current directory first, and there lies the source folder
    # of the same name. Take it away, here and (Python 3.11 on) in every child process.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]
    os.environ["PYTHONSAFEPATH"] = "1"
elif INSTALLATION == "none":
    # A plain checkout: good enough to try a change, here and in child processes.
    sys.path.insert(0, str(CHECKOUT))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def pytest_report_header() -> str:
    import binarize

    return f"binarize: {INSTALLATION} installation, imported from {Path(binarize.__file__).parent}"


def pytest_sessionstart() -> None:
    """Refuse to test a source folder in place of the package that is installed."""
    import binarize

    inside = Path(binarize.__file__).resolve().is_relative_to(CHECKOUT / "binarize")
    if INSTALLATION == "wheel" and inside:
        raise pytest.UsageError(
            f"binarize comes from the source folder {CHECKOUT} although it is installed; "
            "run `pytest` without the checkout on PYTHONPATH"
        )
    if INSTALLATION == "none" and os.environ.get("CI"):
        raise pytest.UsageError(
            "binarize is not installed, so only its source folder could be tested; "
            "run `pip install '.[test]'` first"
        )


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pooling_exports() -> None:
    """Skip where torch itself does not export its pooling for even and odd sizes (2.8, 2.11)."""
    import torch

    sizes = {2: torch.export.Dim("height", min=4, max=512)}
    pooling = torch.nn.AvgPool2d(2)
    try:
        torch.export.export(pooling, (torch.zeros(1, 1, 9, 8),), dynamic_shapes=(sizes,))
    except torch._dynamo.exc.UserError:
        pytest.skip("this version of torch does not export average pooling for all sizes")
