"""Fifty-five ways to write a network for dense prediction, put together from their parts.

A stand-in for the networks that people have (``binarize coverage --wild``): each is converted,
trained for a step, packed, saved and loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer

SIZE = (32, 40)
W = 8


def conv(cin: int, cout: int, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False, **more)


def cbr(cin: int, cout: int, kernel: int = 3, act: Any = nn.ReLU, **more: Any) -> nn.Sequential:
    return nn.Sequential(conv(cin, cout, kernel, **more), nn.BatchNorm2d(cout), act())


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


# Stems: an image becomes W channels at half the size


class Strided(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*cbr(3, W, stride=2))


class Pooled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*cbr(3, W, 7, nn.SiLU), nn.MaxPool2d(3, 2, 1))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, W, 2, 2), nn.GroupNorm(2, W)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class SpaceToDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, W, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(F.pixel_unshuffle(x, 2)), 0.1)


class Normalized(nn.Module):
    """The image is normalised inside, and sliced as YOLO's focus does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.conv = cbr(12, W)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.5
        parts = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.conv(torch.cat(parts, dim=1))


STEMS = [Strided, Pooled, Patches, SpaceToDepth, Normalized]


# Blocks: C to C channels, size kept


class PlainBlock(nn.Sequential):
    def __init__(self, c: int) -> None:
        super().__init__(*cbr(c, c), *cbr(c, c))


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b, self.relu = cbr(c, c), cbr(c, c, act=nn.Identity), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        y += x
        return self.relu(y)


