"""Examine networks in worker processes, so that a crash or hang does not stop the survey."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from binarize.survey.case import Case
from binarize.survey.row import FAILED, Row
from binarize.survey.wild import build_wild

if TYPE_CHECKING:
    from binarize.survey.examine import Build

__all__ = ["survey"]

# A worker is replaced after this many networks, because the libraries' caches add up.
_PER_WORKER = 60
_PRELOAD = ["binarize.survey.examine", "timm", "segmentation_models_pytorch", "torchvision"]


def survey(
    cases: Sequence[Case],
    jobs: int = 1,
    timeout: float = 300.0,
    *,
    light: bool = False,
    build: Build = build_wild,
) -> Iterator[Row]:
    """Examine networks in worker processes.

    Args:
        cases: The networks.
        jobs: Number of workers.
        timeout: Seconds after which a network counts as failed.
        light: Only convert and compare output shapes, except for the samples.
        build: Builds a network in a worker; a function that workers can import.

    Yields:
        A row for every case, in order of completion.
    """
    context = _context()
    queue = deque(cases)
    workers: list[_Worker] = []
    try:
        while queue or workers:
            while queue and len(workers) < jobs:
                workers.append(_Worker(context, timeout, light, build))
                workers[-1].give(queue.popleft())
            nearest = min(worker.deadline for worker in workers)
            ready = wait([w.link for w in workers], max(nearest - time.monotonic(), 0.0))
            for worker in list(workers):
                if worker.link in ready or time.monotonic() > worker.deadline:
                    yield worker.take()
                    if worker.alive and queue:
                        worker.give(queue.popleft())
                    else:
                        workers.remove(worker)
                        worker.stop()
    finally:
        for worker in workers:
            worker.stop()


def _context() -> Any:
    """Return a context whose processes start with the libraries imported, where supported."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


class _Worker:
    """A process that examines one network after another."""

    def __init__(self, context: Any, timeout: float, light: bool, build: Build) -> None:
        self.link, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build), daemon=True)
        self._process.start()
        theirs.close()
        self._timeout = timeout
        self._light = light
        self._left = _PER_WORKER
        self._case: Case | None = None
        self.deadline = 0.0

    @property
    def alive(self) -> bool:
        """Return whether it can take another network."""
        return self._left > 0 and self._process.is_alive()

    def give(self, case: Case) -> None:
        self._case = case
        self._left -= 1
        self.deadline = time.monotonic() + self._timeout
        self.link.send((case, self._light and not case.sample))

    def take(self) -> Row:
        """Return the row of the given case, also if the worker hangs or has died."""
        assert self._case is not None
        case = self._case
        try:
            if self.link.poll():
                return Row.from_dict(self.link.recv())
            cause = f"it took more than {self._timeout:g} s"
        except (EOFError, OSError):
            self._process.join(5.0)
            cause = f"its process died (exit code {self._process.exitcode})"
        self._left = 0
        row = Row(case.key, case.library, case.family, case.name, case.variant)
        row.status, row.cause, row.seconds = FAILED, cause, self._timeout
        return row

    def stop(self) -> None:
        self._process.kill()
        self._process.join(5.0)
        self.link.close()


def _serve(link: Connection, build: Build) -> None:
    import torch

    from binarize.survey.examine import examine

    torch.set_num_threads(1)
    # Imports stay; networks contain reference cycles and are collected one by one.
    gc.freeze()
    gc.disable()
    # Until the parent process is gone.
    with suppress(EOFError, BrokenPipeError):
        while True:
            case, light = link.recv()
            link.send(examine(case, light=light, build=build).to_dict())
            gc.collect()
