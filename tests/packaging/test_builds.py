"""However the package is installed, or not at all, it finds the policies of the rules folder.

Nothing is fetched: builds run without isolation, on a copy of the checkout, and the new
environments see this one's site-packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPES = {f"binarize/recipes/{path.name}" for path in (CHECKOUT / "recipes").glob("*.toml")}
RULES = {path.stem for path in (CHECKOUT / "rules").glob("*.toml")}
SOURCES = [
    "binarize",
    "rules",
    "recipes",
    "runtime",
    "CMakeLists.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".gitignore",
]
LIBRARY = "binarize/kernels/libbinarize_kernels.so"
OPERATORS = "binarize/runtime/libbinarize_ort.so"

# Prints where the package lies, then the policies it finds.
ASK = """
import pathlib, binarize
print(pathlib.Path(binarize.__file__).resolve().parent)
print(*sorted(binarize.policies()))
"""


def ask(python: Path | str, folder: Path, **environment: str) -> tuple[Path, set[str]]:
    """Let ``python``, started in ``folder``, say where binarize is and what it finds."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    output = run([str(python), "-c", ASK], folder, env)
    where, names = output.splitlines()[-2:]
    return Path(where), set(names.split())


# Prints the C libraries that lie where binarize.kernels looks for them.
LOOK = """
import importlib.util, pathlib
spec = importlib.util.find_spec("binarize.kernels")
for folder in spec.submodule_search_locations:
    print(*pathlib.Path(folder).glob("libbinarize_kernels.*"))
"""


def libraries(python: Path | str, folder: Path, **environment: str) -> list[str]:
    """Let ``python`` say which C libraries it finds."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return run([str(python), "-c", LOOK], folder, env).split()


def run(command: list[str], folder: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str, python: Path | str = sys.executable, folder: Path) -> None:
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    run([str(python), "-m", "pip", arguments[0], *offline, *arguments[1:]], folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, so that no test writes into the checkout."""
    folder = tmp_path_factory.mktemp("sources") / "binarize-torch"
    folder.mkdir()
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "libbinarize_*")
            shutil.copytree(CHECKOUT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(CHECKOUT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(sources), folder=folder)
    (built,) = folder.glob("*.whl")
    return built


def rule_files(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        paths = [Path(name) for name in opened.namelist()]
    return {
        path.stem
        for path in paths
        if path.parent == Path("binarize/rules") and path.suffix == ".toml"
    }


def environment(folder: Path) -> Path:
    """A fresh environment's Python that sees this one's packages, but behind its own.

    The editable hooks of this environment, if it has any, do not work in there.
    """
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(run(where, folder).strip())
    (own / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_there_are_rules_to_find() -> None:
    assert {"bidense", "bidense-released"} <= RULES


def test_wheel_holds_library_rules_and_type_marker(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    assert rule_files(wheel) == RULES
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert RECIPES
    assert {name for name in names if "/recipes/" in name} == RECIPES
    assert "binarize/py.typed" in names
    assert {LIBRARY, OPERATORS} <= set(names)
    assert not [name for name in names if "csrc" in name]
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"binarize", "binarize_torch"}, "only the package and its metadata"
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_installed_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--target", str(site), str(wheel), folder=tmp_path)
    python = environment(tmp_path / "venv")
    where, found = ask(python, tmp_path, PYTHONPATH=str(site))
    assert where == (site / "binarize").resolve()
    assert found == RULES
    assert libraries(python, tmp_path, PYTHONPATH=str(site)) == [str(site / LIBRARY)]


RUN = """
import sys, numpy
from binarize.runtime import Session, library
from binarize.errors import FileError
assert library().parent == __import__("pathlib").Path(sys.argv[1]) / "binarize" / "runtime"
try:
    Session("none.onnx")
except FileError as error:
    print(error)
assert not {"torch", "timm", "PIL"} & set(sys.modules)
"""


def test_runtime_alone_needs_no_torch(sources: Path, tmp_path: Path) -> None:
    options = ["--no-build-isolation", "--wheel-dir", str(tmp_path)]
    pip("wheel", *options, str(sources / "runtime"), folder=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    assert built.name.startswith("binarize_runtime-")
    assert "-py3-none-" in built.name
    assert built.stat().st_size < 2**20
    with zipfile.ZipFile(built) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in opened.namelist() if name.endswith("METADATA")]
        needed = [
            line.partition(": ")[2]
            for line in opened.read(metadata).decode().splitlines()
            if line.startswith("Requires-Dist: ")
        ]
    python = {
        f"binarize/runtime/{path.name}" for path in (CHECKOUT / "binarize/runtime").glob("*.py")
    }
    assert names == python | {"binarize/__init__.py", "binarize/errors.py", OPERATORS}
    assert not [line for line in needed if "torch" in line]
    site = tmp_path / "site"
    pip("install", "--target", str(site), str(built), folder=tmp_path)
    env = os.environ | {"PYTHONPATH": str(site)}
    told = run([str(environment(tmp_path / "venv")), "-c", RUN, str(site)], tmp_path, env)
    assert told == "path='none.onnx': no such file; check the path\n"


def test_without_a_compiler_the_wheel_is_pure(sources: Path, tmp_path: Path) -> None:
    env = os.environ | {"CXX": str(tmp_path / "no-such-compiler")}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(sources)]
    run(command, tmp_path, env)
    (built,) = tmp_path.glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    assert rule_files(built) == RULES
    with zipfile.ZipFile(built) as opened:
        assert LIBRARY not in opened.namelist()


def test_wheel_from_sdist_holds_the_same_rules(sources: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    run([*build, str(sources)], tmp_path)  # the sdist, and the wheel from that sdist
    assert len(list(tmp_path.glob("*.tar.gz"))) == 1
    (built,) = tmp_path.glob("*.whl")
    assert rule_files(built) == RULES


def test_editable_install(sources: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    editable = ["--no-build-isolation", "--editable", str(sources)]
    pip("install", *editable, python=python, folder=tmp_path)
    (found_library,) = libraries(python, tmp_path)
    assert found_library.endswith(LIBRARY)
    where, found = ask(python, tmp_path)
    assert where == (sources / "binarize").resolve()
    assert found == RULES

    added = sources / "rules" / "added-later.toml"
    shutil.copy(sources / "rules" / "bidense.toml", added)
    try:
        assert ask(python, tmp_path)[1] == RULES | {"added-later"}
    finally:
        added.unlink()


def test_plain_checkout(sources: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    where, found = ask(python, tmp_path, PYTHONPATH=str(sources))
    assert not libraries(python, tmp_path, PYTHONPATH=str(sources))
    assert where == (sources / "binarize").resolve()
    assert found == RULES
