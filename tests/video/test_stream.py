"""Streams of frames: outputs equal the packed network's, errors leave the state as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError, ModelError
from binarize.kernels import native
from binarize.lower.program import PackedPrograms
from binarize.nn import BinaryLayer
from binarize.video import layer as layers

KERNELS = pytest.mark.skipif(
    native.status().active == "reference", reason="plain torch keeps nothing"
)


class Net(nn.Module):
    """3x3, stride 2, grouped, 1x1 and transposed layers, a skip connection, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.same = nn.Conv2d(32, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=2)
        self.point = nn.Conv2d(64, 48, 1)
        self.up = nn.ConvTranspose2d(48, 32, 2, stride=2)
        self.join = nn.Conv2d(64, 24, 3, padding=1)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = F.relu(self.same(F.relu(self.stem(x))))
        b = F.relu(self.grouped(F.relu(self.down(a))))
        c = self.up(F.relu(self.point(b)))[..., : a.shape[2], : a.shape[3]]
        d = F.relu(self.join(torch.cat([a, c], 1)))
        return self.head(d), b.mean((2, 3))


def student() -> nn.Module:
    torch.manual_seed(0)
    network = binarize.convert(Net(), example_inputs=torch.randn(1, 3, 16, 16)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BinaryLayer):
                module.weight.normal_()
    return network


@pytest.fixture(scope="module")
def packed() -> Any:
    return binarize.pack(student())


def video(size: tuple[int, int] = (17, 22), samples: int = 1, frames: int = 6) -> list[Tensor]:
    """A square that moves over a still scene; the third frame repeats the second."""
    draw = torch.Generator().manual_seed(1)
    scene = torch.randn(samples, 3, *size, generator=draw)
    made = []
    for i in range(frames):
        x = scene.clone()
        at = 2 * (i if i < 2 else i - 1)
        x[:, :, 3:9, at : at + 6] += 1.5
        made.append(x)
    return made


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("size", [(17, 22), (16, 16)])
@pytest.mark.parametrize("measure", [False, True])
def test_outputs_are_those_of_each_frame_alone(
    packed: Any, size: tuple[int, int], samples: int, measure: bool
) -> None:
    stream = binarize.Stream(packed, measure=measure)
    for x in video(size, samples, 12):
        for got, wanted in zip(stream(x), packed(x), strict=True):
            assert torch.equal(got, wanted)


@KERNELS
def test_the_report_says_what_was_saved(packed: Any) -> None:
    stream = binarize.Stream(packed, measure=False)
    assert stream.report().frames == 0
    assert stream.report().saved == 0
    frames = video()
    for x in frames[:2]:
        stream(x)
    first = stream.report()
    stream(frames[2])
    found = stream.report()
    assert [row.name for row in found.layers] == ["same", "down", "grouped", "point", "up", "join"]
    operations = {row.name: row.operations for row in found.layers}
    assert operations["same"] == 17 * 22 * 32 * 32 * 9
    assert operations["down"] == 9 * 11 * 64 * 32 * 9
    assert operations["grouped"] == 9 * 11 * 64 * 32 * 9
    assert operations["up"] == 9 * 11 * 4 * 48 * 32
    for row, before in zip(found.layers, first.layers, strict=True):
        assert (row.frames, row.streamed, before.streamed) == (3, 2, 1)
        assert row.kept + row.corrected + row.recounted == pytest.approx(1)
        # The third frame is the second: it changes nothing and takes nothing.
        assert row.saved == pytest.approx((2 * before.saved + 1) / 3)
        assert row.changed == pytest.approx(before.changed / 2)
        assert row.bytes > 0
    total = sum(operations.values())
    saved = sum(row.saved * row.operations for row in found.layers) / total
    assert found.saved == pytest.approx(saved)
    assert json.loads(json.dumps(found.to_dict()))["frames"] == 3
    lines = str(found).splitlines()
    assert "Net, 3 frames, exact: " in lines[0]
    assert "of bit operations saved" in lines[0]
    assert len(lines) == 2 + len(found.layers)


