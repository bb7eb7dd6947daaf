"""From one trained float network to trained networks along the frontier."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from binarize.budget import Budget, plan
from binarize.errors import BinarizeError
from binarize.file import float_contents, load, save
from binarize.file.container import write_file
from binarize.frontier.measure import Judge, Trained, measure
from binarize.graph.model_input import deepcopy_model, unwrap_model
from binarize.latency import Profile, profile
from binarize.latency.measure import machine
from binarize.policy import load_policy, policies
from binarize.policy.match import Overrides
from binarize.prepare import prepare_student
from binarize.report import Frontier, Sensitivity
from binarize.sensitivity.measure import sensitivity
from binarize.train import Task, Trainer
from binarize.train.batches import batch_image
from binarize.writing import write_json

__all__ = ["POINTS", "Choice", "budgets_of", "frontier", "limit_latency", "slug"]

POINTS = ("bidense", "deploy", "5%", "7%", "10%")
"""The points that are trained unless others are given: policies, and budgets of bytes."""
_LOG = logging.getLogger("binarize.frontier")
# What the function itself gives to the trainer.
_OWN = ("student", "teacher", "task", "output_dir", "resume", "overwrite")


def frontier(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    output_dir: str | Path,
    *,
    test_loader: Any = None,
    points: Sequence[str] = POINTS,
    policy: str = "deploy",
    overrides: Overrides | None = None,
    rivals: Mapping[str, nn.Module] | None = None,
    task: str | Task = "segmentation",
    example_inputs: Tensor | None = None,
    sensitivity_images: int = 32,
    rounds: int = 15,
    engines: bool = True,
    **training: Any,
) -> Frontier:
    """Train networks along the frontier of accuracy, time and size, and measure them side by side.

    Measures sensitivities and latencies where a point needs them, chooses a treatment for each
    layer within each budget, trains each network with the float one as its teacher, and times all
    of them in turns beside the float network in float32, bfloat16 (on processors that have it)
    and, where they are installed, int8 of OpenVINO (with nncf) and ONNX Runtime. What was finished
    is kept in ``output_dir``: the same call goes on where it stopped. ``binarize frontier`` does
    the same for data sets and networks that the command line knows.

    Args:
        model: The trained float network, with one output; it stays unchanged.
        train_loader: As for :meth:`binarize.Trainer.fit`.
        val_loader: The same for validation; sensitivities are measured on its first images.
        output_dir: Folder for everything written: ``sensitivity.json``, ``profile.json``, a rule
            file per budget, a folder per network with its checkpoint, ``metrics.json`` and file,
            and the result's ``frontier.json``, ``.png`` and ``.html``.
        test_loader: The same for the test; points are compared by it if it is given.
        points: Networks to train: names of policies, rule files, and budgets as in
            :func:`binarize.plan`.
        policy: The policy that budgets start from.
        overrides: As in :func:`binarize.plan`, for all points.
        rivals: Other float networks by name, such as narrower ones, which are trained and measured
            alike; trained in place.
        task: As for :class:`binarize.Trainer`.
        example_inputs: The image that is timed, (1, C, H, W); None is the first of ``val_loader``.
        sensitivity_images: How many images sensitivities are measured on.
        rounds: Timed runs of each network.
        engines: Whether OpenVINO and ONNX Runtime take part where they are installed.
        **training: Further arguments of :class:`binarize.Trainer`, such as ``epochs`` and ``lr``.

    Returns:
        The points; print it, or ask it for the ``best`` within a loss.

    Raises:
        BinarizeError: A point is neither a policy nor a budget, a budget cannot be met, the folder
            holds the frontier of another network, or as in :class:`binarize.Trainer`. Nothing
            has been trained then.
    """
    model = unwrap_model(model)
    rivals = dict(rivals or {})
    names = list(dict.fromkeys(points))
    _check(names, rivals, training, sensitivity_images=sensitivity_images, rounds=rounds)
    load_policy(policy)
    budgets = budgets_of(names)
    folder = Path(output_dir).expanduser()
    if example_inputs is None:
        example_inputs = batch_image(next(iter(val_loader)))[:1]
    opened = Trainer(model, task=task, **training).open_task(val_loader)
    _claim(folder, model, policy)
    some = _some(val_loader, sensitivity_images)
    choice = Choice(model, policy, overrides, batch_image(some[0])[:1], folder)
    if budgets:
        _LOG.info("measuring sensitivities on %d images", sensitivity_images)
        choice.measure_sensitivity(
            lambda: sensitivity(
                model, some, task=opened, policy=policy, overrides=overrides, more_bits=["int8"]
            )
        )
    if limit_latency(budgets):
        _LOG.info("measuring latencies")
        choice.measure_latency(example_inputs)
    # All of them, before anything is trained: a budget may be out of reach.
    rules = {name: str(choice.rules(name)) for name in budgets}
    loaders = {"val": val_loader} | ({} if test_loader is None else {"test": test_loader})
    fit = _Fit(model, task, train_loader, loaders, training)
    binarized, trained_rivals = {}, {}
    for number, name in enumerate([*names, *rivals], start=1):
        _LOG.info("network %d of %d: %s", number, len(names) + len(rivals), name)
        place = folder / slug(name)
        if name in rivals:
            trained_rivals[name] = fit.rival(rivals[name], place)
        else:
            given = None if name in rules else overrides
            binarized[name] = fit.student(rules.get(name, name), given, place)
    made = measure(
        deepcopy_model(model),
        example_inputs,
        Judge(opened, loaders, [batch_image(b)[i][None] for b in some for i in range(_length(b))]),
        binarized=binarized,
        rivals=trained_rivals,
        folder=folder,
        label=type(model).__name__,
        rounds=rounds,
        engines=engines,
    )
    made.save(folder)
    return made


def slug(name: str) -> str:
    """Return the name of a point's folder."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", name).strip("_")


