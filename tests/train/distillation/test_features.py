"""Feature maps as targets: where they are read, what is compared, and that a resumed run agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from binarize import convert
from binarize.data import Scenes
from binarize.errors import BinarizeError, ModelError
from binarize.train import FeatureDistillation, SilentProgress, Trainer
from binarize.train.distillation.features import attention_loss, feature_loss
from binarize.train.distillation.stages import Point, pair_stages, stage_ends


class _Block(nn.Module):
    """A residual block: the sum is nobody's output but its own."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.down = nn.Conv2d(inside, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y) + self.down(x)


class _Net(nn.Module):
    """Two stages down, one up, and a head; ``width`` makes another number of channels."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.one = nn.Sequential(_Block(width, width, 1), _Block(width, width, 1))
        self.two = nn.Sequential(_Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.up = nn.Upsample(scale_factor=2)
        self.merge = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x))
        x = self.two(x)
        x = x * self.pool(x)
        x = self.merge(self.up(x))
        return nn.functional.interpolate(self.head(x), scale_factor=2)


_IMAGE = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def _loader(count: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(Scenes(count, (32, 48), task="segmentation", **options), 4, shuffle=True)


def test_stages_end_where_the_resolution_changes() -> None:
    found = stage_ends(_Net(), _IMAGE)
    # Given to the whole stage, not to a layer inside its first block; the last map before going up.
    assert found[("down", (16, 24))] == Point("two", "input")
    assert found[("down", (8, 12))] == Point("up", "input")
    assert len(found) == 2  # what the head works on is what the output speaks for


def test_a_converted_network_has_the_same_stages() -> None:
    teacher = _Net().eval()
    student = convert(teacher, "bidense", example_inputs=_IMAGE[:1])
    pairs = pair_stages(student, teacher, _IMAGE)
    assert len(pairs) == 2
    assert all(ours == theirs for ours, theirs in pairs)


def test_networks_with_other_names_are_paired_by_size() -> None:
    other = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(),
        nn.Upsample(scale_factor=4), nn.Conv2d(4, 6, 1),
    )  # fmt: skip
    pairs = pair_stages(other, _Net(), _IMAGE)
    assert pairs == [
        (Point("2", "input"), Point("two", "input")),
        (Point("4", "input"), Point("up", "input")),
    ]
    with pytest.raises(ModelError, match="no stages of the same size"):
        pair_stages(nn.Sequential(nn.Conv2d(3, 6, 1)), _Net(), _IMAGE)


def test_the_losses_see_no_scale_but_everything_else() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert feature_loss(x, 7 * x).item() == pytest.approx(0, abs=1e-9)
    assert feature_loss(x, -x).item() == pytest.approx(4, rel=1e-4)
    assert attention_loss(x, -3 * x[:, [2, 0, 1]]).item() == pytest.approx(0, abs=1e-9)
    turned = x.flip(-1)
    assert min(attention_loss(x, turned), feature_loss(x, turned)) > 0.1
    # By hand: attention (1, 3) against (3, 1), over their root mean square, the square root of 5.
    a = torch.tensor([1.0, 3.0]).sqrt().view(1, 1, 1, 2)
    assert attention_loss(a, a.flip(-1)).item() == pytest.approx(4 / 5, rel=1e-4)
    zero = torch.zeros(1, 2, 3, 3, requires_grad=True)
    other = torch.rand(1, 2, 3, 3)
    (feature_loss(zero, other) + attention_loss(zero, other)).backward()
    assert torch.isfinite(zero.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{}, {"attention": 1.0, "features": 0.0}, {"layers": "one,two"}, {"layers": ["merge=two"]}],
)
def test_it_brings_feature_maps_together(settings: dict[str, Any]) -> None:
    teacher, student = _Net(width=6, seed=1), _Net(seed=2)
    term = FeatureDistillation(**settings)
    trainer = Trainer(
        student, teacher=teacher, features=term, epochs=8, lr=1e-2, balance=0, progress=False
    )
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    # Nothing to learn but the feature maps: all labels are ignored, the logits weigh nothing.
    loader = _loader()
    trainer._distillation = lambda ours, theirs, target, done: ours.sum() * 0
    images = torch.stack([loader.dataset[i]["image"] for i in range(8)])
    history = trainer.fit(DataLoader(images, 4))
    assert history[-1]["distillation"] < 0.8 * history[0]["distillation"]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    assert "projections" not in " ".join(student.state_dict())


class _Killed(SilentProgress):
    def epoch(self, record: Any) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_goes_on_with_its_projections(tmp_path: Path) -> None:
    def run(folder: str, **options: Any) -> tuple[Trainer, nn.Module]:
        student = _Net(seed=2)
        made = Trainer(
            student, teacher=_Net(width=6, seed=1), features=FeatureDistillation(attention=0.5),
            epochs=3, lr=1e-2, output_dir=tmp_path / folder, **{"progress": False, **options},
        )  # fmt: skip
        return made, student

    whole, first = run("whole")
    expected = whole.fit(_loader())
    killed, student = run("killed", progress=_Killed())
    with pytest.raises(KeyboardInterrupt):
        killed.fit(_loader())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    resumed, second = run("killed", resume="auto")
    history = resumed.fit(_loader())
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]
    for ours, theirs in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0.0}, "both weights are 0"),
        ({"features": -1.0}, "features=-1.0: must not be negative"),
        ({"schedule": "often"}, "unknown name"),
        ({"layers": "one,,two"}, "names of layers"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BinarizeError, match=message):
        FeatureDistillation(**settings)


def test_layers_are_checked_before_anything_is_trained() -> None:
    student, teacher = _Net(), _Net(seed=1)
    for layers, message in (
        ("nowhere", "nowhere"),
        ("one=three", "teacher='three'|teacher=three"),
        ("pool.x", "has no such layer"),
    ):
        trainer = Trainer(
            student, teacher=teacher, features=FeatureDistillation(layers=layers), progress=False
        )
        with pytest.raises(ModelError, match=message):
            trainer.fit(_loader())
        assert not any(m._forward_hooks for m in (*student.modules(), *teacher.modules()))
    with pytest.raises(BinarizeError, match="needs a teacher"):
        Trainer(student, features=FeatureDistillation())
    with pytest.raises(BinarizeError, match="compiled networks"):
        Trainer(student, teacher=teacher, features=FeatureDistillation(), compile=True)


def test_several_teachers_teach_their_mean() -> None:
    class Fixed(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.full((1, 6, 1, 1), value))

        def forward(self, x: Tensor) -> Tensor:
            return self.value.expand(len(x), 6, *x.shape[-2:])

    seen = []

    def distill(ours: Tensor, theirs: Tensor, target: Any, done: float) -> Tensor:
        seen.append(theirs)
        return ours.sum() * 0

    teachers = [Fixed(1.0), Fixed(5.0)]
    Trainer(
        _Net(), teacher=teachers, epochs=1, distillation=distill, progress=False
    ).fit(_loader(4))  # fmt: skip
    assert seen
    assert all(bool((theirs == 3).all()) for theirs in seen)
    with pytest.raises(ModelError, match="is not a network"):
        Trainer(_Net(), teacher=[_Net(), "other"])  # type: ignore[list-item]
