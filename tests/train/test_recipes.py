"""Recipes: files that say how to train, the same from Python and from a shell."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from binarize.cli import main
from binarize.data import Scenes, balanced_weights
from binarize.errors import BinarizeError
from binarize.train import DepthDistillation, Segmentation, SegmentationDistillation, Trainer
from binarize.train import trainer as module
from binarize.train.recipes import DEFAULT, load_recipe, recipe_files, validate_recipe

TAKEN = ("epochs", "lr", "weight_decay", "latent_weight_decay", "warmup", "balance")


def network(classes: int = 6) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, classes, 1))


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\npurpose = "test"\n{text}', encoding="utf-8")
    return path


def test_all_bundled_recipes_are_good_and_told() -> None:
    assert DEFAULT in recipe_files()
    for name in recipe_files():
        assert validate_recipe(name) == []
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.purpose
        assert recipe.source
        assert recipe.command.startswith("binarize train ")
        assert "mIoU" in recipe.result
        # The command is the recipe: it is the default, or asked for.
        assert (name == DEFAULT) != (f"--recipe {name}" in recipe.command)
        assert set(recipe.training) == {*TAKEN, "batch_size"}


def test_the_default_is_the_best_that_was_measured() -> None:
    recipe = load_recipe()
    assert recipe.training["lr"] == 0.004
    assert recipe.training["balance"] == 0.5
    assert recipe.distillation["segmentation"]["schedule"] == "constant"


@pytest.mark.parametrize("recipe", [None, "plain-dense", "file"])
def test_python_and_the_shell_train_alike(
    recipe: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the trainer is when nothing is said, and what the command line makes of it."""
    given: Any = recipe
    if recipe == "file":
        given = write(tmp_path, "[training]\nlr = 0.5\n[distillation.segmentation]\nweight = 2.0\n")
    made: list[tuple[Trainer, Any]] = []

    def fit(self: Trainer, *loaders: Any) -> Any:
        made.append((self, self.recipe.make_distillation(Segmentation(6).distillation())))
        raise BinarizeError("stop", 0, "here", "now")

    monkeypatch.setattr(module.Trainer, "fit", fit)
    words = [] if given is None else ["--recipe", str(given)]
    line = ["train", "--model", "demo:UNet", "--model-arg", "widths=[8,16]", "--data", "scenes",
            "--count", "16", "--size", "32x24", "--quiet", *words]  # fmt: skip
    assert main([*line, "--output", str(tmp_path / "out")]) == 1
    with pytest.raises(BinarizeError):
        Trainer(network(), **({} if given is None else {"recipe": given})).fit(None)
    (shell, shell_loss), (python, python_loss) = made
    for name in inspect.signature(Trainer).parameters:
        if hasattr(python, name) and name not in ("student", "output_dir", "overwrite", "settings"):
            assert getattr(shell, name) == getattr(python, name), name
    assert shell._distillation is None is python._distillation
    assert vars(shell_loss) == vars(python_loss)
    assert python.lr == {None: 0.004, "plain-dense": 0.001, "file": 0.5}[recipe]
    assert python_loss.weight == (2.0 if recipe == "file" else 1.0)
    assert python_loss.schedule == ("cosine" if recipe == "plain-dense" else
                                    "constant" if recipe is None else "cosine")  # fmt: skip


def test_explicit_arguments_win(tmp_path: Path) -> None:
    values: dict[str, Any] = {"epochs": 3, "lr": 0.1, "weight_decay": 0.2, "warmup": 0.4,
                              "latent_weight_decay": 0.3, "balance": 0.0}  # fmt: skip
    assert set(values) == set(TAKEN)
    run = Trainer(network(), **values)
    assert {name: getattr(run, name) for name in TAKEN} == values
    recipe = load_recipe(write(tmp_path, "[training]\nlr = 0.3\nepochs = 7\n"))
    assert Trainer(network(), recipe=recipe).epochs == 7
    assert Trainer(network(), recipe=recipe, epochs=1).epochs == 1
    # What a file leaves out is as in the default.
    assert Trainer(network(), recipe=recipe).warmup == load_recipe().training["warmup"]


def test_settings_of_the_distillation() -> None:
    recipe = load_recipe("cnn-dense")
    loss = recipe.make_distillation(SegmentationDistillation(ignore_index=7))
    assert (loss.schedule, loss.ignore_index) == ("constant", 7)
    assert recipe.make_distillation(DepthDistillation()).schedule == "constant"
    own = object()
    assert recipe.make_distillation(own) is own


