"""Examine one network: convert it and compare it with the original."""

from __future__ import annotations

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from binarize.errors import ModelError
from binarize.file import load, save
from binarize.graph import Plan, convert
from binarize.graph.rewrite import apply_plan
from binarize.nn import BinaryLayer
from binarize.report import report
from binarize.survey.case import WILD, Case
from binarize.survey.row import CONVERTED, FAILED, NOTHING, ORIGINAL, Row, enter_plan
from binarize.survey.wild import build_wild

__all__ = ["Build", "examine"]

_CONVS = (nn.modules.conv._ConvNd,)
# Image sizes to try a network with.
_SQUARE = (224, 256, 240, 384, 448, 512, 320, 128)
# Odd ones first; most decoders need multiples of the encoder's stride, windows those of 7 or 8.
_OTHER = ((199, 249), (193, 257), (192, 288), (256, 192), (448, 224), (512, 256), (384, 384))
_SMALL = (64, 96, 128, 160)

Build = Callable[[Case], nn.Module]


def examine(case: Case, *, light: bool = False, build: Build = build_wild) -> Row:
    """Convert a network and check the result against the original.

    This happens on the meta device, where tensors have shapes but no values, if the network
    can be built and run there. Samples are examined again with real, random weights.

    Args:
        case: The network.
        light: Only convert and compare output shapes.
        build: Builds the float network with random weights, on torch's current default device.

    Returns:
        Its row; errors are recorded, not raised.
    """
    row = Row(case.key, case.library, case.family, case.name, case.variant)
    start = time.process_time()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # Warnings of the libraries' networks are irrelevant here.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            _examine(case, row, light, build)
        except Exception as error:
            row.status, row.cause = FAILED, describe_error(error)
    row.seconds = round(time.process_time() - start, 2)
    return row


def _examine(case: Case, row: Row, light: bool, build: Build) -> None:
    try:
        teacher, x, expected = _original(case, build)
    except Exception as error:
        row.status, row.cause = ORIGINAL, describe_error(error)
        return
    row.size = list(x.shape[2:])
    row.params = sum(parameter.numel() for parameter in teacher.parameters())
    try:
        student = convert(teacher, example_inputs=x if case.library == WILD else None)
    except ModelError as error:
        row.status = NOTHING if "nothing to binarize" in error.rule else FAILED
        row.cause = describe_error(error)
        row.dense = sum(m.weight.numel() for m in teacher.modules() if isinstance(m, _CONVS))
        return
    row.status = CONVERTED
    plan: Any = student.binarize_plan
    enter_plan(row, plan)
    row.light = light
    if light:
        row.checks["forward"] = _check(lambda: _compare(expected, _run(student, x)))
        return
    row.checks["forward"] = _check(lambda: _count(row, student, x, expected))
    other, expected = _other_image(teacher, x)
    row.other_size = list(other.shape[2:]) if other is not x else []
    row.checks["train"] = _check(lambda: _train(teacher, student, other, expected))
    # Last, because the teacher itself becomes the loaded network.
    row.checks["reload"] = _check(lambda: _apply_again(teacher, student, plan))
    if case.sample:
        row.checks["real"] = _check(lambda: _real(case, x, build))


def describe_error(error: BaseException) -> str:
    """Format an error as one short line."""
    text = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _check(check: Any) -> str:
    try:
        return check() or "ok"
    except Exception as error:
        return describe_error(error)


def _count(row: Row, student: nn.Module, x: Tensor, expected: Any) -> str | None:
    """Run the forward pass once, in the report that counts it."""
    outputs: list[Any] = []
    with student.register_forward_hook(lambda _module, _args, output: outputs.append(output)):
        numbers = report(student, x)
    row.effective_params, row.ops = numbers.params, numbers.ops
    row.reference_ops = numbers.reference_ops
    return _compare(expected, outputs[-1])


def _original(case: Case, build: Build) -> tuple[nn.Module, Tensor, Any]:
    """Return the float network, without storage if possible, an image it accepts and its output."""
    first: Exception | None = None
    for model in _builds(case, build):
        if isinstance(model, Exception):
            first = first or model
            continue
        device = next(model.parameters()).device
        for shape in _default_sizes(case, model):
            x = torch.zeros(shape, device=device)
            try:
                return model, x, _run(model, x)
            except Exception as error:
                first = first or error
    raise first or RuntimeError("no size to try")


def _builds(case: Case, build: Build) -> Iterator[nn.Module | Exception]:
    """Yield the network built or moved to the meta device, and then with storage."""
    built = False
    try:
        with torch.device("meta"):
            model = build(case).eval()
        built = True
        yield model
    except Exception as error:
        yield error
    try:
        model = build(case).eval()
    except Exception as error:
        yield error
        return
    if not built:
        yield copy.deepcopy(model).to("meta")
    yield model


