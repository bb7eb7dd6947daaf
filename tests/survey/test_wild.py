"""Networks in a folder: which are found, how they are built, what is found out about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from binarize.errors import FileError
from binarize.survey import wild_cases
from binarize.survey.examine import examine
from binarize.survey.row import CONVERTED, ORIGINAL

HEAD = """
from __future__ import annotations
import torch
from torch import Tensor, nn

class Net(nn.Module):
    def __init__(self, cin, kind=nn.Conv2d, second=None):
        super().__init__()
        self.a, self.b = kind(cin, 8, 3, padding=1), kind(8, 8, 3, padding=1)
        self.c = kind(second, 8, 1) if second else None
        self.head = kind(8, 2, 1)

    def forward(self, x, y=None):
        x = self.a(x) if y is None else self.a(x) + self.c(y)
        return self.head(torch.relu(self.b(x)))
"""
FUNCTIONS = """
def make(): return Net(3)
def make_grey(cin=1, *, extra=None, **more): return Net(cin)
def make_with(cin): return Net(cin)
def make_keyword(*, cin): return Net(cin)
def annotated() -> nn.Module: return Net(3)
def as_text() -> "torch.nn.Module": return Net(3)
def helper(): return 1
def number() -> int: return 1
make_short = lambda: Net(3)
make_number = 3
raise SystemExit  # nothing is run to list the factories
"""
CLASSES = """
class Plain(nn.Module):
    pass
class Given(nn.Module):
    def __init__(self, width=3, *, depth=2): super().__init__()
class Block(nn.Module):
    def __init__(self, width): super().__init__()
class Other:
    pass
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEAD + text, encoding="utf-8")
    return path


def test_factories(tmp_path: Path) -> None:
    functions = write(tmp_path, "a.py", FUNCTIONS)
    classes = write(tmp_path, "sub/b.py", CLASSES)
    broken = write(tmp_path, "sub/c.py", "def make(:")
    cases = wild_cases(tmp_path)
    found = [(case.family, case.name.rpartition(":")[2]) for case in cases]
    names = ["make", "make_grey", "annotated", "as_text", "make_short"]
    expected = [("a.py", name) for name in names]
    assert found == [*expected, ("sub/b.py", "Plain"), ("sub/b.py", "Given"), ("sub/c.py", "")]
    assert all(case.sample for case in cases)
    assert [case.key for case in wild_cases(functions)] == [case.key for case in cases[:5]]
    assert cases[0].key == f"wild:{functions.as_posix()}:make"
    (one,) = wild_cases(Path(f"{classes}:Block"))
    assert one.name == f"{classes.as_posix()}:Block"
    assert examine(wild_cases(broken)[0]).status == ORIGINAL


@pytest.mark.parametrize("name", ["missing", "missing.py", "text.txt", "text.txt:make", "empty"])
def test_mistakes(name: str, tmp_path: Path, told: Callable[[BaseException], str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("", encoding="utf-8")
    with pytest.raises(FileError) as raised:
        wild_cases(tmp_path / name)
    assert told(raised.value).startswith("wild=")


IMAGES = {
    "grey": ("def make(): return Net(1)", [224, 224]),
    "volume": ("def make(): return Net(2, nn.Conv3d)", [48, 48, 48]),
    "signal": ("def make(): return Net(2, nn.Conv1d)", [1024]),
    "example": (
        "def make(): return Net(3)\ndef example_inputs(): return torch.zeros(2, 3, 40, 48)",
        [40, 48],
    ),
    "value": ("def make(): return Net(3)\nexample_inputs = torch.zeros(1, 3, 40, 48)", [40, 48]),
    "two images": (
        "def make(): return Net(3, second=1)\n"
        "def example_inputs(): return torch.zeros(1, 3, 40, 48), torch.zeros(1, 1, 40, 48)",
        [40, 48],
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_all_checks(name: str, tmp_path: Path) -> None:
    text, size = IMAGES[name]
    (case,) = wild_cases(write(tmp_path, "net.py", text))
    row = examine(case)
    assert row.status == CONVERTED, row.cause
    assert row.size == size
    assert row.checks == dict.fromkeys(("forward", "train", "reload", "real"), "ok")
    assert not row.opaque


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("def make(): return 3", "returned a int, not a Module"),
        ("def make(): return 1 / 0", "ZeroDivisionError"),
        ("raise RuntimeError('not now')\ndef make(): return Net(3)", "not now"),
        ("def make(): return Net(3)\ndef example_inputs(): return 3", "returned no tensors"),
        (
            "def make(): return Net(3)\n"
            "def example_inputs(): return torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 4, 4)",
            "images of several sizes",
        ),
    ],
)
def test_what_fails_itself(text: str, cause: str, tmp_path: Path) -> None:
    (case,) = wild_cases(write(tmp_path, "net.py", text))
    row = examine(case)
    assert row.status == ORIGINAL
    assert cause in row.cause


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, "net.py", "def make(): return Net(3)")
    row = examine(wild_cases(Path(f"{path}:other"))[0])
    assert row.status == ORIGINAL
    assert "has no 'other'" in row.cause
