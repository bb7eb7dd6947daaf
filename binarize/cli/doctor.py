"""``binarize doctor``: report the installation and the machine, and check that everything works."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.extras import EXTRAS
from binarize.processor import processor_cores, processor_features, processor_name

__all__ = ["add", "machine", "run"]

_DESCRIPTION = """\
Report versions, processor, devices and policies, and convert, save and load a small network to
check that everything works. Exit code 1 if something that binarize needs does not work."""

_EXAMPLES = [
    ("binarize doctor", "a summary"),
    ("binarize doctor --json > doctor.json", "to attach to a bug report"),
]

# Import name and distribution of what is always needed, and of what the extras add.
_NEEDED = {"torch": "torch", "safetensors": "safetensors", "numpy": "numpy"}
_OPTIONAL = {name: "pillow" if name == "PIL" else name.replace("_", "-") for name in EXTRAS}
# Instruction sets useful for binary arithmetic, by their Linux names.
_FEATURES = ("popcnt", "avx2", "fma", "avx512f", "avx512bw", "avx512_vpopcntdq", "avx512_bf16",
             "amx_bf16", "neon", "asimd", "sve")  # fmt: skip


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    add_command(
        commands,
        "doctor",
        run,
        help="report versions, devices and policies, and check that everything works",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Collect facts, run checks, report."""
    facts: dict[str, Any] = {"system": machine(), "packages": {}, "checks": {}}
    with out.step("importing the packages"):
        for module, distribution in {**_NEEDED, **_OPTIONAL}.items():
            facts["packages"][distribution] = _package(module, distribution)
    broken = [name for name, found in facts["packages"].items() if "error" in found]
    if "torch" not in broken:
        facts["torch"] = _torch()
    facts["policies"] = {}
    for name, check in (
        ("policies", _policies),
        ("kernels", _kernels_agree),
        ("round trip", _round_trip),
    ):
        with out.step(f"checking: {name}"):
            try:
                facts["checks"][name] = check(facts)
            except Exception as error:
                facts["checks"][name] = f"failed: {type(error).__name__}: {error}"
    well = not broken and not any(str(c).startswith("failed") for c in facts["checks"].values())
    facts["ok"] = well
    _show(facts, out)
    out.emit(facts)
    return None if well else 1


def machine() -> dict[str, Any]:
    """Return versions, processor and platform."""
    found = processor_features()
    return {
        "binarize": _version("binarize-torch"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu": processor_name(),
        "cores": processor_cores(),
        "features": [name for name in _FEATURES if name in found],
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed (run from a checkout)"


def _package(module: str, distribution: str) -> dict[str, str]:
    if module in _OPTIONAL and find_spec(module) is None:
        return {"missing": f"not installed (extra '{EXTRAS[module]}')"}
    try:
        import_module(module)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"version": _version(distribution)}


def _torch() -> dict[str, Any]:
    import torch

    devices = ["cpu"]
    devices += [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "cuda": torch.version.cuda,
        "devices": devices,
        "kernels": _kernels(),
    }


def _kernels() -> dict[str, Any]:
    from dataclasses import asdict

    from binarize.errors import BinarizeError
    from binarize.kernels.native import status

    try:
        return asdict(status())
    except BinarizeError as error:
        return {"problem": str(error)}


def _policies(facts: dict[str, Any]) -> str:
    from binarize.policy import policies, policy_files

    facts["policies"] = policy_files()
    found = policies()
    if "bidense" not in found:
        return "failed: the bundled policies are missing; reinstall the package"
    return f"{len(found)} good"


def _kernels_agree(facts: dict[str, Any]) -> str:
    """Run a small binary convolution with the active kernels and with plain torch."""
    import torch

    from binarize.kernels import native, pack_weight

    active = native.status().active
    arguments: list[Any] = [[torch.randn(1, 70, 5, 6)], [1], []]
    arguments += [pack_weight(torch.randn(9, 70, 3, 3), stride=(1, 1), dilation=(1, 1))]
    arguments += [torch.ones(9), torch.zeros(9), None, torch.zeros(70), None, None]
    arguments += [(3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros", False, (0, 0)]
    arguments += ["none", (0, 0), [], None, None, None, False]
    results = [native.select(name)(*arguments)[0] for name in (active, "reference")]
    return f"{active} and plain torch agree" if torch.equal(*results) else "failed: results differ"


def _round_trip(facts: dict[str, Any]) -> str:
    """Convert a small network, save it, load it, compare."""
    import torch
    from torch import nn

    from binarize.file import load, save
    from binarize.graph import convert

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    network = nn.Sequential(*block(3, 8), *block(8, 8), nn.Conv2d(8, 2, 1)).eval()
    image = torch.randn(1, 3, 16, 16)
    student = convert(network, example_inputs=image).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save(student, path)
        again = load(path, model=network)
    with torch.no_grad():
        same = torch.equal(student(image), again(image))
    return "convert, save and load agree" if same else "failed: outputs differ after loading"


def _kernel_rows(kernels: dict[str, Any]) -> list[tuple[str, str]]:
    if "active" not in kernels:
        return [("binary kernels", f"failed: {kernels['problem']}")]
    if kernels["library"] is None:
        return [("binary kernels", f"{kernels['active']} (plain torch): {kernels['problem']}")]
    return [
        ("binary kernels", f"{kernels['active']}  {kernels['library']}"),
        ("", f"compiled: {' '.join(kernels['compiled'])}; usable: {' '.join(kernels['usable'])}"),
        ("", f"threads from {kernels['openmp']}"),
    ]


def _show(facts: dict[str, Any], out: Output) -> None:
    from rich.table import Table

    system, torch = facts["system"], facts.get("torch", {})
    rows = [
        ("binarize", system["binarize"]),
        ("python", f"{system['python']}  {system['executable']}"),
        ("platform", system["platform"]),
        ("processor", f"{system['cpu']}, {system['cores']} cores"),
        ("", " ".join(system["features"]) or "no features known"),
    ]
    if torch:
        rows += [
            ("devices", ", ".join(torch["devices"])),
            ("threads", f"{torch['threads']}  ({torch['capability']} kernels of torch)"),
            *_kernel_rows(torch["kernels"]),
        ]
    for name, found in facts["packages"].items():
        shown = found.get("version") or found.get("missing")
        rows.append((name, shown or f"MISSING  {found['error']}"))
    for name, path in facts["policies"].items():
        rows.append((f"policy {name}", str(path)))
    rows += [(f"check {name}", result) for name, result in facts["checks"].items()]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        bad = value.startswith(("MISSING", "failed"))
        table.add_row(name, value, style="red" if bad else None)
    out.print(table)
    out.print("everything works" if facts["ok"] else "something is missing, see above")
