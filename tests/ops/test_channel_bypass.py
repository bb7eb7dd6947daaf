"""Channel-adaptive bypass against a loop that follows the equations literally."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import binarize
from binarize.ops import channel_adaptive_bypass

GOLDEN = Path(__file__).parents[1] / "golden" / "bidense_released.npz"
QUIET = settings(max_examples=120, deadline=None, database=None, derandomize=True)
GROUPINGS = ["contiguous", "interleaved"]


def members(channels_in: int, channels_out: int, grouping: str) -> list[list[int]]:
    """For every output channel, the input channels it is the mean of."""
    lists = [[c] for _ in range(channels_out // channels_in) for c in range(channels_in)]
    rest = channels_out % channels_in
    if rest == 0:
        return lists
    size = channels_in // rest
    for j in range(rest - 1):
        if grouping == "contiguous":
            lists.append([j * size + i for i in range(size)])
        else:
            lists.append([j + i * (rest - 1) for i in range(size)])
    # The last group takes all that remains.
    lists.append(list(range(size * (rest - 1), channels_in)))
    return lists


def literal(x: Tensor, channels_out: int, grouping: str) -> Tensor:
    columns = []
    for group in members(x.shape[1], channels_out, grouping):
        total = sum(x[:, c] for c in group)
        columns.append(total / len(group))
    return torch.stack(columns, dim=1)


PAIRS = [(i, o) for i in range(1, 14) for o in range(1, 30)]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_all_small_channel_pairs(grouping: str) -> None:
    wrong = []
    for channels_in, channels_out in PAIRS:
        x = torch.randn(2, channels_in, 3, dtype=torch.float64)
        y = channel_adaptive_bypass(x, channels_out, grouping=grouping)
        if y.shape != (2, channels_out, 3) or not torch.allclose(
            y, literal(x, channels_out, grouping), atol=1e-12
        ):
            wrong.append((channels_in, channels_out))
    assert not wrong


@QUIET
@given(
    st.integers(1, 70),
    st.integers(1, 200),
    st.sampled_from(GROUPINGS),
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
)
def test_random_channel_pairs_on_maps_of_any_rank(
    channels_in: int, channels_out: int, grouping: str, spatial: list[int]
) -> None:
    x = torch.randn(2, channels_in, *spatial, dtype=torch.float64)
    y = channel_adaptive_bypass(x, channels_out, grouping=grouping)
    torch.testing.assert_close(y, literal(x, channels_out, grouping), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    ("channels_in", "channels_out"),
    [(8, 1), (8, 9), (8, 17), (1, 1), (1, 7), (5, 1), (7, 8), (2, 1), (2, 3)],
)
def test_remainder_of_one_and_single_channels(
    channels_in: int, channels_out: int, grouping: str
) -> None:
    """The released layer divides by zero where C_out mod C_in is 1."""
    x = torch.randn(1, channels_in, 2, 2, dtype=torch.float64)
    y = channel_adaptive_bypass(x, channels_out, grouping=grouping)
    if channels_in > 1 and channels_out % channels_in == 1:
        torch.testing.assert_close(y[:, -1], x.mean(dim=1))
    torch.testing.assert_close(y, literal(x, channels_out, grouping))


def test_contiguous_is_the_default_and_differs_from_interleaved() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1)
    assert channel_adaptive_bypass(x, 3).flatten().tolist() == [0.5, 2.5, 5.5]
    assert channel_adaptive_bypass(x, 3, grouping="contiguous").flatten()[0] == 0.5
    interleaved = channel_adaptive_bypass(x, 3, grouping="interleaved")
    assert interleaved.flatten().tolist() == [1.0, 2.0, 5.5]


def test_same_channels_pass_unchanged() -> None:
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(channel_adaptive_bypass(x, 6), x)


@pytest.mark.parametrize("spatial", [(), (4,), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("channels_out", [3, 5, 10, 13])
def test_empty_batches_and_ranks(spatial: tuple[int, ...], channels_out: int) -> None:
    for grouping in GROUPINGS:
        y = channel_adaptive_bypass(torch.zeros(0, 5, *spatial), channels_out, grouping=grouping)
        assert y.shape == (0, channels_out, *spatial)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("channels_out", [1, 3, 7, 9, 16, 20])
def test_gradient_is_the_transposed_map(grouping: str, channels_out: int) -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    gy = torch.randn(2, channels_out, 3, dtype=torch.float64)
    channel_adaptive_bypass(x, channels_out, grouping=grouping).backward(gy)
    expected = torch.zeros_like(x)
    for o, group in enumerate(members(7, channels_out, grouping)):
        for c in group:
            expected[:, c] += gy[:, o] / len(group)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 11])
def test_channels_last_in_memory_stay_last_in_result_and_gradient(groups: int) -> None:
    """Few and many channels to a group, with and without some that are left over."""
    for channels in (2 * groups, 3 * groups + 1, 8 * groups, 9 * groups + groups // 2):
        x = torch.randn(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)
        last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        y, expected = channel_adaptive_bypass(last, groups), literal(x, groups, "contiguous")
        torch.testing.assert_close(y, expected)
        grad = torch.randn_like(expected)
        expected.backward(grad)
        y.backward(grad.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last.grad, x.grad)
        if channels % groups == 0 and groups > 1:
            for t in (y, last.grad):
                assert t.is_contiguous(memory_format=torch.channels_last)


def test_channels_at_another_dimension() -> None:
    x = torch.randn(2, 3, 4, 10)
    first = channel_adaptive_bypass(x.permute(0, 3, 1, 2), 14)
    last = channel_adaptive_bypass(x, 14, dim=3)
    torch.testing.assert_close(last, first.permute(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_stays(dtype: torch.dtype) -> None:
    assert channel_adaptive_bypass(torch.randn(1, 7, 2).to(dtype), 10).dtype == dtype


@pytest.mark.parametrize("case", range(12))
def test_released_numbers(case: int) -> None:
    with numpy.load(GOLDEN) as golden:
        x, y = (torch.from_numpy(golden[f"cfb{case}/{name}"]) for name in "xy")
    got = channel_adaptive_bypass(x, y.shape[1], grouping="interleaved")
    torch.testing.assert_close(got, y, atol=1e-6, rtol=0)


def test_mistakes_are_told_in_one_line() -> None:
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(binarize.BinarizeError, match=r"^grouping='interleave': .*; .*interleaved"):
        channel_adaptive_bypass(x, 4, grouping="interleave")
    with pytest.raises(binarize.BinarizeError, match=r"^out_channels=0: .*at least one.*; .*1"):
        channel_adaptive_bypass(x, 0)