def budgets_of(points: Iterable[str]) -> list[str]:
    """Return those that are budgets; the others are policies and rule files.

    Raises:
        BinarizeError: One is neither.
    """
    known = policies()
    found = [name for name in points if name not in known and not name.endswith(".toml")]
    for name in found:
        Budget.parse(name)
    return found


def limit_latency(budgets: Iterable[str]) -> bool:
    """Return whether one of the budgets limits the latency."""
    return any(x.kind.startswith("time") for budget in budgets for x in Budget.parse(budget))


@dataclass
class Choice:
    """Rules within budgets, with what is measured for them; each step is skipped if it is done.

    Attributes:
        model: The float network.
        policy: The policy that budgets start from.
        overrides: As in :func:`binarize.plan`.
        example: An image of the size that the networks are trained on.
        folder: The frontier's folder.
    """

    model: nn.Module
    policy: str
    overrides: Overrides | None
    example: Tensor
    folder: Path

    def measure_sensitivity(self, make: Callable[[], Sensitivity]) -> None:
        """Write ``sensitivity.json``.

        Args:
            make: Measures the layers, in one bit and in 8.
        """
        path = self.folder / "sensitivity.json"
        if not path.exists():
            write_json(path, make().to_dict())

    def measure_latency(
        self,
        example: Tensor,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Write ``profile.json``.

        Args:
            example: The image that is timed.
            tell: Called with rounds done and total rounds.

        Raises:
            BinarizeError: The existing file is from another machine.
        """
        path = self.folder / "profile.json"
        if path.exists():
            Profile.load(path).check(machine())
        else:
            made = profile(
                self.model, example, policy=self.policy, overrides=self.overrides, tell=tell
            )
            made.save(path)

    def rules(self, budget: str) -> Path:
        """Write the rule file that spends a budget, and return it."""
        path = self.folder / f"{slug(budget)}.toml"
        latencies = self.folder / "profile.json"
        if not path.exists():
            made = plan(
                self.model,
                self.policy,
                example_inputs=self.example,
                overrides=self.overrides,
                budget=budget,
                sensitivity=self.folder / "sensitivity.json",
                more_bits=["int8"],
                profile=latencies if latencies.exists() else None,
            )
            made.policy.save(path)
        return path


@dataclass(frozen=True)
class _Fit:
    """Train networks with the float one as their teacher, go on with them, or leave them."""

    model: nn.Module
    task: str | Task
    train_loader: Any
    loaders: Mapping[str, Any]
    training: Mapping[str, Any]

    def student(self, policy: str, overrides: Overrides | None, folder: Path) -> Trained:
        file = folder / "binary.safetensors"
        if not file.exists():
            student = prepare_student(self.model, policy, self.train_loader, overrides=overrides)
            self._train(student, folder, policy=load_policy(policy).to_dict())
            save(student, file)
        return Trained(load(file, model=deepcopy_model(self.model)), _metrics(folder), file)

    def rival(self, network: nn.Module, folder: Path) -> Trained:
        file = folder / "float.safetensors"
        if file.exists():
            network.load_state_dict(load_file(file))
        else:
            self._train(network, folder)
            write_file(file, float_contents(network).entries, {})
        return Trained(network, _metrics(folder), file)

    def _train(self, network: nn.Module, folder: Path, **settings: Any) -> None:
        """Train a network in place and write its metrics."""
        more = {**self.training, "settings": {**self.training.get("settings", {}), **settings}}
        trainer = Trainer(
            network,
            teacher=self.model,
            task=self.task,
            output_dir=folder,
            resume="auto",
            **more,
        )
        trainer.fit(self.train_loader, self.loaders["val"])
        network.eval()
        numbers = {split: trainer.evaluate(loader) for split, loader in self.loaders.items()}
        write_json(folder / "metrics.json", numbers)


def _metrics(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return made


def _claim(folder: Path, model: nn.Module, policy: str) -> None:
    """Make the folder this frontier's, or refuse one that is another's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    basis = {"network": digest.hexdigest(), "policy": load_policy(policy).to_dict()}
    path = folder / "basis.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(path, basis)
    elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(basis)):
        raise BinarizeError(
            "output_dir",
            str(folder),
            "it holds the frontier of another network or policy",
            "give another folder, or empty it",
        )


def _check(
    points: Sequence[str], rivals: Mapping[str, Any], training: Mapping[str, Any], **counts: int
) -> None:
    for name, count in counts.items():
        if count < 1:
            raise BinarizeError(name, count, "must be at least 1", "correct it")
    folders = [slug(name) for name in (*points, *rivals)]
    for name, place in zip((*points, *rivals), folders, strict=True):
        if folders.count(place) > 1:
            raise BinarizeError(
                "rivals" if name in rivals else "points",
                name,
                f"another network has the folder {place!r}, too",
                "choose another name",
            )
    for name in training:
        if name in _OWN:
            raise BinarizeError(name, training[name], "frontier gives it itself", "leave it out")


def _some(loader: Any, count: int) -> list[Any]:
    """Return the first batches of a loader, until they have so many images."""
    batches, seen = [], 0
    for batch in loader:
        batches.append(batch)
        seen += _length(batch)
        if seen >= count:
            break
    return batches


def _length(batch: Any) -> int:
    return len(batch_image(batch))
