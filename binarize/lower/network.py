"""A packed network: packed layers, and a fused program for each input size."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from binarize.errors import ModelError, SlowWarning
from binarize.graph.shapes_only import ShapesOnly, forget_sizes, leave_nothing, namespaces
from binarize.graph.trace import skeleton
from binarize.kernels.ops import is_watched
from binarize.lower.fuse import fuse
from binarize.lower.merge import merge_equal
from binarize.lower.program import PLAIN, Program, autocast_state, program_key
from binarize.lower.record import NotRecordable, record
from binarize.lower.several import SeveralTasks
from binarize.lower.symbolic_sizes import (
    SymbolicSizes,
    dimension_order,
    form,
    is_symbolic,
    strides_of,
)

__all__ = ["PackedNetwork"]

# Each program takes some Python objects.
_PROGRAMS = 16
# Recording a general program takes as long as recording about ten sizes.
_FEW = 3
# General programs per form: sizes may need different ones, such as very small images.
_GENERAL = 4


class PackedNetwork(nn.Module):
    """A 1-bit network for inference, made by :func:`binarize.pack`.

    It is called like the network that it was packed from. The first call with inputs of a new
    size records what is computed, by running a copy on tensors without values. From then on, inputs
    of this size run a fused program without unnecessary steps (see :mod:`binarize.lower.fuse`).
    From the fourth size on, a general program serves all sizes for which the network does the same
    (see :mod:`binarize.lower.symbolic_sizes`). Python code and hooks of the modules do not run in
    programs. Under ``torch.compile`` and ``torch.export``, and where ``unfused`` gives a reason,
    the modules run one by one.

    Args:
        network: The network with packed layers in place of its binary layers.

    Attributes:
        network: That network: its modules and methods (such as ``forward_features``) can be used.
        unfused: Why no program can be made, else ``None``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False
        plan = getattr(network, "binarize_plan", None)
        object.__setattr__(self, "binarize_plan", plan)
        self._adopt_signature()

    def _adopt_signature(self) -> None:
        """Adopt the signature of the network, which exporters and people read."""
        theirs = inspect.signature(self.network.forward)
        given = list(theirs.parameters.values())
        # Positional-only arguments come before the network's own.
        own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]

        def forward(self: PackedNetwork, *args: Any, **kwargs: Any) -> Any:
            return PackedNetwork.forward(self, *args, **kwargs)

        forward.__doc__ = PackedNetwork.forward.__doc__
        forward.__signature__ = theirs.replace(parameters=own + given)  # type: ignore[attr-defined]
        members = {"forward": forward, "__module__": __name__, "__doc__": PackedNetwork.__doc__}
        self.__class__ = type("PackedNetwork", (PackedNetwork,), members)
        self._forget()

    def _forget(self) -> None:
        self.unfused: str | None = None
        self._lock = threading.Lock()
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._forms: OrderedDict[Hashable, _Form] = OrderedDict()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network; arguments and result are those of the original network."""
        if torch.compiler.is_compiling():
            return self.network(*args, **kwargs)
        with torch.no_grad():
            if self.unfused is not None or is_watched():
                return self.network(*args, **kwargs)
            leaves, spec = tree_flatten((args, kwargs))
            if any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves):
                return self.network(*args, **kwargs)  # do not record
            try:
                _check_plain(leaves, "an argument")
                key = program_key(leaves, spec)
                program = self._programs.get(key)
                if program is None:
                    return self._first_call(key, leaves, spec)
                self._use(key)
            except Exception as error:
                # If the call itself is wrong, the network reports it.
                output = self.network(*args, **kwargs)
                self.unfused = _describe(error)
                warnings.warn(
                    "this packed network runs module by module, which is slower than a fused "
                    f"program: {self.unfused}",
                    SlowWarning,
                    stacklevel=2,
                )
                return output
            return program(leaves)

    def _use(self, key: Hashable) -> None:
        """Mark a program as the most recently used."""
        with self._lock:
            if key in self._programs:  # another thread may have evicted it
                self._programs.move_to_end(key)

    def _first_call(self, key: Hashable, leaves: Sequence[Any], spec: TreeSpec) -> Any:
        program = self._general_program(leaves, spec) or _make_program(self.network, leaves, spec)
        output = program(leaves)  # run before storing it: if it fails, the modules run
        with self._lock:
            self._programs[key] = program
            while len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        return output

    def _general_program(self, leaves: Sequence[Any], spec: TreeSpec) -> Program | None:
        """Return a general program for these arguments; ``None`` for the first few sizes."""
        key = form(leaves, spec, autocast_state())
        if key is None:
            return None
        known = self._form(key)
        for program in known.programs:
            if program.fits(leaves):
                return program
        known.sizes += 1
        if known.fixed or known.sizes <= _FEW or len(known.programs) >= _GENERAL:
            return None
        return self._generalize(known, leaves, spec)

    def _form(self, key: Hashable) -> _Form:
        with self._lock:
            known = self._forms.setdefault(key, _Form())
            self._forms.move_to_end(key)
            while len(self._forms) > _PROGRAMS:
                self._forms.popitem(last=False)
        return known

    def _generalize(self, known: _Form, leaves: Sequence[Any], spec: TreeSpec) -> Program | None:
        try:
            program = _make_program(self.network, leaves, spec, SymbolicSizes())
            program(leaves)
        except Exception as error:
            # Programs per size still work.
            known.fixed = _describe(error)
            return None
        known.programs.append(program)
        return program

    def find(self, leaves: Sequence[Any], spec: TreeSpec) -> tuple[Program, Sequence[Any]] | None:
        """Return the program for flattened arguments, if there is one, and its arguments."""
        program = self._programs.get(program_key(leaves, spec))
        return None if program is None else (program, leaves)

    def run(self, leaves: Sequence[Any], spec: TreeSpec) -> Any:
        """Run the network on flattened arguments."""
        args, kwargs = tree_unflatten(list(leaves), spec)
        return self(*args, **kwargs)

    @property
    def general(self) -> list[tuple[Hashable, Program]]:
        """The general programs so far, with their forms."""
        return [(key, p) for key, known in self._forms.items() for p in known.programs]

    def generalize(self) -> None:
        """Record general programs for arguments like those of the programs so far.

        There is one for a single sample and one for several: a size of one may be broadcast.
        """
        for each in list(self._programs):
            spec, leaves, autocast = cast(Any, each)
            if autocast != autocast_state():
                continue
            for samples in (None, 1, 2):
                inputs = [_zeros(leaf, samples) for leaf in leaves]
                key = form(inputs, spec, autocast)
                known = self._form(key) if key else _Form(fixed="nothing is free")
                if not known.fixed and not any(p.fits(inputs) for p in known.programs):
                    self._generalize(known, inputs, spec)

    @property
    def programs(self) -> dict[Hashable, Program]:
        """The current programs, by what they depend on."""
        return dict(self._programs)

    def train(self, mode: bool = True) -> PackedNetwork:
        """Reject training mode: no latent weights are left to train."""
        if mode:
            raise ModelError(
                "model",
                type(self.network).__name__,
                "a packed network is for inference",
                "train the network that it was packed from",
            )
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()  # programs refer to the tensors themselves
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget()  # and to numbers computed from tensors
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in ("_forms", "_lock", "_programs", "unfused"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._adopt_signature()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (), self.__getstate__()

    def extra_repr(self) -> str:
        return f"unfused={self.unfused!r}" if self.unfused else f"programs={len(self._programs)}"


def _blank() -> PackedNetwork:
    return PackedNetwork.__new__(PackedNetwork)


@dataclass
class _Form:
    """Calls that differ only in free sizes.

    Attributes:
        sizes: How many sizes no general program served.
        programs: General programs, each valid under other conditions.
        fixed: Why there cannot be any.
    """

    sizes: int = 0
    programs: list[Program] = field(default_factory=list)
    fixed: str | None = None


def _make_program(
    network: nn.Module,
    leaves: Sequence[Any],
    spec: TreeSpec,
    sizes: SymbolicSizes | None = None,
) -> Program:
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    told: list[Any] = []
    copy = skeleton(network)  # modules may cache tensors without values; discard them with it

    def run(*inputs: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for i, value in zip(tensors, inputs, strict=True):
            filled[i] = value
        args, kwargs = tree_unflatten(filled, spec)
        results, out_spec = tree_flatten(copy(*args, **kwargs))
        _check_plain(results, "a result")
        if is_symbolic(results):
            raise NotRecordable("a result is a size")
        told[:] = [out_spec, [None if isinstance(x, Tensor) else (x,) for x in results]]
        return [x for x in results if isinstance(x, Tensor)]

    fake = ShapesOnly(sizes.environment if sizes else None)
    before = namespaces(network)
    try:
        recording = record(run, [leaves[i] for i in tensors], fake, sizes)
    finally:
        leave_nothing(fake, network, copy, before)
        if sizes:
            forget_sizes(before)
    if isinstance(network, SeveralTasks):
        merge_equal(recording)
    fuse(recording)
    recording.graph.lint()
    conditions = None
    if sizes:
        if sizes.is_constant:
            raise NotRecordable("a size decides what it does")
        conditions = fx.GraphModule({}, sizes.conditions())
    module = fx.GraphModule(recording.constants, recording.graph)
    return Program(module, tensors, told[0], told[1], conditions)


def _zeros(leaf: Any, samples: int | None) -> Any:
    """Make an argument like a program's, of another number of samples unless that is None."""
    if not isinstance(leaf[0], torch.Size):
        return leaf[1]
    shape, strides, dtype, device = leaf
    value = torch.empty_strided(shape, strides, dtype=dtype, device=device)
    order = dimension_order(value)
    if samples and order and value.dim() >= 3:
        shape = (samples, *shape[1:])
        strides = strides_of(shape, order)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device).zero_()


def _check_plain(leaves: Sequence[Any], what: str) -> None:
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *PLAIN)):
            raise NotRecordable(f"{what} is a {type(leaf).__name__}, not made of tensors")


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, NotRecordable) else f"{type(error).__name__}: {text}"
