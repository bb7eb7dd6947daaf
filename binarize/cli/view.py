"""``binarize view``: a network, a result or a running training as a page in the browser."""

from __future__ import annotations

import argparse
import json
import threading
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from binarize.cli.networks import add_network_of_file, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import BinarizeError, FileError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Show a page in the browser: of the folder of a training, which it follows while it runs (loss,
metrics, learning rate, images per second, sign changes, predictions); of a saved network, as
binarize report --html writes it; or of the results of binarize frontier, sensitivity and inspect.
Only browsers on this machine can open it. Ctrl-C stops it."""

_EXAMPLES = [
    ("binarize view runs/binary", "a training, also while it runs"),
    ("binarize view runs/binary/binary.safetensors --open", "a network, right in the browser"),
    ("binarize view frontier/frontier.json --port 8000", "a frontier, at a fixed address"),
]

_RESULTS = ("frontier.json", "sensitivity.json", "inspection.json")
_NEEDED = "give a folder of binarize train, a saved network, or a result as JSON"


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "view",
        run,
        help="show a training, a network or a result in the browser",
        usage="PATH",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="folder of a run, saved network (FILE#TASK for a task in it), or result (JSON)",
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="port (default 0: any free one)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_network_of_file(parser)
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Serve until interrupted."""
    from binarize.page.server import open_server

    site = _open(args, out)
    server = open_server(args.port, site)
    try:
        out.print(f"{args.path}: {server.address} (Ctrl-C stops)", wrap=False)
        out.emit({"path": args.path, "address": server.address, "port": server.server_port})
        if args.open and not webbrowser.open(server.address):
            out.note("note: there is no browser to open it in")
        server.serve_forever()
    finally:
        server.server_close()
    return None


def _open(args: argparse.Namespace, out: Output) -> Any:
    """Return the site of a path."""
    from binarize.cli.sources import split_task
    from binarize.cli.view_run import RunView, has_run

    path, task = split_task(args.path)
    if not path.exists():
        raise FileError("path", str(args.path), "no such file or folder", _NEEDED)
    if path.is_dir():
        if has_run(path):
            return RunView(path)
        found = next((path / name for name in _RESULTS if (path / name).is_file()), None)
        if found is None:
            raise FileError("path", str(args.path), "has nothing to show", _remedy(path))
        path = found
    if path.name in ("history.json", "metrics.json") and has_run(path.parent):
        return RunView(path.parent)
    if path.suffix == ".json":
        return PageView(path, _reader(path))
    return PageView(path, lambda: _network(args, path, task, out))


def _remedy(folder: Path) -> str:
    from binarize.cli.view_run import has_run

    with suppress(OSError):
        runs = sorted(inner for inner in folder.iterdir() if inner.is_dir() and has_run(inner))
        if runs:
            return f"give one of the runs inside, such as {runs[0]}"
    return f"{_NEEDED}; a training shows up some seconds after its first step"


class PageView:
    """The page of a file, made again when the file changes.

    Args:
        path: The file.
        make: Returns what is shown; while it fails, such as for a file that is being written,
            the page stays as it was.

    Raises:
        BinarizeError: The file cannot be shown.
    """

    def __init__(self, path: Path, make: Callable[[], str]) -> None:
        self.path = path
        self.make = make
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._page = make()

    def __call__(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer a browser, see :data:`binarize.page.server.Site`."""
        from binarize.page.server import Answer

        if path != "":
            return None
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                with suppress(BinarizeError):
                    self._page = self.make()
                    self._stamp = stamp
            return Answer(self._page.encode())

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size


def _reader(path: Path) -> Callable[[], str]:
    """Return what makes the page of a result, by what its file holds."""
    from binarize.inspection import Inspection
    from binarize.report import Frontier, Sensitivity

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError("path", str(path), f"cannot be read ({error})", _NEEDED) from error
    keys = set(data) if isinstance(data, dict) else set()
    kinds: dict[str, Any] = {"points": Frontier, "sites": Sensitivity, "batches": Inspection}
    kind = next((kind for key, kind in kinds.items() if key in keys), None)
    if kind is None:
        rule = "is not a result of binarize frontier, sensitivity or inspect"
        raise FileError("path", str(path), rule, _NEEDED)
    return lambda: kind.load(path)._page()


def _network(args: argparse.Namespace, path: Path, task: str | None, out: Output) -> str:
    from binarize.cli.report import count
    from binarize.cli.report_page import result_sections
    from binarize.cli.sources import open_source
    from binarize.report.page import report_page

    fallback = None if args.network is None else recipe_from(args, args.network)
    reference = str(path) if task is None else f"{path}#{task}"
    with out.step(f"opening {reference}"):
        source = open_source(reference, fallback, argument="path")
    with out.step("counting"):
        made = count(source, reference)
    return report_page(made, result_sections(path))