class Bottleneck(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            conv(c, c // 2, 1),
            conv(c // 2, c // 2),
            conv(c // 2, c, 1),
        )
        self.bn1, self.bn2, self.bn3 = (
            nn.BatchNorm2d(c // 2),
            nn.BatchNorm2d(c // 2),
            nn.BatchNorm2d(c),
        )
        self.downsample = nn.Sequential(conv(c, c, 1), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Dense(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(cbr(c + 4 * i, 4) for i in range(3))
        self.fuse = conv(c + 12, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fuse(torch.cat(features, 1))


class RRDB(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(c, 4, 3, 1, 1), nn.Conv2d(c + 4, c, 3, 1, 1)])
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for first, second in self.parts:
            z = F.leaky_relu(first(y), 0.2)
            y = second(torch.cat((y, z), 1)) * 0.2 + y
        return y * 0.2 + x


class SqueezeExcite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = cbr(c, c)
        self.fc = nn.Sequential(nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * self.fc(y.mean((2, 3), keepdim=True))


class Inverted(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *cbr(c, 2 * c, 1, nn.ReLU6),
            *cbr(2 * c, 2 * c, 3, nn.Hardswish, groups=2 * c),
            *cbr(2 * c, c, 1, nn.Identity),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Shuffle(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*cbr(c // 2, c // 2, 1), *cbr(c // 2, c // 2))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ConvNeXt(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.up, self.down = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.gamma = nn.Parameter(torch.full((c,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class Split(nn.Module):
    """Parallel branches, as in Inception and CSP networks."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.one, self.three = cbr(c, c // 2, 1), nn.Sequential(*cbr(c, 4, 1), *cbr(4, c // 2))
        self.act = nn.PReLU(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.cat([self.one(x), self.three(x)], dim=1)) + x


class PreActivation(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(c), nn.InstanceNorm2d(c, affine=True)])
        self.convs = nn.ModuleList([conv(c, c), conv(c, c)])
        self.drop = nn.Dropout2d(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, layer in zip(self.norms, self.convs, strict=True):
            y = layer(self.drop(norm(y).relu()))
        return torch.add(x, y)


BLOCKS = [
    *(PlainBlock, Residual, Bottleneck, Dense, RRDB, SqueezeExcite, Inverted, Shuffle),
    *(ConvNeXt, Split, PreActivation),
]


# Decoders: features of three levels (W, 2W, 2W channels) become one or more of W channels


class UNetDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two, self.one = cbr(4 * W, 2 * W), cbr(3 * W, W)

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        x = self.two(torch.cat([up(f[2], f[1]), f[1]], 1))
        return [self.one(torch.cat([up(x, f[0]), f[0]], 1))]


class TransposedDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ups = nn.ModuleList(
            [nn.ConvTranspose2d(2 * W, 2 * W, 2, 2), nn.ConvTranspose2d(2 * W, W, 4, 2, 1)]
        )
        self.convs = nn.ModuleList([cbr(4 * W, 2 * W), cbr(2 * W, W)])

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        x = f[-1]
        for layer, join, skip in zip(self.ups, self.convs, f[-2::-1], strict=True):
            x = join(torch.cat((layer(x), skip), dim=1))
        return [x]


class FPN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, W, 1) for c in (W, 2 * W, 2 * W))
        self.smooth = nn.ModuleList(nn.Conv2d(W, W, 3, padding=1) for _ in range(3))

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        maps = [layer(x) for layer, x in zip(self.lateral, f, strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2.0)
        return [layer(x) for layer, x in zip(self.smooth, maps, strict=True)]


class ASPP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * W, W, 3, padding=d, dilation=d), nn.BatchNorm2d(W), nn.ReLU()
            )
            for d in (1, 2, 3)
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * W, W, 1), nn.ReLU())
        self.project, self.low = cbr(4 * W, W, 1), cbr(2 * W, W)

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        x = f[2]
        parts = [branch(x) for branch in self.branches]
        parts.append(self.pooled(x).expand(-1, -1, *x.shape[2:]))
        x = self.project(torch.cat(parts, 1))
        return [self.low(torch.cat([up(x, f[0]), f[0]], 1))]


class CostVolume(nn.Module):
    """Features against themselves, shifted; the volume is filled part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Sequential(nn.Conv3d(2 * W, W, 3, padding=1), nn.BatchNorm3d(W), nn.ReLU())
        self.after = nn.Sequential(nn.Conv3d(W, W, 3, padding=1), nn.ReLU())

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        left, shifts = f[0], 3
        right = left.flip(3)
        n, c, h, w = left.shape
        volume = left.new_zeros(n, 2 * c, shifts, h, w)
        for i in range(shifts):
            volume[:, :c, i, :, i:] = left[..., i:]
            volume[:, c:, i, :, i:] = right[..., : w - i]
        x = self.after(self.volume(volume))
        return [(x * x.mean(1, keepdim=True).softmax(2)).sum(2)]


class SideOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(c, W, 1) for c in (W, 2 * W, 2 * W))
        self.fuse = nn.Conv2d(3 * W, W, 1)

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        sides = [up(side(x), f[0]) for side, x in zip(self.sides, f, strict=True)]
        return [self.fuse(torch.cat(sides, 1)), *sides]


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.shuffle = conv(2 * W, 16 * W, 1), nn.PixelShuffle(4)
        self.after = cbr(2 * W, W)

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        return [self.after(torch.cat([self.shuffle(self.expand(f[2])), f[0]], 1))]


class Iterative(nn.Module):
    """The same update again and again, with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.gate, self.new = (
            cbr(2 * W, W, 1),
            nn.Conv2d(2 * W, W, 3, padding=1),
            cbr(2 * W, W),
        )

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        state, context = f[0], up(self.reduce(f[2]), f[0])
        states = []
        for _ in range(3):
            both = torch.cat([state, context], 1)
            gate = torch.sigmoid(self.gate(both))
            state = (1 - gate) * state + gate * torch.tanh(self.new(both))
            states.append(state)
        return states[::-1]


class Attention(nn.Module):
    """Attention gates, and attention of positions on the coarsest level."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(2 * W, 6 * W, 1), nn.Conv2d(2 * W, W, 1)
        self.gate, self.out = nn.Sequential(nn.Conv2d(W, 1, 1), nn.Sigmoid()), cbr(2 * W, W)

    def forward(self, f: list[Tensor]) -> list[Tensor]:
        x = f[2]
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x)
        x = up(F.relu(self.proj(x)), f[0])
        return [self.out(torch.cat([x, f[0] * self.gate(x)], 1))]


DECODERS = [
    *(UNetDecoder, TransposedDecoder, FPN, ASPP, CostVolume, SideOutputs, PixelShuffle),
    *(Iterative, Attention),
]


# Heads: what comes out


class Result(NamedTuple):
    out: Tensor
    scale: Tensor


@dataclass
class Answer:
    logits: Tensor
    feats: tuple[Tensor, ...]


class OneConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(W, 4, 1)

    def forward(self, maps: list[Tensor], image: Tensor) -> Any:
        return up(self.out(maps[0]), image)


class Named(nn.Module):
    """Several tasks in a dictionary; an auxiliary one in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                k: nn.Sequential(*cbr(W, W), nn.Conv2d(W, n, 1))
                for k, n in {"seg": 3, "depth": 1}.items()
            }
        )
        self.aux = nn.Conv2d(W, 3, 1)

    def forward(self, maps: list[Tensor], image: Tensor) -> Any:
        out = {name: up(head(maps[0]), image) for name, head in self.heads.items()}
        out["depth"] = F.softplus(out["depth"])
        if self.training:
            out["aux"] = self.aux(maps[-1])
        return out


class Shared(nn.Module):
    """One head for all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.cls, self.box = (
            cbr(W, W),
            nn.Conv2d(W, 3, 3, padding=1),
            nn.Conv2d(W, 4, 3, padding=1),
        )
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, maps: list[Tensor], image: Tensor) -> Any:
        outs = []
        for i, x in enumerate(maps[:3]):
            x = self.tower(x)
            outs.append((self.cls(x), torch.exp(self.box(x) * self.scale[i]).clamp(max=50)))
        return outs


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = conv(W, 12), nn.PixelShuffle(2)

    def forward(self, maps: list[Tensor], image: Tensor) -> Any:
        return (image + self.out(self.body(maps[0]))).clamp(-4, 4)


class Soft(nn.Module):
    """Probabilities, and a number for the image."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.fc = cbr(W, W, act=nn.ELU), nn.Conv2d(W, 3, 1), nn.Linear(W, 2)

    def forward(self, maps: list[Tensor], image: Tensor) -> Any:
        x = self.hidden(maps[0])
        return Result(
            self.out(x).softmax(1), self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        )


class Flagged(nn.Module):
    """An optional mask and a flag, of the head and of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.mid, self.out = conv(W, W), nn.Conv2d(W, 2, 1)

    def forward(
        self, maps: list[Tensor], image: Tensor, mask: Tensor | None = None, feats: bool = False
    ) -> Any:
        x = F.relu(self.mid(maps[0]) + maps[0])
        out = torch.sigmoid(self.out(x))
        if mask is not None:
            out = out * mask
        return (out, x) if feats else out


class Objects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(W, 2, 3, padding=1)

    def forward(self, maps: list[Tensor], image: Tensor) -> Any:
        return Answer(self.out(maps[0]), tuple(maps))


HEADS = [OneConv, Named, Shared, SuperResolution, Soft, Flagged, Objects]


class Style(nn.Module):
    def __init__(self, stem: Any, block: Any, decoder: Any, head: Any) -> None:
        super().__init__()
        self.stem = stem()
        self.levels = nn.ModuleList(
            [
                block(W),
                nn.Sequential(*cbr(W, 2 * W, stride=2), block(2 * W)),
                nn.Sequential(nn.AvgPool2d(2), *cbr(2 * W, 2 * W, 1)),
            ]
        )
        self.decoder, self.head = decoder(), head()

    def features(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for level in self.levels:
            features.append(level(features[-1]))
        return features[1:]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.decoder(self.features(x)), x)


class FlagStyle(Style):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, feats: bool = False) -> Any:
        maps = self.decoder(self.features(x))
        return self.head(maps, x, mask=mask, feats=feats)


def styles() -> list[tuple[Any, Any, Any, Any]]:
    # The numbers of parts have no common divisor: these meet in as many ways, all of the stems
    # with all of the blocks.
    lists: tuple[list[Any], ...] = (STEMS, BLOCKS, DECODERS, HEADS)
    return [tuple(parts[i % len(parts)] for parts in lists) for i in range(55)]  # type: ignore[misc]


def plain(output: Any) -> Any:
    """An output with what a test can compare in place of objects."""
    return {"Answer": vars(output)} if isinstance(output, Answer) else output


# Volumes that are written part by part, and objects, are no programs.
@pytest.mark.filterwarnings("ignore:this packed network runs module by module")
@pytest.mark.parametrize("style", styles(), ids=lambda s: "-".join(part.__name__ for part in s))
def test_style(style: Any, tmp_path: Path, lab: SimpleNamespace) -> None:
    torch.manual_seed(0)
    flagged = style[-1] is Flagged
    net = (FlagStyle if flagged else Style)(*style).eval()
    x = torch.randn(2, 3, *SIZE)
    calls: list[dict[str, Any]] = [{}]
    if flagged:
        calls += [{"feats": True}, {"mask": torch.rand(2, 1, SIZE[0] // 2, SIZE[1] // 2)}]

    def run(model: Callable[..., Any], **given: Any) -> Any:
        return plain(model(x, **given))

    student = binarize.convert(net, example_inputs=x)
    assert any(isinstance(module, BinaryLayer) for module in student.modules())
    assert not student.binarize_plan.opaque

    # One step of training.
    output = run(student.train())
    assert lab.shapes(output) == lab.shapes(run(net.train()))
    loss: Any = sum((torch.randn_like(t) * t).sum() for t in lab.flat(output))
    loss.backward()
    net.eval()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    student.eval()

    binarize.save(student, tmp_path / "net.safetensors")
    loaded = binarize.load(tmp_path / "net.safetensors", model=net).eval()
    packed = binarize.pack(student)
    with torch.no_grad():
        for given in calls:
            expected = run(student, **given)
            assert lab.shapes(expected) == lab.shapes(run(net, **given))
            for one, other in zip(lab.flat(run(loaded, **given)), lab.flat(expected), strict=True):
                assert torch.equal(one, other)
            for one, other in zip(lab.flat(run(packed, **given)), lab.flat(expected), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
