"""What Windows and macOS lack or do differently, imitated on the system at hand."""

from __future__ import annotations

import ast
import ctypes
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import binarize
from binarize import processor, writing
from binarize.bench import memory
from binarize.cli.output import Output
from binarize.file import container
from binarize.kernels import openmp
from binarize.latency import measure

# What Windows does not have: modules, and names in `os`, `signal` and `mmap`.
MODULES = "resource fcntl pwd grp termios tty pty syslog".split()
NAMES = {
    "os": "chown fchmod fork forkpty getegid geteuid getgid getloadavg getpgid getuid killpg "
    "mkfifo register_at_fork sched_getaffinity setsid sysconf uname wait3 wait4 O_DIRECTORY "
    "O_NOFOLLOW O_CLOEXEC".split(),
    "signal": "SIGALRM SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 alarm pause setitimer".split(),
    "mmap": "MAP_ANONYMOUS MAP_PRIVATE MADV_FREE PROT_READ".split(),
}

# Where they are used all the same, and what is done without.
USED = {
    ("bench/memory.py", "resource"): "for macOS alone",
    ("kernels/memory.py", "MADV_FREE"): "where mmap has it",
    ("kernels/memory.py", "MAP_ANONYMOUS"): "where mmap has it",
    ("kernels/memory.py", "MAP_PRIVATE"): "where mmap has it",
    ("kernels/openmp.py", "register_at_fork"): "where os has it",
    ("processor.py", "sched_getaffinity"): "where os has it",
    ("processor.py", "sysconf"): "where os has it",
}

# A Python without them, and without files in /proc. torch comes first: it relies on them where
# sys.platform is "linux".
BARE = f"""
import importlib, os, sys
import torch

sys.modules.update(dict.fromkeys({MODULES}))
for module, names in {NAMES}.items():
    for name in names:
        vars(importlib.import_module(module)).pop(name, None)

def refuse(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.addaudithook(refuse)
"""

EVERYTHING = """
from torch import nn
import binarize
from binarize.extras import EXTRAS

# Not what this is about, and slow.
sys.modules.update(dict.fromkeys(set(EXTRAS) - {"rich"}))
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
image = torch.randn(1, 3, 12, 12)
assert "3" in str(binarize.plan(network, example_inputs=image))
student = binarize.convert(network, example_inputs=image).eval()
binarize.save(student, "net.safetensors")
again = binarize.load("net.safetensors", model=network)
packed = binarize.pack(again)
with torch.no_grad():
    assert torch.equal(again(image), student(image))
    assert torch.allclose(packed(image), student(image), atol=1e-4)

from binarize.bench.memory import peak_of_this_process
from binarize.cli import main

if sys.platform == "linux":
    assert peak_of_this_process() is None
sys.exit(main(["doctor", "--json", "--quiet"]))
"""


def test_nothing_else_relies_on_what_windows_lacks() -> None:
    package = Path(binarize.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            words: list[str] = []
            if isinstance(node, ast.Import):
                words = [alias.name for alias in node.names if alias.name in MODULES]
            elif isinstance(node, ast.ImportFrom):
                words = [node.module or ""] if node.module in MODULES else []
                words += [a.name for a in node.names if a.name in NAMES.get(node.module or "", [])]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                words = [node.attr] if node.attr in NAMES.get(node.value.id, []) else []
            found |= {(name, word) for word in words}
    assert found == set(USED)


def test_everything_works_without_what_windows_lacks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE + EVERYTHING],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["ok"]
    assert facts["system"]["cpu"]
    assert facts["system"]["cores"] >= 1
    assert facts["system"]["features"] == []
    if facts["torch"]["kernels"]["library"] is not None:
        assert facts["torch"]["kernels"]["openmp"].startswith("torch has loaded no OpenMP runtime")


class Instead:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def load_library(libraries: dict[Any, Any], name: Any) -> Any:
    return libraries[name] if name in libraries else ctypes.CDLL(name)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let modules believe that they run on another system, with other libraries."""

    def pretend(platform: str, *modules: Any, libraries: dict[Any, Any] | None = None) -> None:
        for module in modules:
            monkeypatch.setattr(module, "sys", Instead(sys, platform=platform))
            if libraries is not None:
                load = partial(load_library, libraries)
                monkeypatch.setattr(module, "ctypes", Instead(ctypes, CDLL=load))

    return pretend


class Function:
    """A function of a C library, which takes its types as attributes."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def find_runner(library: Any) -> tuple[int, str]:
    return openmp.runner.__wrapped__(library)


@pytest.mark.skipif(sys.platform != "linux", reason="imitates other systems by Linux's libraries")
def test_macos_lists_its_libraries(on: Any) -> None:
    address, path = find_runner(None)
    names = [b"/usr/lib/libSystem.dylib", None, os.fsencode(path)]
    system = SimpleNamespace(
        _dyld_image_count=Function(lambda: len(names)),
        _dyld_get_image_name=Function(lambda i: names[i]),
    )
    on("darwin", openmp, libraries={None: system})
    assert address
    assert find_runner(None) == (address, path)
    del names[2]
    assert find_runner(None) == (0, "torch has loaded no OpenMP runtime with GOMP_parallel")