def _run(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


def _compare(expected: Any, got: Any) -> str | None:
    wanted, found = _shapes(expected), _shapes(got)
    return None if wanted == found else f"gives {found}, the original {wanted}"


def _shapes(output: Any) -> Any:
    values, spec = tree_flatten(output)
    return [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in values], spec


def _tensors(output: Any) -> Iterator[Tensor]:
    for value in tree_leaves(output):
        if isinstance(value, Tensor) and value.requires_grad:
            yield value


def _other_image(teacher: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """Return two images of another size that the original accepts, and its training output."""
    # Running statistics change, if there are any.
    twin = teacher if x.is_meta else copy.deepcopy(teacher)
    for size in (*_other_sizes(tuple(x.shape[2:])), tuple(x.shape[2:])):
        other = torch.randn((2, x.shape[1], *size), device=x.device)
        twin.train()
        try:
            return (other if size != x.shape[2:] else x), _run(twin, other)
        except Exception:
            continue
        finally:
            twin.eval()
    return x, None


def _apply_again(teacher: nn.Module, student: nn.Module, plan: Plan) -> str | None:
    """Do what loading does: apply the plan from its file to a fresh network."""
    read = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    if read != plan:
        return "its plan does not survive JSON"
    apply_plan(teacher, read)
    ours, theirs = student.state_dict(), teacher.state_dict()
    differ = [key for key in {**ours, **theirs} if _shape(ours, key) != _shape(theirs, key)]
    return f"another tensor at {differ[0]}" if differ else None


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def _train(teacher: nn.Module, student: nn.Module, x: Tensor, expected: Any) -> str | None:
    """Run a training step, and check output shapes and the gradients of all binary parameters."""
    x = x if len(x) > 1 else torch.cat([x, x])
    output = _backward(student, x)
    wrong = None if expected is None else _compare(expected, output)
    if wrong is not None:
        return wrong
    lost: dict[str, str] = {}
    for name, layer in student.named_modules():
        if not isinstance(layer, BinaryLayer):
            continue
        for own, parameter in layer.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                lost.setdefault(name, f"no gradient for {name}.{own}")
            if parameter.grad is not None and not _is_finite(parameter.grad):
                return f"the gradient of {name}.{own} is not finite"
    student.zero_grad(set_to_none=True)
    if lost:
        # A layer whose result the original does not use gets none there either.
        _backward(teacher, x)
        for name in list(lost):
            weight: Any = teacher.get_submodule(name).weight
            if weight.grad is None:
                del lost[name]
        teacher.zero_grad(set_to_none=True)
    return next(iter(lost.values()), None)


def _backward(model: nn.Module, x: Tensor) -> Any:
    """Return the outputs in training mode, after computing all gradients."""
    output = model.train()(x)
    # Linear in the output, with unequal weights: a plain sum is constant after a norm.
    total: Any = sum((torch.randn_like(t) * t).sum() for t in _tensors(output))
    if not isinstance(total, Tensor):
        raise RuntimeError("no output has a gradient")
    total.backward()
    model.eval()
    return output


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(tensor.isfinite().all())


def _real(case: Case, x: Tensor, build: Build) -> str | None:
    """Check everything with values, at the smallest size that the original accepts."""
    torch.manual_seed(0)
    teacher = build(case).eval()
    for size in _small_sizes(tuple(x.shape[2:])):
        image = torch.randn(1, x.shape[1], *size)
        try:
            _run(copy.deepcopy(teacher).train(), torch.cat([image, image]))
        except Exception:
            continue
        break
    student = convert(teacher, example_inputs=image)
    wrong = _train(teacher, student, torch.cat([image, torch.randn_like(image)]), None)
    if wrong is not None:
        return wrong
    before = tree_leaves(_run(student, image))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.safetensors")
        save(student, path)
        after = tree_leaves(_run(load(path, model=teacher), image))
    for one, other in zip(before, after, strict=True):
        if isinstance(one, Tensor):
            if not bool(one.isfinite().all()):
                return "its output is not finite"
            if not torch.equal(one, other):
                return "its output differs after save and load"
    return None


# Image sizes


def _default_sizes(case: Case, model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield shapes (1, C, *spatial) to try, the network's default first."""
    if case.shape is not None:
        yield case.shape
        return
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        yield (1, *config["input_size"])
    for side in _SQUARE:
        yield (1, 3, side, side)


def _other_sizes(size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield sizes other than a network's default, odd ones first."""
    for height, width in _OTHER:
        other = (*size[:-2], height, width)
        if other != size:
            yield other


def _small_sizes(size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield sizes up to a network's default, small ones first; a larger one comes last.

    Some networks need more for training (Inception v3's second classifier).
    """
    for side in _SMALL:
        if side < size[-1]:
            yield (*size[:-2], side, side)
    yield size
    yield (*size[:-2], 320, 320)