def test_classes_are_weighed_by_the_training_data() -> None:
    data = [Scenes(4, (24, 32), seed=seed, task="segmentation") for seed in (0, 1)]
    train, val = (DataLoader(d, 4) for d in data)

    def weights(run: Trainer, loader: Any, *, training: bool = False) -> Any:
        task: Any = run.open_task(loader, training=training)
        return None if task._weights is None else task._weights.tolist()

    run = Trainer(network(), epochs=1, progress=False)
    assert weights(run, val) is None
    expected = balanced_weights(data[0].class_counts(), 0.5).tolist()
    assert weights(run, train, training=True) == pytest.approx(expected)
    assert weights(run, val) == pytest.approx(expected)  # the loss is that of the training
    run = Trainer(network(), epochs=1, progress=False, balance=0)
    assert weights(run, train, training=True) is None
    run = Trainer(network(), epochs=1, progress=False, class_weights=[1.0] * 6)
    assert weights(run, train, training=True) == [1.0] * 6
    run = Trainer(network(), epochs=1, progress=False, task=Segmentation())
    assert weights(run, train, training=True) is None
    run = Trainer(network(), task=Segmentation(6, class_weights="balanced"), progress=False)
    assert weights(run, train, training=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nlr = 0\n", "training.lr=0 must be a number above 0"),
        ("[training]\nlr = nan\n", "training.lr=nan must be a number above 0"),
        ("[training]\nlr = true\n", "training.lr=True must be a number"),
        ("[training]\nepochs = 2.5\n", "training.epochs=2.5 must be a whole number from 1 on"),
        ("[training]\nwarmup = 2\n", "training.warmup=2 must be a number from 0 to 1"),
        ("[training]\nlearning = 1\n", "unknown key training.learning"),
        ("[training]\nwarmupp = 1\n", "unknown key training.warmupp, 'warmup'?"),
        ("training = 3\n", "training must be a table"),
        ("colour = 3\n", "unknown key 'colour'"),
        ("source = 3\n", "source must be a string"),
        ("[distillation.pose]\nweight = 1\n", "unknown table distillation.pose, use one of segm"),
        ("[distillation.depth]\ntrust = 'all'\n", "distillation.depth: .*trust"),
        (
            "[distillation.segmentation]\nweight = -1\n",
            "distillation.segmentation: weight=-1: must",
        ),
    ],
)
def test_mistakes_of_recipes(tmp_path: Path, text: str, message: str) -> None:
    import re

    path = write(tmp_path, text)
    (problem,) = validate_recipe(path)
    assert re.search(message, problem)
    with pytest.raises(BinarizeError, match="recipe=") as caught:
        Trainer(network(), recipe=path)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    text = "[training]\nlearning = 1\nlr = 0\nwarmupp = 1\nepochs = 0\n"
    assert [
        problem.split("=")[0].split(",")[0] for problem in validate_recipe(write(tmp_path, text))
    ] == [
        "unknown key training.learning",
        "training.lr",
        "unknown key training.warmupp",
        "training.epochs",
    ]


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BinarizeError, match="recipe='cnn-dens': no such .*; did you mean 'cnn-d"):
        Trainer(network(), recipe="cnn-dens")
    (tmp_path / "bad.toml").write_text("= 3")
    assert "is not valid TOML" in validate_recipe(tmp_path / "bad.toml")[0]
    assert "cannot be read" in validate_recipe(tmp_path / "none.toml")[0]
    other = write(tmp_path, "", "other").rename(tmp_path / "renamed.toml")
    assert "name is 'other', the file is renamed.toml" in validate_recipe(other)


def test_the_command_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["recipes", "ls", "--json"]) == 0
    assert {r["name"] for r in json.loads(capsys.readouterr().out)} == set(recipe_files())
    assert main(["recipes", "ls"]) == 0
    assert "cnn-dense" in capsys.readouterr().out
    assert main(["recipes", "show", "cnn-dense"]) == 0
    assert capsys.readouterr().out == recipe_files()["cnn-dense"].read_text(encoding="utf-8")
    target = tmp_path / "mine.toml"
    assert main(["recipes", "cp", "cnn-dense", str(target)]) == 0
    assert load_recipe(target).name == "mine"
    assert load_recipe(target).training == load_recipe().training
    assert main(["recipes", "cp", "cnn-dense", str(target)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["recipes", "validate", str(target), "float-dense"]) == 0
    target.write_text('name = "mine"\n')
    assert main(["recipes", "validate", str(target)]) == 1
    assert "purpose is missing" in capsys.readouterr().out
    assert main(["recipes", "show", "nothing"]) == 1


def test_zero_turns_off_what_can_be_off(tmp_path: Path) -> None:
    off = ("weight_decay", "latent_weight_decay", "warmup", "balance")
    text = "[training]\n" + "".join(f"{name} = 0\n" for name in off)
    run = Trainer(network(), recipe=load_recipe(write(tmp_path, text)))
    assert [getattr(run, name) for name in off] == [0] * 4


def test_only_pixels_are_balanced() -> None:
    class Counted(Dataset[Any]):
        """Images with one label each, which are not the classes of pixels."""

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return torch.randn(3, 8, 8), index

        def class_counts(self) -> Any:
            raise AssertionError("it is asked for counts of pixels")

    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    run = Trainer(net, task="classification", epochs=1, balance=0.5, progress=False)
    assert math.isfinite(run.fit(DataLoader(Counted(), 4))[0]["loss"])