def test_windows_runs_on_its_openmp_runtime(on: Any) -> None:
    asked: list[str] = []
    handles = {"libiomp5md.dll": 0x180000000}
    kernel = SimpleNamespace(
        GetModuleHandleW=Function(lambda name: asked.append(name) or handles.get(name))
    )
    on("win32", openmp, libraries={"kernel32": kernel})
    callback = ctypes.CFUNCTYPE(None)(lambda: None)
    library = SimpleNamespace(binarize_parallel=callback)
    wanted = ctypes.cast(callback, ctypes.c_void_p).value
    assert find_runner(library) == (wanted, "libiomp5md.dll")
    assert asked == ["libiomp5md.dll"]
    assert find_runner(None)[0] == 0
    handles.clear()
    assert find_runner(library) == (0, "torch has not loaded libiomp5md.dll")


def test_processor_of_a_mac(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on("darwin", processor)
    commands: list[Any] = []

    def answer(command: Any, **options: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(stdout="Apple M2\n")

    monkeypatch.setattr(processor, "subprocess", Instead(subprocess, run=answer))
    assert processor.processor_name() == "Apple M2"
    assert commands == [["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]]


def test_processor_of_a_windows_machine(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on("win32", processor)
    monkeypatch.setattr(processor.platform, "processor", lambda: "AMD64 Family 25")
    assert processor.processor_name() == "AMD64 Family 25"  # without a registry
    where = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"

    class Key:
        def __enter__(self) -> str:
            return "key"

        def __exit__(self, *error: object) -> None: ...

    registry = SimpleNamespace(
        HKEY_LOCAL_MACHINE=1,
        OpenKey=lambda root, name: {(1, where): Key()}[root, name],
        QueryValueEx=lambda key, name: {("key", "ProcessorNameString"): ("AMD EPYC  ", 1)}[
            key, name
        ],
    )
    monkeypatch.setitem(sys.modules, "winreg", registry)
    assert processor.processor_name() == "AMD EPYC"


def test_processor_of_an_unknown_machine(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(processor, "_listed", lambda name: "")
    monkeypatch.setattr(processor, "subprocess", Instead(subprocess, run=fail))
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    for system in ("linux", "darwin", "win32"):  # the latter without sysctl and registry
        on(system, processor)
        assert processor.processor_name() == processor.platform.machine()


def test_peak_memory_on_windows(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(process: int, counters: Any, size: int) -> int:
        assert (process, size) == (77, 72)  # sizeof(PROCESS_MEMORY_COUNTERS)
        found = ctypes.cast(counters, ctypes.POINTER(ctypes.c_size_t))
        assert ctypes.cast(counters, ctypes.POINTER(ctypes.c_uint32))[0] == 72
        found[1] = 12345  # PeakWorkingSetSize, after two DWORDs
        return known

    kernel = SimpleNamespace(
        GetCurrentProcess=Function(lambda: 77), K32GetProcessMemoryInfo=Function(tell)
    )
    on("win32", memory, libraries={"kernel32": kernel})
    monkeypatch.setattr(memory, "Path", lambda path: Path("nowhere"))
    known = 1
    assert memory.peak_of_this_process() == 12345
    known = 0
    assert memory.peak_of_this_process() is None


def test_windows_waits_for_readers_of_a_file(
    on: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[Path] = []

    def replace(source: Path, target: Path) -> None:
        tries.append(target)
        if len(tries) <= readers:
            raise PermissionError(13, "Access is denied")
        os.replace(source, target)

    monkeypatch.setattr(writing, "os", Instead(os, replace=replace))
    monkeypatch.setattr(writing, "_PAUSE", 0.0)
    file, readers = tmp_path / "a.json", 1
    with pytest.raises(PermissionError):
        writing.write_json(file, 1)
    on("win32", writing)
    tries.clear()
    writing.write_json(file, 2)
    assert (len(tries), json.loads(file.read_text("utf-8"))) == (2, 2)
    readers = 1000
    with pytest.raises(PermissionError):
        writing.write_json(file, 3)
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(file.read_text("utf-8")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_windows_keeps_no_file_mapped(on: Any, tmp_path: Path) -> None:
    """A mapped file cannot be replaced there: the packed network could not be saved again."""
    file = tmp_path / "net.safetensors"
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    binarize.save(binarize.convert(network.eval(), example_inputs=torch.randn(1, 3, 9, 9)), file)
    on("win32", container)
    _, tensors = container.read_file(file)
    assert tensors
    assert str(file) not in Path("/proc/self/maps").read_text("utf-8")


def test_windows_measures_with_the_finer_clock(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Instead(time, thread_time=lambda: 1.0, perf_counter=lambda: 2.0)
    monkeypatch.setattr(measure, "time", clocks)
    monkeypatch.setattr(measure.torch, "get_num_threads", lambda: 1)
    assert measure._clock() == 1.0
    on("win32", measure)
    assert measure._clock() == 2.0


@pytest.mark.parametrize(("encoding", "plain"), [("cp1252", True), ("utf-8", False)])
def test_json_reads_back_from_any_stream(
    monkeypatch: pytest.MonkeyPatch, encoding: str, plain: bool
) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="replace", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    Output(as_json=True).emit({"δ1": "é → ×"})
    assert raw.getvalue().isascii() == plain
    assert json.loads(raw.getvalue().decode()) == {"δ1": "é → ×"}
    monkeypatch.undo()
