#!/usr/bin/env python3
"""Mutation testing: plants single faults in a copy of the package and runs the tests of its folder.

    pip install cosmic-ray coverage
    python tools/mutation.py --seed 1 --count 300 mutants

cosmic-ray makes the mutants and keeps the session (`mutants/session.sqlite`, which `cr-report`
reads, too). Everything happens in `mutants/`: a copy of the checkout, an environment that imports
this copy, and a record of which test reaches which line. The same command resumes a run that was
stopped; `--again` copies the tests anew and repeats what survived.

A mutant is killed when a test of its folder fails, or takes several times as long as it did. Of
the tests that reach the changed line (then: other lines of its file), the quickest run first, up to
`--seconds` by their recorded durations. The sample is of places in the source, each with one of its
possible changes, in proportion to the places of each folder. Not changed is what has no behaviour
to test: annotations, flags of dataclasses, and `zip(..., strict=True)`, which is an assertion.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

# Folders of the package, and those of tests that belong to them.
FOLDERS = {
    "graph": ("graph", "report", "file", "page", "policy"),
    "lower": ("lower", "runtime", "file"),
    "file": ("file",),
    "train": ("train",),
    "report": ("report", "page"),
    "policy": ("policy", "budget"),
    "budget": ("budget",),
}
# Tests that run the package in processes of their own, where nobody records what they reach.
APART = ("tests/train/test_processes.py",)
CHECKOUT = Path(__file__).resolve().parent.parent
_MORE = "no test of the first turn sees it"
# So many mutants go through both turns before the next ones.
_PORTION = 40
_COPY, _SESSION, _REACHED = "copy", "session.sqlite", "reached.json"
# Imported once and inherited by every run of tests: the package itself must not be among them.
_PRELOADED = (
    "pytest numpy torch torch._dynamo torchvision torchmetrics timm segmentation_models_pytorch "
    "accelerate safetensors.torch hypothesis matplotlib.pyplot onnx onnxruntime"
).split()


def main() -> int:
    """Prepare the copy, or inside of it run the mutants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder of the copy and the session")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample (default 1)")
    parser.add_argument("--count", type=int, default=300, help="mutants to try (default 300)")
    parser.add_argument("--folders", nargs="+", choices=FOLDERS, default=[*FOLDERS])
    parser.add_argument(
        "--seconds", type=float, default=20, help="most seconds of tests per mutant (default 20)"
    )
    parser.add_argument("--again", action="store_true", help="repeat what survived, with new tests")
    parser.add_argument("--results", action="store_true", help="only show the results so far")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = args.work.resolve()
    if not args.inside:
        go_on_inside(work, fresh=args.again)
    os.chdir(work / _COPY)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in _PRELOADED:
        importlib.import_module(name)
    assert "binarize" not in sys.modules
    return run(work, args)


# ------------------------------------------------------------------------- the copy


