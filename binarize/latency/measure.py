"""Run packed networks operation by operation, and attribute each operation's time to a layer."""

from __future__ import annotations

import glob
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from binarize.errors import ModelError
from binarize.graph import Plan, Traced
from binarize.graph.flow import all_layers
from binarize.graph.inputs import arguments
from binarize.graph.model_input import deepcopy_model, unwrap_model
from binarize.graph.sizes import spelled_size
from binarize.kernels import native
from binarize.latency.numbers import LayerLatency, Machine, Profile
from binarize.lower import PackedNetwork
from binarize.lower.pack import finish, pack
from binarize.nn.int8 import assume_ranges
from binarize.policy import Match, Policy, Rule, load_policy, with_overrides
from binarize.policy.match import Overrides
from binarize.processor import processor_name

__all__ = ["machine", "profile"]


def profile(
    model: nn.Module,
    example_inputs: Any,
    *,
    policy: str | Path | Policy = "bidense",
    overrides: Overrides | None = None,
    rounds: int = 9,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Measure the packed latency of each layer of a network: in one bit, in 8 bits, and in float.

    Three networks are packed: with the policy, with 8 bits in place of one, and in float. They run
    in turns, operation by operation, with the threads that torch is set to use. The time of what
    follows a layer (its norm, activation, additions, resizing) is attributed to the layer. The
    times of a network's operations are scaled so that they add up to the whole network's latency.
    Weights are those of ``model``: latency does not depend on training.

    Args:
        model: The float network, in eval mode; it stays unchanged.
        example_inputs: As in :func:`binarize.plan`. Latency is measured for this size and batch.
        policy: As in :func:`binarize.plan`.
        overrides: As in :func:`binarize.plan`.
        rounds: Number of runs of each network.
        tell: Called with the number of rounds done and the total.

    Returns:
        The profile: print it, save it, or give it to :func:`binarize.plan` with a time budget.

    Raises:
        ModelError: The network cannot be converted, or it cannot be recorded as a program.
        PolicyError: As in :func:`binarize.plan`.
    """
    model = unwrap_model(model)
    chosen = with_overrides(load_policy(policy), overrides, all_layers(model))
    args, kwargs = arguments(example_inputs)
    training = model.training
    traced = Traced(model, example_inputs)
    plan = traced.plan(chosen)
    open_ = [d.site for d in plan.layers if d.action not in ("keep", "int8")]
    eight = Rule(Match(name=tuple(map(glob.escape, open_))), "int8", "to be measured")
    plans: dict[str, Plan] = {"policy": plan}
    networks = {"policy": _packed(traced, plan)}
    if open_:
        plans["int8"] = traced.plan(with_overrides(chosen, [eight]))
        networks["int8"] = _packed(traced, plans["int8"])
    networks["keep"] = finish(deepcopy_model(model).eval(), {})
    model.train(training)
    layers = {d.site: d for d in plan.layers}
    runs = {name: _Run(network, list(layers), args, kwargs) for name, network in networks.items()}
    for done in range(rounds):
        for run in runs.values():
            run.once()
        tell(done + 1, rounds)
    timed = {name: run.medians() for name, run in runs.items()}
    rows = []
    for site, decision in layers.items():
        sources = {"keep": "keep", decision.action: "policy"}
        if "int8" in plans and site in open_:
            sources["int8"] = "int8"
        found = {a: timed[name].get(site, (0.0, 0.0)) for a, name in sources.items()}
        rows.append(
            LayerLatency(
                site,
                decision.kind,
                decision.shape,
                decision.action,
                {a: pair[0] for a, pair in found.items()},
                {a: pair[1] for a, pair in found.items()},
            )
        )
    shapes = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    return Profile(
        type(model).__name__,
        chosen.name,
        ", ".join(spelled_size(tuple(x.shape)) for x in shapes),
        machine(),
        rounds,
        tuple(rows),
        timed["policy"].get("", (0.0, 0.0))[0],
        {name: run.latency() for name, run in runs.items()},
    )


def machine() -> Machine:
    """Describe this machine."""
    return Machine(
        processor_name(),
        native.status().active,
        torch.get_num_threads(),
        torch.__version__,
        importlib.import_module("binarize").__version__,
    )


def _packed(traced: Traced, plan: Plan) -> PackedNetwork:
    student = traced.convert(plan).eval()
    assume_ranges(student)
    return pack(student)


def _clock() -> float:
    """Return seconds; with one thread its own CPU time, whatever else the machine does."""
    # On Windows, CPU time goes by in steps of 16 ms.
    if torch.get_num_threads() == 1 and sys.platform != "win32":
        return time.thread_time()
    return time.perf_counter()


class _Run:
    """One network, which takes turns with others."""

    def __init__(
        self, network: PackedNetwork, sites: Sequence[str], args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        self._call = lambda: network(*args, **kwargs)
        with torch.no_grad():
            self._call()
            self._call()
        if not network.programs:
            raise ModelError(
                "model",
                type(network.network).__name__,
                f"its operations cannot be timed separately ({network.unfused})",
                "measure the whole network: binarize bench",
            )
        program = next(iter(network.programs.values()))
        owners = _owners(program.module, _tensors(network.network, sites))
        self._timed = _Timed(program.module, owners)
        leaves = torch.utils._pytree.tree_leaves((args, dict(kwargs)))
        self._inputs = [leaves[i] for i in program.tensors]
        self._whole: list[float] = []
        self._parts: list[dict[str, float]] = []

    def once(self) -> None:
        with torch.no_grad():
            started = _clock()
            self._call()
            self._whole.append(_clock() - started)
            self._timed.spent = {}
            self._timed.run(*self._inputs)
        self._parts.append(self._timed.spent)

    def latency(self) -> float:
        """Return the milliseconds of the whole network."""
        return 1e3 * statistics.median(self._whole)

    def medians(self) -> dict[str, tuple[float, float]]:
        """Return milliseconds by layer, with their spread."""
        found = {}
        for site in {site for part in self._parts for site in part}:
            values = sorted(part.get(site, 0.0) for part in self._parts)
            spread = values[(3 * len(values)) // 4] - values[len(values) // 4]
            found[site] = statistics.median(values), spread / 2
        scale = self.latency() / max(sum(value for value, _ in found.values()), 1e-12)
        return {site: (value * scale, error * scale) for site, (value, error) in found.items()}


class _Timed(fx.Interpreter):
    """Runs a program node by node and attributes each operation's time to its owner."""

    def __init__(self, module: fx.GraphModule, owners: Mapping[fx.Node, str]) -> None:
        super().__init__(module)
        self._owners = owners
        self.spent: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        started = _clock()
        result = getattr(self, n.op)(n.target, args, kwargs)
        ended = _clock()
        if n.op == "call_function":
            owner = self._owners[n]
            self.spent[owner] = self.spent.get(owner, 0.0) + ended - started
        return result


def _tensors(network: nn.Module, sites: Sequence[str]) -> dict[int, str]:
    """Map the ``id`` of each layer's own tensors to its site."""
    found: dict[int, str] = {}
    for site in sites:
        try:
            layer = network.get_submodule(site)
        except AttributeError:
            continue
        for tensor in (*nn.Module.parameters(layer), *layer.buffers()):
            found.setdefault(id(tensor), site)
    return found


def _owners(module: fx.GraphModule, tensors: Mapping[int, str]) -> dict[fx.Node, str]:
    """Return the layer that owns each operation; operations after no layer have no owner."""
    owners: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        own = ""
        if node.op == "get_attr":
            own = tensors.get(id(getattr(module, str(node.target))), "")
        elif node.op == "call_function":
            inputs = node.all_input_nodes
            constants = [owners[i] for i in inputs if i.op == "get_attr" and owners[i]]
            values = [owners[i] for i in inputs if i.op != "get_attr" and owners[i]]
            # A layer's own weight decides; otherwise the most recent layer that it follows.
            own = constants[0] if constants else values[-1] if values else ""
        owners[node] = own
    return owners
