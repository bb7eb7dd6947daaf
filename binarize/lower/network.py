"""A packed network: twins of the layers, and a fused program per size of the input."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from binarize.errors import ModelError, SlowWarning
from binarize.graph.shapes_only import ShapesOnly, forget_sizes, leave_nothing, namespaces
from binarize.graph.trace import skeleton
from binarize.kernels.ops import is_watched
from binarize.lower.fuse import fuse
from binarize.lower.program import PLAIN, Program, autocast_state, program_key
from binarize.lower.record import NotRecordable, record
from binarize.lower.sizes import FreeSizes, dimension_order, form, is_free, strides_of

__all__ = ["PackedNetwork"]

# Each program costs some Python objects.
_PROGRAMS = 16
# A program of free sizes takes as long to make as those of about ten sizes.
_FEW = 3
# Sizes may meet other conditions, such as those of large batches.
_GENERAL = 4


class PackedNetwork(nn.Module):
    """A 1-bit network for inference, made by :func:`binarize.pack`.

    It is called as the network it was made of. The first call with inputs of some size records
    what is computed, by a run of a copy on tensors without values; from then on a program is run
    for inputs of this size that leaves out what need not be done (see :mod:`binarize.lower.fuse`).
    From the fourth size on, one program serves all sizes for which the network does the same (see
    :mod:`binarize.lower.sizes`). Python code and hooks of the modules do not run in programs. Under
    ``torch.compile`` and ``torch.export``, and where ``unfused`` gives a reason, the modules run one
    by one.

    Args:
        network: The network with packed twins in the place of its binary layers.

    Attributes:
        network: As given: its modules and methods (``forward_features``, say) can be used.
        unfused: Why no program can be made, or ``None``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False
        plan = getattr(network, "binarize_plan", None)
        object.__setattr__(self, "binarize_plan", plan)
        self._settle()

    def _settle(self) -> None:
        """Take on the signature of the network, which exporters and people read."""
        theirs = inspect.signature(self.network.forward)
        given = list(theirs.parameters.values())
        # No argument of the network's comes before its own that are for positions only.
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
        """Run the network; arguments and result are those of the network that was packed."""
        if torch.compiler.is_compiling():
            return self.network(*args, **kwargs)
        with torch.no_grad():
            if self.unfused is not None or is_watched():
                return self.network(*args, **kwargs)
            leaves, spec = tree_flatten((args, kwargs))
            if any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves):
                return self.network(*args, **kwargs)  # nothing to record, and nothing to give up
            try:
                _check_plain(leaves, "an argument")
                key = program_key(leaves, spec)
                program = self._programs.get(key)
                if program is None:
                    return self._first_call(key, leaves, spec)
                self._use(key)
            except Exception as error:
                # Whatever is wrong with the call itself is told by the network.
                output = self.network(*args, **kwargs)
                self.unfused = _told(error)
                warnings.warn(
                    "this packed network runs module by module, which is slower than a fused "
                    f"program: {self.unfused}",
                    SlowWarning,
                    stacklevel=2,
                )
                return output
            return program(leaves)

    def _use(self, key: Hashable) -> None:
        """Note that a program was used last."""
        with self._lock:
            if key in self._programs:  # another thread's program may have taken its place
                self._programs.move_to_end(key)

    def _first_call(self, key: Hashable, leaves: Sequence[Any], spec: TreeSpec) -> Any:
        program = self._program_for_sizes(leaves, spec) or _make_program(self.network, leaves, spec)
        output = program(leaves)  # before it is kept: should it fail, the modules run
        with self._lock:
            self._programs[key] = program
            while len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        return output

    def _program_for_sizes(self, leaves: Sequence[Any], spec: TreeSpec) -> Program | None:
        """The program of free sizes for these arguments; ``None`` as long as there were few sizes."""
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
            program = _make_program(self.network, leaves, spec, FreeSizes())
            program(leaves)
        except Exception as error:
            # A program per size does it, too.
            known.fixed = _told(error)
            return None
        known.programs.append(program)
        return program

    @property
    def general(self) -> list[tuple[Hashable, Program]]:
        """The programs of free sizes so far, each with what it depends on."""
        return [(key, p) for key, known in self._forms.items() for p in known.programs]

    def generalize(self) -> None:
        """Record programs of free sizes for arguments like those of every program so far.

        One serves a single sample and one serves several, as a size of one may be broadcast.
        """
        for (spec, leaves, autocast), _ in list(self._programs.items()):
            if autocast != autocast_state():
                continue
            for several in (False, True):
                inputs = [_zeros(leaf, several) for leaf in leaves]
                key = form(inputs, spec, autocast)
                known = self._form(key) if key else _Form(fixed="nothing is free")
                if not known.fixed and not any(p.fits(inputs) for p in known.programs):
                    self._generalize(known, inputs, spec)

    @property
    def programs(self) -> dict[Hashable, Program]:
        """The programs so far, by what they depend on."""
        return dict(self._programs)

    def train(self, mode: bool = True) -> PackedNetwork:
        """Refuse training mode: there are no latent weights left to train."""
        if mode:
            raise ModelError(
                "model",
                type(self.network).__name__,
                "a packed network is for inference",
                "train the network that it was packed from",
            )
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()  # programs hold the tensors themselves
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget()  # and numbers that follow from tensors
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in ("_forms", "_lock", "_programs", "unfused"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._settle()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (), self.__getstate__()

    def extra_repr(self) -> str:
        return f"unfused={self.unfused!r}" if self.unfused else f"programs={len(self._programs)}"


def _blank() -> PackedNetwork:
    return PackedNetwork.__new__(PackedNetwork)


@dataclass
class _Form:
    """Calls that differ in free sizes only.

    Attributes:
        sizes: How many sizes had to be recorded.
        programs: Of free sizes, for other conditions each.
        fixed: Why there can be none.
    """

    sizes: int = 0
    programs: list[Program] = field(default_factory=list)
    fixed: str | None = None


def _make_program(
    network: nn.Module,
    leaves: Sequence[Any],
    spec: TreeSpec,
    sizes: FreeSizes | None = None,
) -> Program:
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    told: list[Any] = []
    copy = skeleton(network)  # what modules keep of a run without values goes with it

    def run(*inputs: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for i, value in zip(tensors, inputs, strict=True):
            filled[i] = value
        args, kwargs = tree_unflatten(filled, spec)
        results, out_spec = tree_flatten(copy(*args, **kwargs))
        _check_plain(results, "a result")
        if is_free(results):
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
    fuse(recording)
    recording.graph.lint()
    conditions = None
    if sizes:
        if sizes.is_constant:
            raise NotRecordable("a size decides what it does")
        conditions = fx.GraphModule({}, sizes.conditions())
    return Program(fx.GraphModule(recording.constants, recording.graph), tensors, *told, conditions)


def _zeros(leaf: Any, several: bool) -> Any:
    """An argument like that of a program, with two samples in the place of one if so asked."""
    if not isinstance(leaf[0], torch.Size):
        return leaf[1]
    shape, strides, dtype, device = leaf
    value = torch.empty_strided(shape, strides, dtype=dtype, device=device).zero_()
    if several and value.dim() >= 3 and len(value) == 1:
        order = dimension_order(value)
        doubled = (2, *shape[1:])
        steps = strides_of(doubled, order) if order else None
        return torch.empty_strided(doubled, steps, dtype=dtype, device=device).zero_() if steps else value
    return value


def _check_plain(leaves: Sequence[Any], what: str) -> None:
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *PLAIN)):
            raise NotRecordable(f"{what} is a {type(leaf).__name__}, not made of tensors")


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, NotRecordable) else f"{type(error).__name__}: {text}"
