"""Without the extras, networks are converted, saved and reported; the rest names its extra."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from binarize.extras import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHECKOUT = Path(__file__).resolve().parents[2]

# As if none of the extras' packages were installed.
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRAS)!r}))\n"

CODE = """
import json
import pathlib
import torch
from torch import nn
import binarize

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3), Block(8), Block(8), nn.Conv2d(8, 2, 1)).eval()
image = torch.randn(1, 3, 12, 12)
plan = binarize.plan(network, example_inputs=image)
assert "1.conv" in str(plan)
assert "1.conv" in plan._repr_html_()
student = binarize.convert(network, example_inputs=image).eval()
binarize.save(student, "own.safetensors")
again = binarize.load("own.safetensors", model=network)
packed = binarize.pack(again)
with torch.no_grad():
    assert torch.equal(again(image), student(image))
    assert torch.allclose(packed(image), student(image), atol=1e-4)
report = binarize.report(student, image)
assert json.loads(json.dumps(report.to_dict()))["network"] == "Sequential"
assert report.file_bytes < report.reference_bytes
assert "1.conv" in report._repr_html_()
assert "popcount" in str(binarize.report(packed))
inspection = binarize.inspect(student, [image])

def data():
    import binarize.data

def timm():
    from binarize.graph.origin import build_origin
    build_origin({"library": "timm", "name": "resnet18", "arguments": {}})

for step in (
    lambda: binarize.Trainer, lambda: binarize.recalibrate, lambda: binarize.prepare_student,
    lambda: binarize.sensitivity, data, timm, lambda: str(report),
    lambda: report.to_html("page.html"), lambda: inspection.save("maps"),
):
    try:
        step()
    except binarize.BinarizeError as error:
        print(error)
    else:
        print("passed")
assert not pathlib.Path("page.html").exists()
assert not list(pathlib.Path().glob("maps/*"))
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", BLOCK + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_network_of_ones_own_needs_no_extra_and_the_rest_names_it(tmp_path: Path) -> None:
    done = run(CODE, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    named = [re.search(r"; pip install 'binarize-torch\[(\w+)\]'$", line) for line in lines]
    assert [found and found[1] for found in named] == [
        *["train"] * 5,
        *["models", "cli", "plots", "plots"],
    ], done.stdout
    assert lines[-1] == (
        "package='matplotlib': is not installed, and belongs to the extra 'plots'; "
        "pip install 'binarize-torch[plots]'"
    )


def test_without_rich_the_shell_has_its_help_and_an_error_of_one_line(tmp_path: Path) -> None:
    code = "from binarize.cli import main; print(main(['doctor'])); main(['--help'])"
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout[:2]) == (0, "1\n")
    assert "convert" in done.stdout
    assert done.stderr == (
        "error: package='rich': is not installed, and belongs to the extra 'cli'; "
        "pip install 'binarize-torch[cli]'\n"
    )


def test_a_command_names_the_extra_it_needs(tmp_path: Path) -> None:
    commands = [
        ["convert", "timm:resnet18", "--dry-run", "--quiet"],
        ["inspect", "own.safetensors", "--images", "a.png", "--output", "maps"],
    ]
    code = "del sys.modules['rich']; from binarize.cli import main; print(*map(main, {}))"
    done = run(code.format(commands), tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 1\n")
    assert re.findall(r"binarize-torch\[(\w+)\]'\n", done.stderr) == ["models", "plots"]
    assert done.stderr.count("\n") == 2
    assert not list(tmp_path.iterdir())


def test_the_extras_are_those_of_the_project_file() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements}

    assert names(project["dependencies"]) == {"numpy", "safetensors", "tomli", "torch"}
    for package, extra in EXTRAS.items():
        distribution = "pillow" if package == "PIL" else package.replace("_", "-")
        assert distribution in names(declared[extra]), package
    (everything,) = declared["all"]
    chosen = set(re.findall(r"[\w]+", everything.partition("[")[2]))
    assert chosen == set(declared) - {"all", "docs", "test"}
    assert "binarize-torch[all]" in declared["test"]
