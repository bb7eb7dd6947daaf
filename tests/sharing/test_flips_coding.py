"""Flips as bytes: lossless, near the entropy, and damaged ones are refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from binarize.file.tasks import decode_flips, encode_flips


def bits(length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), dtype=torch.uint8, generator=generator)


@given(st.integers(1, 700), st.floats(0, 1), st.integers(0, 99))
def test_round_trip(length: int, share: float, seed: int) -> None:
    base = bits(length, seed)
    chosen = torch.rand(8 * length, generator=torch.Generator().manual_seed(seed + 1)) < share
    flips = (chosen.view(-1, 8).to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(1)
    changed = base ^ flips.to(torch.uint8)
    assert torch.equal(decode_flips(encode_flips(changed, base), base), changed)


@pytest.mark.parametrize("place", [0, 1, 254, 255, 256, 510, 511, 7_999])
def test_distances_around_a_byte(place: int) -> None:
    base = bits(1000)
    changed = base.clone()
    changed[place // 8] ^= 1 << (place % 8)
    coded = encode_flips(changed, base)
    assert len(coded) < 60
    assert torch.equal(decode_flips(coded, base), changed)


@pytest.mark.parametrize("share", [0.001, 0.005, 0.01, 0.05, 0.2])
def test_size_is_near_the_entropy(share: float) -> None:
    count = 200_000
    base = bits(count // 8)
    chosen = torch.rand(count, generator=torch.Generator().manual_seed(2)) < share
    flips = (chosen.view(-1, 8).to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(1)
    size = len(encode_flips(base ^ flips.to(torch.uint8), base))
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    most = 1.1 if 0.005 <= share <= 0.05 else 1.35
    assert entropy * count / 8 * 0.95 < size < entropy * count / 8 * most + 60


def test_damaged_flips_are_refused() -> None:
    base = bits(100)
    coded = encode_flips(base ^ 1, base)
    for damaged in (coded[:-3], torch.cat((coded[:1] + 7, coded[1:])), coded[:1]):
        with pytest.raises(ValueError, match=r".+"):
            decode_flips(damaged, base)
    with pytest.raises(ValueError, match="flip outside|another weight"):
        decode_flips(coded, base[:50])
