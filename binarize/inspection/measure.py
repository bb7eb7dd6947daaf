"""Run a 1-bit network on images, and measure the outputs of its activation binarizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.graph.inputs import arguments
from binarize.graph.model_input import unwrap_model
from binarize.inspection.numbers import FeatureMap, Inspection
from binarize.inspection.tally import Tally
from binarize.lower import PackedNetwork
from binarize.nn import BinaryLayer

__all__ = ["inspect"]


def inspect(
    model: nn.Module, batches: Iterable[Any], *, layer: str | None = None, maps: int = 4
) -> Inspection:
    """Measure the binarized activations of a 1-bit network on images.

    For every binary layer: the share of +1 and the information entropy of each channel, and the
    learned parameters of its activation binarizer; for one layer the feature maps before and after.
    This reproduces BiDense's Figs. 3 and 6, for any policy.

    Args:
        model: A converted network, or one with binary layers from :mod:`binarize.nn`. It runs in
            evaluation mode and is unchanged afterwards.
        batches: The network's inputs, one call each: a tensor (N, C, *spatial), a tuple
            of positional arguments or a mapping of named ones; on the network's device.
        layer: Name of the binary layer to keep feature maps of; ``None`` for the one that runs
            first.
        maps: How many feature maps to keep, starting with the first sample. If a batch calls the
            layer several times, those of the first call are kept.

    Returns:
        The numbers; ``save(folder)`` writes them with figures.

    Raises:
        ModelError: The network has no binary layer, or is packed; there is no such layer or no
            batch; the network does not accept a batch.
    """
    network = unwrap_model(model)
    watch = _Watch(_layers(network), layer, maps)
    with _evaluating(network), watch.watching(), torch.no_grad():
        for batch in batches:
            watch.next_batch()
            args, kwargs = arguments(batch)
            try:
                network(*args, **kwargs)
            except Exception as error:
                raise ModelError(
                    "batches",
                    [tuple(x.shape) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)],
                    "the network's forward does not accept them "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:160]})",
                    "give inputs in the form of the network's call",
                ) from error
    if not watch.batches:
        raise ModelError("batches", 0, "there is nothing to measure", "give at least one batch")
    plan = getattr(network, "binarize_plan", None)
    return Inspection(
        # A rewritten network is of a subclass of its author's class.
        network=(type(network).__bases__[0] if _rewritten(plan) else type(network)).__name__,
        policy=None if plan is None else plan.policy.name,
        batches=watch.batches,
        layers=tuple(tally.numbers() for tally in watch.in_order()),
        maps_of=watch.maps_of,
        maps=tuple(watch.maps),
    )


def _layers(network: nn.Module) -> dict[str, BinaryLayer]:
    if isinstance(network, PackedNetwork):
        raise ModelError(
            "model",
            type(network).__name__,
            "a packed network does not store its binarized activations",
            "inspect the network before packing",
        )
    found = {n: m for n, m in network.named_modules() if isinstance(m, BinaryLayer)}
    if not found:
        raise ModelError(
            "model",
            type(network).__name__,
            "it has no binary layer",
            "convert it first, with binarize.convert(model)",
        )
    return found


def _rewritten(plan: Any) -> bool:
    return plan is not None and any(edit.scope == "" for edit in plan.edits)


class _Watch:
    """Hooks on the activation binarizers of a network.

    Args:
        layers: The binary layers by name.
        chosen: The layer whose feature maps are kept; ``None`` for the first that runs.
        wanted: How many to keep.
    """

    def __init__(self, layers: dict[str, BinaryLayer], chosen: str | None, wanted: int) -> None:
        if chosen is not None and chosen not in layers:
            raise ModelError(
                "layer",
                chosen,
                "no binary layer has that name",
                f"use one of {', '.join(list(layers)[:4])}{', ...' * (len(layers) > 4)}",
            )
        if wanted < 0:
            raise ModelError("maps", wanted, "must not be negative", "use 0 for none")
        self.batches = 0
        self.maps: list[FeatureMap] = []
        self.maps_of = chosen
        self._wanted = wanted
        self._seen = False
        self._tallies = [Tally(name, layer) for name, layer in layers.items()]
        self._order: dict[str, Tally] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Install hooks on all binarizers inside this context."""
        hooks = []
        try:
            for tally in self._tallies:
                binarizer: nn.Module = tally.layer.binarizer
                hooks.append(binarizer.register_forward_hook(self._listener(tally)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def next_batch(self) -> None:
        """Start the next batch."""
        self.batches += 1
        self._seen = False

    def in_order(self) -> list[Tally]:
        """Return all tallies, those of layers that ran first, in execution order."""
        rest = [tally for tally in self._tallies if tally.name not in self._order]
        return [*self._order.values(), *rest]

    def _listener(self, tally: Tally) -> Any:
        def listen(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = args[0].detach(), output.detach()
            if x.dim() == 1:  # linear layers accept a single unbatched sample
                x, y = x[None], y[None]
            self._order.setdefault(tally.name, tally)
            entropies = tally.add(y)
            if self.maps_of is None:
                self.maps_of = tally.name
            if tally.name == self.maps_of and not self._seen:
                self._seen = True
                self._keep(tally, x, y, entropies)

        return listen

    def _keep(self, tally: Tally, x: Tensor, y: Tensor, entropies: list[float]) -> None:
        room = self._wanted - len(self.maps)
        channels = tally.layer.binarizer.channel_dim % x.dim()
        for sample, entropy in enumerate(entropies[:room]):
            before, after = (t[sample].float().cpu() for t in (x, y))
            if x.dim() > 2:
                before, after = before.mean(channels - 1), after.mean(channels - 1)
            self.maps.append(FeatureMap(self.batches - 1, sample, entropy, before, after))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside this context, and restore every module's mode afterwards."""
    flags = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag
