"""Find where the stages of a network end, and read the feature maps there.

Shape legend: N samples, C channels, H, W rows and columns; feature maps (N, C, H, W).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.train.batches import dense_output
from binarize.train.norms import training_flags

__all__ = ["Point", "Reader", "Split", "pair_stages", "stage_ends"]


class Point(NamedTuple):
    """A place in a network to read a feature map: a module's input or output.

    Attributes:
        module: The module's name.
        side: "input" or "output".
    """

    module: str
    side: str


Split = Callable[[Any], Sequence[Any]]
"""From a network's output to the outputs of its heads."""


class _Seen(NamedTuple):
    """A feature map seen at a point; ``map`` identifies points that share it."""

    point: Point
    size: tuple[int, int]
    map: Tensor
    node: Any


class _Run:
    """The feature maps of one run of a network, and where they were seen."""

    def __init__(self, network: nn.Module, image: Tensor, split: Split | None = None) -> None:
        # The graph of the run tells which feature maps several heads share.
        self.image = image if split is None else image.detach().requires_grad_()
        self.seen: list[_Seen] = []
        self.calls: Counter[str] = Counter()
        self.entered: dict[str, int] = {}
        self.left: dict[str, tuple[int, int]] = {}
        hooks: list[Any] = []
        for name, module in _outer_modules(network):
            hooks += [
                module.register_forward_pre_hook(self._enter(name)),
                module.register_forward_hook(self._leave(name)),
            ]
        try:
            with training_flags(network), torch.set_grad_enabled(split is not None):
                network.eval()
                self.output = network(self.image)
        finally:
            for hook in hooks:
                hook.remove()
        # A module that is called twice has no unique feature map.
        self.seen = [one for one in self.seen if self.calls[one.point.module] == 1]
        outputs = [self.output] if split is None else split(self.output)
        self.covered = len(outputs) == 1 and _is_dense(self.output)
        if len(outputs) > 1:
            shared = set.intersection(*(_ancestors(output) for output in outputs))
            self.seen = [one for one in self.seen if one.node in shared]

    def _note(self, point: Point, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.ndim != 4 or value is self.image:
            return False
        size = (value.shape[-2], value.shape[-1])
        if size == (1, 1) or value.shape[0] != self.image.shape[0]:
            return False
        self.seen.append(_Seen(point, size, value, value.grad_fn))
        if point.side == "output":
            self.left[point.module] = size
        return True

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self.calls[name] += 1
            self._note(Point(name, "input"), args[0] if args else None)

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._note(Point(name, "output"), output)

        return hook

    def ends(self) -> dict[tuple[str, tuple[int, int]], _Seen]:
        """Return the last feature map of each size, on the way down and on the way up."""
        seen = self.seen
        ends = [
            (index, one)
            for index, one in enumerate(seen)
            if index + 1 == len(seen) or seen[index + 1].size != one.size
        ]
        if ends and self.covered:
            ends.pop()
        if not ends:
            return {}
        smallest = min(one.size for _, one in ends)
        turn = max(index for index, one in ends if one.size == smallest)
        found: dict[tuple[str, tuple[int, int]], _Seen] = {}
        for index, one in ends:
            if index < turn:  # the first: later ones are shortcuts from the same feature map
                found.setdefault(("down", one.size), self._whole(one, turn))
            elif index == turn:
                found["down", smallest] = one
            else:
                found["up", one.size] = one
        return found

    def _whole(self, last: _Seen, turn: int) -> _Seen:
        """Return the input of the downsampling block, as seen from outside.

        The last feature map of a size may lie inside a block, between its layers. The block itself,
        the outermost of the modules that downsample by the smallest step, gets the previous stage's
        output.
        """
        smaller = [
            (self.left[one.point.module], -index)
            for index, one in enumerate(self.seen[: turn + 1])
            if one.point.side == "input"
            and one.size == last.size
            and self.left.get(one.point.module, last.size) < last.size
        ]
        return self.seen[-max(smaller)[1]] if smaller else last


def stage_ends(
    network: nn.Module, image: Tensor, split: Split | None = None
) -> dict[tuple[str, tuple[int, int]], Point]:
    """Return the last feature map of each resolution, on the way down and on the way up.

    They are found by a run: a stage ends where a module sees another size than the module before.
    Excluded are 1x1 feature maps (pooled branches inside a stage), the image itself, the inside of
    binary layers, the last stage of a network with a dense output, which the output covers, and
    what only some of several heads use.

    Args:
        network: The network; its training flags are restored.
        image: Input images (N, C, H, W).
        split: For several heads: returns their outputs.

    Returns:
        The points by direction ("down", "up") and size (H, W), in the order of the forward pass.
    """
    return {key: one.point for key, one in _Run(network, image, split).ends().items()}


def pair_stages(
    student: nn.Module,
    teacher: nn.Module,
    image: Tensor,
    taught: Tensor | None = None,
    split: Split | None = None,
) -> list[tuple[Point, Point]]:
    """Pair the teacher's stage ends with the student's.

    A feature map is seen at several points, such as one module's output and the next one's input.
    If the student has a point of the same name and size, as a converted network does, that one is
    used; otherwise the student's own stage end of the same direction and size. With several heads,
    the student's stage ends are paired with the teacher's points in the same way.

    Args:
        student: The student.
        teacher: The teacher.
        image: Input images.
        taught: The images in the teacher's dtype; None: the same.
        split: For several heads: returns their outputs. Only what all of them use is compared.

    Returns:
        Pairs of student and teacher points.

    Raises:
        ModelError: They have no stage in common.
    """
    ours = _Run(student, image, split)
    theirs = _Run(teacher, image if taught is None else taught, split)
    if split is None:
        pairs = _pairs(ours, theirs)
    else:  # a teacher of one task does not tell what the student's heads share
        pairs = [(one, other) for other, one in _pairs(theirs, ours)]
    if not pairs:
        raise ModelError(
            "distillation",
            "features",
            "student and teacher have no stages of the same size",
            "name the layers to compare (layers)",
        )
    return list(dict.fromkeys(pairs))


def _pairs(ours: _Run, theirs: _Run) -> list[tuple[Point, Point]]:
    """Pair the stage ends of the second run with points of the first, by name, or else by size."""
    known = {(one.point, one.size) for one in ours.seen}
    own = ours.ends()
    pairs: list[tuple[Point, Point]] = []
    for key, end in theirs.ends().items():
        same = [one.point for one in theirs.seen if one.map is end.map]
        shared = [point for point in (end.point, *same) if (point, end.size) in known]
        if shared:
            pairs.append((shared[0], shared[0]))
        elif key in own:
            pairs.append((own[key].point, end.point))
    return pairs


class Reader:
    """Read feature maps at given points of a network while it runs.

    Args:
        network: The network.
        points: Where to read.
        argument: The caller's name for the network, for messages.

    Raises:
        ModelError: There is no module of that name.
    """

    def __init__(self, network: nn.Module, points: Sequence[Point], argument: str) -> None:
        self.argument = argument
        self.points = list(points)
        self._maps: dict[Point, Tensor] = {}
        self._listening = False
        self._hooks: list[Any] = []
        modules = dict(network.named_modules())
        for point in self.points:
            if point.module not in modules:
                raise ModelError(
                    argument, point.module, "has no such layer", "see network.named_modules()"
                )
        for point in dict.fromkeys(self.points):
            module = modules[point.module]
            if point.side == "input":
                self._hooks.append(module.register_forward_pre_hook(self._before(point)))
            else:
                self._hooks.append(module.register_forward_hook(self._after(point)))

    def _before(self, point: Point) -> Any:
        return lambda module, args: self._note(point, args[0] if args else None)

    def _after(self, point: Point) -> Any:
        return lambda module, args, output: self._note(point, output)

    def _note(self, point: Point, value: Any) -> None:
        if not self._listening:
            return
        if isinstance(value, Mapping | Sequence):
            value = dense_output(value)
        self._maps[point] = value

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Read feature maps inside this context."""
        self._maps.clear()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    def maps(self) -> list[Tensor]:
        """Return the feature maps of the last run in the order of the points, and release them.

        Raises:
            ModelError: A layer was not called, or did not return a feature map.
        """
        maps, self._maps = self._maps, {}
        for point in self.points:
            value = maps.get(point)
            if not isinstance(value, Tensor) or value.ndim != 4:
                why = "was not called" if value is None else "returns no feature map (N, C, H, W)"
                raise ModelError(
                    self.argument,
                    point.module,
                    f"this layer {why}",
                    "choose another layer to compare",
                )
        return [maps[point] for point in self.points]

    def close(self) -> None:
        """Remove all hooks from the network."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _ancestors(output: Any) -> set[Any]:
    """Return the operations that the tensors of an output depend on."""
    found = {x.grad_fn for x in _tensors(output) if x.grad_fn is not None}
    waiting = list(found)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _outer_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules by name, except the network itself and the parts of binary layers."""
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if not name or name.startswith(inside):
            continue
        if callable(getattr(module, "binary_weight", None)):
            inside = (*inside, f"{name}.")
        yield name, module


def _is_dense(output: Any) -> bool:
    try:
        dense_output(output)
    except ModelError:
        return False
    return True