def go_on_inside(work: Path, fresh: bool) -> None:
    """Copy the checkout, and go on with an interpreter that imports the copy."""
    copy, room = work / _COPY, work / "environment"
    if not copy.exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=CHECKOUT, capture_output=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (CHECKOUT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, copy / name)
        find = "import binarize, json; print(json.dumps(list(binarize.__path__)))"
        found = subprocess.run([sys.executable, "-c", find], capture_output=True, check=True)
        for folder in json.loads(found.stdout):
            for library in Path(folder).glob("*/*.so"):
                shutil.copy2(library, copy / "binarize" / library.parent.name)
        shutil.copytree(copy / "binarize", work / "whole")
    # A run that was killed may have left a mutant.
    shutil.copytree(work / "whole", copy / "binarize", dirs_exist_ok=True)
    if fresh:
        shutil.rmtree(copy / "tests")
        shutil.copytree(CHECKOUT / "tests", copy / "tests")
    if not room.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", room], check=True)
        (site,) = room.glob("lib/python*/site-packages")
        # Paths only: the hooks of an editable installation would bring in the checkout.
        paths = [str(copy), *(path for path in sys.path if path.endswith("site-packages"))]
        site.joinpath("copy.pth").write_text("\n".join(paths) + "\n")
    python = str(room / "bin" / "python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [python, __file__, *sys.argv[1:], "--inside"], environment)


# ------------------------------------------------------------------------- tests in a child


class Watch:
    """Records which test reaches which line of the package, through fixtures too, and its time."""

    def __init__(self, out: Path) -> None:
        import coverage

        self.out = out
        self.cover = coverage.Coverage(data_file=None, source=["binarize"], config_file=False)
        self.tests: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[str, float] = {}
        self.running = ""

    def pytest_sessionstart(self) -> None:
        self.cover.start()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            indices = item.callspec.indices if hasattr(item, "callspec") else {}
            shared = [
                _fixture(definition, indices.get(name, 0))
                for name in getattr(item, "fixturenames", ())
                for definition in item._fixtureinfo.name2fixturedefs.get(name, ())
                if definition.scope != "function"
            ]
            self.tests[item.nodeid] = {"shared": shared, "seconds": 0.0, "passed": True}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running = nodeid
        self.cover.switch_context(nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self.cover.switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        key = _fixture(fixturedef, request.param_index)
        self.cover.switch_context(key)
        start = time.monotonic()
        try:
            return (yield)
        finally:
            # Whichever test comes first pays for it.
            self.fixtures[key] = time.monotonic() - start
            self.tests[self.running]["seconds"] -= self.fixtures[key]

    def pytest_runtest_call(self, item: Any) -> None:
        self.cover.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        test = self.tests[report.nodeid]
        test["seconds"] += report.duration
        test["passed"] &= report.passed

    def pytest_sessionfinish(self) -> None:
        self.cover.stop()
        data = self.cover.get_data()
        number = {nodeid: place for place, nodeid in enumerate(self.tests)}
        users = defaultdict(list)
        for nodeid, test in self.tests.items():
            for fixture in test["shared"]:
                users[fixture].append(nodeid)
                test["seconds"] += self.fixtures.get(fixture, 0.0)
        lines: dict[str, dict[int, list[str]]] = {}
        for file in data.measured_files():
            found = lines[str(Path(file).relative_to(Path.cwd()))] = {}
            for line, contexts in data.contexts_by_lineno(file).items():
                tests = {t for context in contexts for t in users.get(context, [context]) if t}
                found[line] = sorted(number[test] for test in tests & number.keys())
        self.out.write_text(json.dumps({"tests": self.tests, "lines": lines}))


def _fixture(definition: Any, place: int) -> str:
    return f"fixture {definition.baseid}:{definition.argname}[{place}]"


class Select:
    """Runs these tests alone, in this order."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.rank = {nodeid: place for place, nodeid in enumerate(wanted)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.rank), key=lambda i: self.rank[i.nodeid]
        )


def run_tests(arguments: Sequence[str], plugin: Any, limit: float, log: Path) -> int | None:
    """Exit code of pytest in a child of its own; None where it took too long."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            options = ["-n0", "-q", "-p", "no:cacheprovider", "--timeout=0"]
            # Plugins that came in with a preloaded package.
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]
            code = int(pytest.main(options, plugins=[plugin]))
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    used, last = 0.0, time.monotonic()
    try:
        while used < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
            now = time.monotonic()
            used += min(now - last, 1.0)  # both may have been stopped for a while
            last = now
    finally:
        if child:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return None


def reached(work: Path, folder: str) -> dict[str, Any]:
    """Which test that belongs to the folder reaches which line."""
    known: dict[str, Any] = {"tests": {}, "lines": defaultdict(lambda: defaultdict(list))}
    for tests in FOLDERS[folder]:
        part, first = _recorded(work, tests), len(known["tests"])
        known["tests"] |= part["tests"]
        for file, lines in part["lines"].items():
            for line, found in lines.items():
                known["lines"][file][line] += [first + test for test in found]
    return known


def _recorded(work: Path, folder: str) -> dict[str, Any]:
    """Which test of a folder of tests reaches which line: recorded once for these tests."""
    out = work / f"{folder}.{_REACHED}"
    digest = _digest(folder)
    if out.exists():
        known = json.loads(out.read_text())
        if known["digest"] == digest:
            return known
    start = time.monotonic()
    code = run_tests([f"tests/{folder}"], Watch(out), 3600, work / f"{folder}.log")
    print(f"tests/{folder}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
    known = {**json.loads(out.read_text()), "digest": digest}
    out.write_text(json.dumps(known))
    return known


def _digest(folder: str) -> str:
    """Tells other tests by their text."""
    files = sorted(Path("tests", folder).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# ------------------------------------------------------------------------- the mutants


def places(path: Path) -> Iterator[list[Any]]:
    """For each place of a module the mutations that are possible there."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.commands.init import _operators
    from cosmic_ray.work_item import MutationSpec

    silent = _silent(ast.parse(path.read_text(encoding="utf-8")))
    tree = get_ast_from_path(path)
    nodes = list(ast_nodes(tree))
    found: dict[tuple[int, int], list[MutationSpec]] = defaultdict(list)
    for name, options, operator in _operators({}):
        positions = [p for node in nodes for p in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(positions):
            if not any(low <= start < high for low, high in silent):
                spec = MutationSpec(path, name, occurrence, start, end, options)
                found[start].append(spec)
    yield from (found[start] for start in sorted(found))


def _silent(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of what has no behaviour to test."""
    nodes: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            nodes.append(node.returns)
        elif isinstance(node, ast.ClassDef):
            calls = [d for d in node.decorator_list if isinstance(d, ast.Call)]
            nodes += [keyword.value for call in calls for keyword in call.keywords]
        elif isinstance(node, ast.Call):
            if getattr(node.func, "id", getattr(node.func, "attr", "")) == "cast":
                nodes.append(node.args[0])
            if getattr(node.func, "id", "") == "zip":
                nodes += [keyword.value for keyword in node.keywords]
    return [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in nodes]


def sample(args: argparse.Namespace) -> list[Any]:
    """A seeded sample of mutants, in random order."""
    rng = random.Random(args.seed)
    everywhere = {
        folder: [place for path in sorted(Path("binarize", folder).rglob("*.py"))
                 for place in places(path)]
        for folder in args.folders
    }  # fmt: skip
    total = sum(map(len, everywhere.values()))
    chosen = []
    for folder, found in everywhere.items():
        rng.shuffle(found)
        wanted, taken = round(args.count * len(found) / total), 0
        for place in found:
            spec = rng.choice(place)
            if taken < wanted and _compiles(spec):
                chosen.append(spec)
                taken += 1
        print(f"binarize/{folder}: {taken} of {len(found)} places")
    rng.shuffle(chosen)
    return chosen


def _mutated(spec: Any) -> str | None:
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    operator = cosmic_ray.plugins.get_operator(spec.operator_name)(**spec.operator_args)
    return mutate_code(spec.module_path.read_text(encoding="utf-8"), operator, spec.occurrence)


def _compiles(spec: Any) -> bool:
    source = _mutated(spec)
    try:
        # The same tree means the same program.
        before = ast.dump(ast.parse(spec.module_path.read_text(encoding="utf-8")))
        return source is not None and ast.dump(ast.parse(source)) != before
    except SyntaxError:
        return False


def tests_for(spec: Any, known: dict[str, Any], seconds: float) -> tuple[list[str], list[str]]:
    """Tests of both turns, quickest first: some that reach the line; more, and some of the file."""
    lines = known["lines"].get(str(spec.module_path), {})
    span = {str(line) for line in range(spec.start_pos[0], spec.end_pos[0] + 1)}
    names = list(known["tests"])
    near = {names[test] for line in span for test in lines.get(line, ())}
    far = {names[test] for tests in lines.values() for test in tests} - near

    def within(group: set[str], most: float) -> list[str]:
        chosen, used, places = [], 0.0, Counter[str]()
        ranked = []
        for test in sorted(group, key=lambda name: known["tests"][name]["seconds"]):
            file = test.partition("::")[0]
            ranked.append((places[file], test))
            places[file] += 1
        # The quickest of every file, then the second of every file, and so on: a fault is often
        # seen by the tests of one file alone.
        for _, test in sorted(ranked, key=lambda pair: pair[0]):
            record = known["tests"][test]
            if record["passed"] and (not chosen or used + record["seconds"] <= most):
                chosen.append(test)
                used += record["seconds"]
        return chosen

    # Of every test function at first one variant: others often see the same.
    first: dict[str, str] = {}
    for test in within(near, math.inf):
        first.setdefault(test.partition("[")[0], test)
    quick = within(set(first.values()), seconds / 2)
    rest = [test for test in within(near, seconds) if test not in quick]
    if not near:
        rest = [test for test in names if test.startswith(APART)]
    return quick, rest + within(far, seconds / 3)


def run(work: Path, args: argparse.Namespace) -> int:
    """Try all mutants that have no result yet, and show the results."""
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import WorkItem

    with use_db(work / _SESSION) as session:
        if not session.num_work_items:
            chosen = sample(args)
            session.add_work_items(
                WorkItem.single(f"{number:04}", spec) for number, spec in enumerate(chosen)
            )
        if not args.results:
            known = functools.cache(lambda folder: reached(work, folder))
            # In random order, but first those whose tests are known already.
            items = sorted(session.work_items, key=lambda item: (_unknown(work, item), item.job_id))
            results = dict(session.results)
            for start, turn in itertools.product(range(0, len(items), _PORTION), range(2)):
                for item in items[start : start + _PORTION]:
                    result = results.get(item.job_id)
                    if args.again and turn == 0 and result is not None and not result.is_killed:
                        result = None
                    if result is None or (turn == 1 and result.output == _MORE):
                        spec = item.mutations[0]
                        tests = known(spec.module_path.parts[1])
                        tried = attempt(work, spec, tests, args.seconds, turn)
                        results[item.job_id] = tried
                        session.set_result(item.job_id, tried)
        show(work, session)
    return 0


def _unknown(work: Path, item: Any) -> bool:
    folders = FOLDERS[item.mutations[0].module_path.parts[1]]
    return not all((work / f"{folder}.{_REACHED}").exists() for folder in folders)


def attempt(work: Path, spec: Any, known: dict[str, Any], seconds: float, turn: int) -> Any:
    """Run the tests of a turn on one mutant."""
    import difflib

    from cosmic_ray.util import restore_contents
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    start = time.monotonic()
    source = spec.module_path.read_text(encoding="utf-8")
    mutant = _mutated(spec)
    assert mutant is not None
    diff = "\n".join(difflib.unified_diff(source.split("\n"), mutant.split("\n"), lineterm="", n=1))
    tests = tests_for(spec, known, seconds)[turn]
    code: int | None = 0
    if tests:
        files = sorted({test.partition("::")[0] for test in tests})
        usual = sum(known["tests"][test]["seconds"] for test in tests)
        with restore_contents(spec.module_path):
            spec.module_path.write_text(mutant, encoding="utf-8")
            code = run_tests(["-x", *files], Select(tests), 60 + 3 * usual, work / "last.log")
    killed = code != 0
    line, name = spec.start_pos[0], spec.operator_name.partition("/")[2]
    said = "killed" if killed else "SURVIVED"
    took = time.monotonic() - start
    print(f"{said} {spec.module_path}:{line} {name}: {len(tests)} tests, {took:.1f} s", flush=True)
    return WorkResult(
        worker_outcome=WorkerOutcome.NORMAL if tests else WorkerOutcome.NO_TEST,
        output="time limit" if code is None else _MORE if not code + turn else f"exit code {code}",
        test_outcome=TestOutcome.KILLED if killed else TestOutcome.SURVIVED,
        diff=diff,
    )


def show(work: Path, session: Any) -> None:
    """Print counts per folder, and write the survivors."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    left = []
    for item, result in sorted(session.completed_work_items, key=lambda pair: pair[0].job_id):
        spec = item.mutations[0]
        for folder in (spec.module_path.parts[1], "all"):
            counts[folder]["mutants"] += 1
            counts[folder]["killed"] += result.is_killed
        if not result.is_killed:
            place = f"{spec.module_path}:{spec.start_pos[0]}"
            reason = " (no test reaches the file)" if result.worker_outcome == "no-test" else ""
            left.append(f"## {item.job_id} {place} {spec.operator_name}{reason}\n{result.diff}\n")
    for folder, found in sorted(counts.items(), key=lambda pair: pair[0] == "all"):
        low, high = interval(found["killed"], found["mutants"])
        share = found["killed"] / found["mutants"]
        print(f"{folder:8} {found['killed']:4} of {found['mutants']:4} killed: {share:6.1%} "
              f"(95 % interval {low:.1%} to {high:.1%})")  # fmt: skip
    (work / "survivors.txt").write_text("\n".join(left), encoding="utf-8")
    print(f"{len(left)} survivors: {work / 'survivors.txt'}")


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


if __name__ == "__main__":
    sys.exit(main())
