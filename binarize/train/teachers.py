"""The networks that a student distils from, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError, ModelError
from binarize.train.batches import each
from binarize.train.checks import check_name
from binarize.train.distillation.stages import Reader
from binarize.train.tasks.multitask import heads
from binarize.train.tasks.protocol import Task

__all__ = ["Teacher", "Teachers", "teachers_by_head"]

Teacher = nn.Module | Sequence[nn.Module]


def teachers_by_head(
    teacher: Teacher | Mapping[str, Teacher] | None, task: Any
) -> dict[str, list[nn.Module]]:
    """Return the teachers of each head; those under "" teach all outputs.

    Args:
        teacher: A network, several, or a mapping of these by head.
        task: The task, for its heads.

    Raises:
        BinarizeError: There is no head of a name.
        ModelError: One of them is not a network, or the task has one head only.
    """
    if teacher is None:
        return {}
    if not isinstance(teacher, Mapping):
        found = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
        for one in found:
            if not isinstance(one, nn.Module):
                rule, remedy = "is not a network", "give an nn.Module, or several"
                raise ModelError("teacher", type(one).__name__, rule, remedy)
        return {"": found} if found else {}
    names = list(heads(task))
    if names == [""]:
        raise ModelError(
            "teacher", list(teacher), f"{task.name} has no heads", "give a network, or a list"
        )
    for name in teacher:
        check_name(names, teacher=name)
    given = {name: teachers_by_head(teacher[name], task) for name in names if name in teacher}
    return {name: found[""] for name, found in given.items() if found}


class Teachers:
    """Teachers in evaluation mode, and their mean prediction for a batch.

    Each network runs once per batch, also if it teaches several heads.

    Args:
        by_head: Their networks by head; those under "" teach all outputs. A network of a head's
            task alone returns its output, another network a mapping with an output of that name.
        task: The student's task.
        autocast: Returns the context of the forward passes.
        reader: Reads the first network's feature maps, or None.
        wrap: Applied to each network (``torch.compile``).
    """

    def __init__(
        self,
        by_head: Mapping[str, Sequence[nn.Module]],
        task: Task,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        reader: Reader | None = None,
        wrap: Callable[[Any], Any] = lambda network: network,
    ) -> None:
        distinct = list(dict.fromkeys(one for some in by_head.values() for one in some))
        self.networks = [(wrap(one), _dtype(one)) for one in distinct]
        self.by_head = {
            head: [distinct.index(one) for one in some] for head, some in by_head.items()
        }
        self.task = task
        self.autocast = autocast
        self.reader = reader

    def __bool__(self) -> bool:
        """Return whether there is a teacher."""
        return bool(self.networks)

    @torch.no_grad()
    def predict(self, image: Tensor, size: tuple[int, int]) -> Any:
        """Return the mean prediction, as the task prepares it; with teachers by head, by head.

        Args:
            image: (N, C, H, W).
            size: Rows and columns of the target.

        Raises:
            ModelError: A teacher does not accept the images, or its output does not fit.
        """
        outputs: list[Any] = []
        for network, dtype in self.networks:
            reading = nullcontext() if self.reader is None or outputs else self.reader.listening()
            taught = image if dtype is None else image.to(dtype)
            with _explained(taught), self.autocast(), reading:
                outputs.append(network(taught))
        found: dict[str, Any] = {}
        for head, numbers in self.by_head.items():
            task: Any = heads(self.task)[head] if head else self.task
            with _explained(image, head):
                predictions = [
                    task.prepare(_part(outputs[number], head), size) for number in numbers
                ]
                found[head] = each(lambda *some: torch.stack(some).mean(0), *predictions)
        return found.get("", found)


def _part(output: Any, head: str) -> Any:
    """Return a head's output, or that of a network which has only that one."""
    return output[head] if head and isinstance(output, Mapping) and head in output else output


@contextmanager
def _explained(image: Tensor, head: str = "") -> Iterator[None]:
    """Name the teacher in the errors of its forward pass and of its output."""
    argument = f"teacher[{head!r}]" if head else "teacher"
    try:
        yield
    except BinarizeError as error:
        raise ModelError(
            argument,
            f"{error.argument}={error.value}",
            error.rule,
            "give a teacher with the same kind of output as the student",
        ) from error
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            argument,
            f"images {tuple(image.shape)}",
            f"does not accept them ({' '.join(str(error).split())[:200]})",
            "give a teacher that accepts the student's images",
        ) from error


def _dtype(network: nn.Module) -> torch.dtype | None:
    """Return the dtype of a network that is not in single precision, else None."""
    found = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    return None if found == torch.float32 else found
