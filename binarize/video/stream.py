"""The public class: a packed network on the frames of a video, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten

from binarize.errors import BinarizeError, ModelError
from binarize.lower import PackedNetwork, PackedPrograms
from binarize.lower.program import Program
from binarize.lower.units import units
from binarize.video.layer import StreamedLayer
from binarize.video.report import StreamReport

__all__ = ["Stream"]


class Stream:
    r"""Runs a packed network on consecutive frames and does only what changed.

    Each binary layer keeps its input's bits and its sums :math:`s = \sum \operatorname{sign}(x)
    \operatorname{sign}(w)`. On the next frame, an output pixel whose window has the same bits keeps
    its sums; where few bits changed, each adds its :math:`\pm 2 \operatorname{sign}(w)`; where many
    did, the window is counted again. Sums are integers, so the output is the packed network's on
    that frame alone, bit for bit.

    A layer is streamed while that is faster: both ways are timed on the second and third frame,
    and again later. Other layers run as usual.

    Args:
        network: A packed network: from :func:`binarize.pack`, or :func:`binarize.load` with
            ``packed=True``.
        tolerance: In [0, 1). A pixel keeps its old bits while at most this share of its channels
            changed since they were last taken over, so that no sum of an ungrouped convolution is
            off by more than ``2 * tolerance`` times the number of signs that it adds. 0 is exact.
        measure: Whether to stream only those layers where it is faster. With a tolerance, results
            then depend on these measurements; False streams every layer.

    Raises:
        ModelError: The network is not packed.
        BinarizeError: The tolerance is out of range.

    A stream is called like the network, from one thread at a time. With several samples (N > 1),
    sample i continues sample i of the call before.
    """

    def __init__(
        self,
        network: PackedNetwork | PackedPrograms,
        *,
        tolerance: float = 0.0,
        measure: bool = True,
    ) -> None:
        if not isinstance(network, PackedNetwork | PackedPrograms):
            raise ModelError(
                "network",
                type(network).__name__,
                "a stream runs a packed network",
                "pack it first: binarize.pack(network)",
            )
        if not 0 <= tolerance < 1:
            raise BinarizeError(
                "tolerance",
                tolerance,
                "must be a share of a pixel's channels, at least 0 and less than 1",
                "0 is exact; 0.05 is a first value to try",
            )
        self.network = network
        self.tolerance = float(tolerance)
        self.measure = measure
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next one begins a video, of any size."""
        self._frames = 0
        self._given: list[Any] | None = None
        self._strides: list[Any] = []
        self._recorded: Program | None = None
        self._program: Any = None
        self._layers: list[StreamedLayer] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on the next frame.

        Args:
            *args: Arguments of the network; tensors have the sizes of the frames before.
            **kwargs: Its keyword arguments.

        Returns:
            The network's output for this frame.

        Raises:
            BinarizeError: The frame does not continue the video, is empty or not on the CPU. The
                stream stays as it is, and takes the next frame.
            ModelError: The network cannot be streamed: it does not run as a program.
        """
        flat, spec = tree_flatten((args, kwargs))
        leaves: Sequence[Any] = flat
        given = [spec, *(_described(leaf) for leaf in leaves)]
        self._check(given, leaves)
        with torch.no_grad():
            if self._given is not None:
                leaves = [_in_order(leaf, s) for leaf, s in zip(leaves, self._strides, strict=True)]
            recorded, leaves = self._find(leaves, spec)
            if recorded is not self._recorded:
                # The first frame, or the network was moved or got other values.
                streamed = self._streamed(recorded)
            else:
                streamed = self._program, self._layers
            output = streamed[0](leaves)
        self._recorded = recorded
        self._program, self._layers = streamed
        self._given = given
        self._strides = [x.stride() if isinstance(x, Tensor) else None for x in leaves]
        self._frames += 1
        return output

    def report(self) -> StreamReport:
        """Return how much each layer saved since the stream began."""
        inner = self.network.network if isinstance(self.network, PackedNetwork) else self.network
        return StreamReport(
            network=type(inner).__name__,
            frames=self._frames,
            layers=tuple(layer.row() for layer in self._layers),
            tolerance=self.tolerance,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(frames={self._frames}, tolerance={self.tolerance:g})"

    def _check(self, given: list[Any], leaves: Sequence[Any]) -> None:
        for leaf in leaves:
            if isinstance(leaf, Tensor) and not leaf.numel():
                raise BinarizeError(
                    "frame", _shape(leaf), "must have at least one sample and pixel", "skip it"
                )
            if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
                raise BinarizeError(
                    "frame", str(leaf.device), "streams run on the CPU", "give frame.cpu()"
                )
        if self._given is None or given == self._given:
            return
        rule = f"must be like the frames before, {_text(self._given)}"
        raise BinarizeError("frame", _text(given), rule, "call reset() where another video begins")

    def _find(self, leaves: Sequence[Any], spec: TreeSpec) -> tuple[Program, Sequence[Any]]:
        found = self.network.find(leaves, spec)
        if found is None and isinstance(self.network, PackedNetwork):
            self.network.run(leaves, spec)  # records it
            found = self.network.find(leaves, spec)
        if found is None:
            raise ModelError(
                "network",
                type(self.network).__name__,
                "it runs module by module, without a program "
                f"({getattr(self.network, 'unfused', None) or 'its calls are intercepted'})",
                "call the packed network itself",
            )
        return found

    def _streamed(self, recorded: Program) -> tuple[Program, list[StreamedLayer]]:
        """Return a copy of a program whose binary layers keep states."""
        names = {
            id(value): name.rpartition(".")[0].removeprefix("network.")
            for name, value in self.network.named_buffers()
        }
        graph = fx.Graph()
        graph.output(graph.graph_copy(recorded.module.graph, {}))
        constants = {
            str(node.target): attrgetter(str(node.target))(recorded.module)
            for node in graph.nodes
            if node.op == "get_attr"
        }
        layers: list[StreamedLayer] = []
        modules: dict[str, Any] = {}
        for number, node in enumerate(units(graph)):
            weight = node.args[3]
            assert isinstance(weight, fx.Node)
            name = names.get(id(constants.get(str(weight.target))), "") or f"unit {number + 1}"
            layer = StreamedLayer(name, self.tolerance, self.measure)
            layers.append(layer)
            modules[f"streamed_{number}"] = layer
            node.op, node.target = "call_module", f"streamed_{number}"
        module = fx.GraphModule({**constants, **modules}, graph)
        return Program(module, recorded.tensors, recorded.spec, recorded.others), layers


def _described(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _shape(leaf: Tensor) -> str:
    return "x".join(map(str, leaf.shape))


def _text(given: list[Any]) -> str:
    _, *leaves = given
    return ", ".join(
        f"{'x'.join(map(str, leaf[0]))} {str(leaf[1]).removeprefix('torch.')}"
        if isinstance(leaf, tuple) else repr(leaf)
        for leaf in leaves
    )  # fmt: skip


def _in_order(leaf: Any, strides: Any) -> Any:
    """Return an argument in the memory order of the first frame, for which the program is."""
    if not isinstance(leaf, Tensor) or leaf.stride() == strides:
        return leaf
    ordered = torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype)
    return ordered.copy_(leaf)
