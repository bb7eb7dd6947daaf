"""LightningModules are planned, converted and trained like other networks."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes
from binarize.errors import ModelError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")

# Lightning itself calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*")
X = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


class Net(nn.Module):
    """One residual convolution between the first and the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, Scenes.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.norm(self.conv(x)) + x))


class Lit(lightning.LightningModule):
    """A network inside, as Lightning's users write it."""

    def __init__(self, net: nn.Module, *, log: bool = False, ask: bool = False) -> None:
        super().__init__()
        self.net, self.log_it, self.ask = net, log, ask

    def forward(self, x: Tensor) -> Tensor:
        if self.ask and self.trainer.training:
            x = x + 0
        x = self.net(x)
        if self.log_it:
            self.log("mean", x.mean())
        return x

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch["image"]), batch["mask"].clamp_min(0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Properties(Lit):
    """Properties of Lightning's and other libraries' names, which fail without a trainer."""

    @property
    def example_input_array(self) -> Tensor:
        return torch.zeros(1, 3, 8, 8, device=self.trainer.strategy.root_device)

    @property
    def config(self) -> int:
        return self.trainer.max_epochs

    default_cfg = pretrained_cfg = encoder = config


def fit(module: nn.Module, batches: DataLoader) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, batches)  # fmt: skip


@pytest.fixture(scope="module")
def batches() -> DataLoader:
    return DataLoader(Scenes(4, size=(16, 16), seed=0), batch_size=2)


def actions(plan: binarize.Plan) -> list[tuple[str, str]]:
    def inside(site: str) -> str:
        return site.removeprefix("net.").replace("(root):", "net:")

    return [(inside(d.site), d.action) for d in plan.decisions]


@pytest.mark.parametrize("build", [Lit, Properties, lambda net: Lit(net, log=True)])
def test_a_module_is_planned_as_the_network_inside(build) -> None:
    net = Net()
    module = build(net)
    plan = binarize.plan(module, example_inputs=X)  # and no warning that there is no trainer
    expected = binarize.plan(net, example_inputs=X)
    assert actions(plan) == actions(expected)
    student = binarize.convert(module, example_inputs=X).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning: forward logs to no trainer
        torch.testing.assert_close(
            student(X), binarize.convert(net, example_inputs=X).eval()(X), rtol=0, atol=0
        )
        torch.testing.assert_close(binarize.pack(student)(X), student(X), rtol=1e-4, atol=1e-4)


def test_the_declared_example_is_taken() -> None:
    module = Lit(Net())
    module.example_input_array = torch.zeros(1, 3, 24, 40)
    assert binarize.plan(module).example == ((1, 3, 24, 40),)
    module.example_input_array = {"x": torch.zeros(1, 3, 24, 40)}
    assert binarize.plan(module).layers
    module.example_input_array = torch.zeros(1, 7, 4, 4)  # does not fit
    assert binarize.plan(module).example[0][1] == 3


def test_a_forward_that_needs_the_trainer_is_refused() -> None:
    for example in (None, X):
        with pytest.raises(ModelError) as refused:
            binarize.plan(Lit(Net(), ask=True), example_inputs=example)
        assert str(refused.value).startswith(
            "model='Lit': the forward needs Lightning's trainer, which copies do not have ("
        )
        assert str(refused.value).endswith(
            "; use self.training in it, or give the network that the LightningModule holds"
        )


def test_student_of_a_fitted_module_is_trained_by_lightning(batches: DataLoader) -> None:
    teacher = Lit(Net())
    fit(teacher, batches)
    student = binarize.prepare_student(teacher, "bidense", batches)
    assert teacher._trainer is not None  # it stays as it is
    assert student._trainer is None
    before = student.net.conv.weight.detach().clone()
    fit(student, batches)
    assert isinstance(student.net.conv, binarize.nn.BiConv2d)
    assert not torch.equal(student.net.conv.weight, before)
    student.eval()
    torch.testing.assert_close(binarize.pack(student)(X), student(X), rtol=1e-4, atol=1e-4)


def test_compiling_does_not_tie_a_copy_to_its_original() -> None:
    module = Lit(Net()).eval()
    student = binarize.convert(module, example_inputs=X)
    with torch.no_grad():
        student.net.conv.bias.fill_(0.5)
    expected = student(X)
    student.compile(backend="eager")
    assert module._compiled_call_impl is None
    packed = binarize.pack(student)
    with torch.no_grad():
        student.net.conv.bias.fill_(-0.5)  # a tied copy would see it
    torch.testing.assert_close(packed(X), expected, rtol=1e-4, atol=1e-4)
    module.compile(backend="eager")
    again = binarize.convert(module, example_inputs=X)
    assert again._compiled_call_impl is None