@KERNELS
def test_layers_that_do_not_pay_run_as_usual(packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {"streamed": 1}
    firsts: list[bool] = []

    def timed(call: Any, *arguments: Any) -> Any:
        firsts.append(call is layers.unit)
        return (10 if firsts[-1] else fast["streamed"]), call(*arguments)

    monkeypatch.setattr(layers, "_timed", timed)
    monkeypatch.setattr(layers, "_HOPELESS", 1.0)
    monkeypatch.setattr(layers, "_WAIT", 10)
    frames = video(frames=40)
    stream = binarize.Stream(packed)
    for x in frames[:8]:
        stream(x)
    assert all(row.streamed == 7 and row.bytes for row in stream.report().layers)
    # On each frame one way is timed, the ways in turn: what ran before warms the caches.
    count = len(stream.report().layers)
    assert firsts == ([True] * count + [False] * count) * 3
    fast["streamed"] = 20
    stream = binarize.Stream(packed)
    for x in frames[:10]:
        stream(x)
    assert all(row.streamed == 6 and not row.bytes for row in stream.report().layers)
    fast["streamed"] = 1
    for x in frames[10:30]:
        assert torch.equal(stream(x)[0], packed(x)[0])
    # Checked again, they pay.
    assert all(row.streamed > 6 and row.bytes for row in stream.report().layers)


@KERNELS
def test_a_tolerance_saves_more_and_is_not_exact(packed: Any) -> None:
    exact = binarize.Stream(packed, measure=False)
    lossy = binarize.Stream(packed, measure=False, tolerance=0.2)
    differs = False
    for x in video(frames=10):
        differs |= not torch.equal(exact(x)[0], lossy(x)[0])
    assert differs
    assert lossy.report().saved > exact.report().saved
    assert "tolerance 0.2" in str(lossy.report())
    still = video()[0]
    assert torch.equal(binarize.Stream(packed, tolerance=0.2)(still)[0], packed(still)[0])


def test_a_refused_frame_changes_nothing(packed: Any) -> None:
    frames = video()
    stream = binarize.Stream(packed, measure=False)
    for wrong in (torch.zeros(0, 3, 17, 22), torch.zeros(1, 3, 17, 22, device="meta")):
        with pytest.raises(BinarizeError):
            stream(wrong)
    stream(frames[0])
    before = stream.report()
    for wrong in (
        torch.randn(1, 3, 16, 22),
        torch.randn(2, 3, 17, 22),
        torch.randn(0, 3, 17, 22),
        frames[1].double(),
        frames[1].to("meta"),
    ):
        with pytest.raises(BinarizeError) as caught:
            stream(wrong)
        assert "\n" not in str(caught.value)
        assert stream.report() == before
    with pytest.raises(
        BinarizeError,
        match=r"^frame='1x3x16x22 float32': must be like the frames before, 1x3x17x22 float32; "
        r"call reset\(\) where another video begins$",
    ):
        stream(torch.randn(1, 3, 16, 22))
    with pytest.raises(
        BinarizeError,
        match="^frame='0x3x17x22': must have at least one sample and pixel; skip it$",
    ):
        stream(torch.randn(0, 3, 17, 22))
    with pytest.raises(
        BinarizeError, match=r"^frame='meta': streams run on the CPU; give frame.cpu\(\)$"
    ):
        stream(frames[1].to("meta"))
    for x in frames[1:]:
        assert torch.equal(stream(x)[0], packed(x)[0])
    assert stream.report().frames == len(frames)


def test_a_network_that_is_not_packed_is_refused(packed: Any) -> None:
    network: Any = Net()
    with pytest.raises(
        ModelError,
        match=r"^network='Net': a stream runs a packed network; pack it first: "
        r"binarize.pack\(network\)$",
    ):
        binarize.Stream(network)
    for tolerance in (-0.1, 1, float("nan")):
        with pytest.raises(BinarizeError, match="^tolerance=.*must be a share of a pixel's chan"):
            binarize.Stream(packed, tolerance=tolerance)


def test_a_network_without_program_is_refused() -> None:
    class Reads(Net):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y if y[1].sum() > -1e9 else y[0]  # reads a value

    torch.manual_seed(0)
    network = binarize.convert(Reads(), example_inputs=torch.randn(1, 3, 16, 16)).eval()
    packed = binarize.pack(network)
    stream = binarize.Stream(packed)
    with (
        pytest.warns(binarize.errors.SlowWarning),
        pytest.raises(
            ModelError,
            match="^network='PackedNetwork': it runs module by module, without a program",
        ),
    ):
        stream(video()[0])
    assert stream.report().frames == 0


def test_reset_begins_another_video(packed: Any) -> None:
    stream = binarize.Stream(packed, measure=False)
    for size in ((17, 22), (16, 16), (17, 22)):
        for x in video(size, frames=3):
            assert torch.equal(stream(x)[0], packed(x)[0])
        assert stream.report().frames == 3
        stream.reset()
        assert stream.report().frames == 0
    assert repr(stream) == "Stream(frames=0, tolerance=0)"


def test_frames_in_another_memory_order_continue_the_video(packed: Any) -> None:
    stream = binarize.Stream(packed, measure=False)
    for i, x in enumerate(video()):
        given = x.contiguous(memory_format=torch.channels_last) if i % 2 else x
        torch.testing.assert_close(stream(given)[0], packed(x)[0], rtol=0, atol=0)
    assert stream.report().frames == 6


def test_other_values_of_the_network_begin_anew() -> None:
    packed = binarize.pack(student())
    stream = binarize.Stream(packed, measure=False)
    frames = video()
    stream(frames[0])
    state = packed.state_dict()
    packed.load_state_dict(
        {k: v.flip(0) if v.is_floating_point() and v.dim() == 1 else v for k, v in state.items()}
    )
    for x in frames:
        assert torch.equal(stream(x)[0], packed(x)[0])


def test_networks_from_files(packed: Any, tmp_path: Path) -> None:
    frames = video()
    binarize.save(student(), tmp_path / "bits.safetensors")
    ready = binarize.pack(student(), frames[0])
    binarize.save(ready, tmp_path / "programs.safetensors")
    programs = binarize.load(tmp_path / "programs.safetensors")
    assert isinstance(programs, PackedPrograms)
    for network in (
        binarize.load(tmp_path / "bits.safetensors", model=Net(), packed=True),
        programs,
    ):
        stream = binarize.Stream(network, measure=False)
        for x in frames:
            assert torch.equal(stream(x)[0], network(x)[0])
        assert len(stream.report().layers) == 6
    other = binarize.Stream(programs)
    with pytest.raises(ModelError, match="this file holds programs for"):
        other(torch.randn(1, 4, 17, 22))


def test_grad_mode_and_inference_mode_do_not_matter(packed: Any) -> None:
    stream = binarize.Stream(packed, measure=False)
    for i, x in enumerate(video()):
        with torch.inference_mode(i % 2 == 1):
            y = stream(x)[0]
        assert not y.requires_grad
        assert torch.equal(y, packed(x)[0])
