"""Track which tensors of a run share memory, and which operation last wrote to it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

from binarize.graph.shapes_only import ShapesOnly, memory_of

__all__ = ["Memory"]


class Memory:
    """The memory of a run's tensors.

    A tensor depends on all writes to its memory, including those through a view
    (``v[:, :8].copy_(f)``).

    Args:
        fake: The mode of the run, if it has one.
    """

    def __init__(self, fake: ShapesOnly | None) -> None:
        self._of = memory_of if fake is None else fake.memory
        self._wholes: dict[int, weakref.ref[Tensor]] = {}
        self._writers: dict[int, int] = {}

    def see(self, operands: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Register an operation's results, some of which may be views of its operands."""
        known = {self._of(x) for x in operands}
        for x in operands:
            self._wholes.setdefault(self._of(x), weakref.ref(x))
        for x in results:
            key = self._of(x)
            if key not in known:
                # It is new memory, even at a reused address.
                self._wholes[key] = weakref.ref(x)
                self._writers.pop(key, None)

    def whole(self, value: Tensor) -> Tensor:
        """Return the tensor that a view shows a part of, or the view itself if that is gone."""
        ref = self._wholes.get(self._of(value))
        found = None if ref is None else ref()
        return value if found is None else found

    def writer(self, value: Tensor) -> int | None:
        """Return the operation that last wrote to a tensor's memory, if any."""
        return self._writers.get(self._of(value))

    def write(self, value: Tensor, index: int) -> None:
        """Record that an operation wrote to a tensor's memory."""
        self._writers[self._of(value)] = index
