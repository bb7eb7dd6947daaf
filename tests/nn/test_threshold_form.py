"""The threshold form that packed layers carry out says what the binarizer itself computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.nn import DistributionAdaptiveBinarizer, ThresholdForm
from binarize.nn.parts import BINARIZERS


def carry_out(form: ThresholdForm, x: Tensor) -> Tensor:
    """Values by the form's definition, for feature maps (N, C, *spatial)."""
    positions = list(range(2, x.dim()))
    column = (1, -1) + (1,) * len(positions)
    mean = x.mean(positions, keepdim=True) if positions else x
    t = form.b.view(column).expand(mean.shape)
    if form.k is not None:
        t = form.k.view(column) * mean + t
        t = t - t.abs() / 2**18  # ties are +1
    signs = torch.where(x < t, -1.0, 1.0).to(x.dtype)
    if form.flip is not None:
        signs = torch.where(form.flip.view(column), torch.where(x > t, -1.0, 1.0).to(x), signs)
    for threshold in [] if form.more is None else form.more:
        signs = signs * torch.where(x < threshold, -1.0, 1.0)
    size = (x - t).abs().flatten(1).mean(1).view((-1,) + (1,) * (x.dim() - 1))
    if form.scale == "exponential":
        assert form.exponent is not None
        signs = signs * torch.exp(form.exponent * (size - 1))
    elif form.scale == "magnitude":
        signs = signs * size
    signs = signs if form.factor is None else signs * form.factor
    return signs if form.offset is None else signs + form.offset


def scramble(binarizer: Any) -> Any:
    with torch.no_grad():
        for parameter in binarizer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + 0.3)
    return binarizer


@pytest.mark.parametrize("spatial", [(7,), (5, 4), (2, 3, 2), (1, 1)])
def test_dab(spatial: tuple[int, ...]) -> None:
    dab = scramble(DistributionAdaptiveBinarizer(3).double())
    form = dab.threshold_form()
    assert form is not None
    x = torch.randn(4, 3, *spatial, dtype=torch.float64)
    torch.testing.assert_close(carry_out(form, x), dab(x).detach())
    tensors = [value for value in vars(form).values() if isinstance(value, Tensor)]
    assert len(tensors) == 3
    assert not any(tensor.requires_grad for tensor in tensors)


def test_dab_with_a_scale_per_channel_has_none() -> None:
    assert DistributionAdaptiveBinarizer(3, scale="channel").threshold_form() is None


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ablated-dab": [
        {"threshold": threshold, "factor": factor}
        for threshold in ("affine", "bias", "mean", "none")
        for factor in ("adaptive", "learned", "magnitude", "none")
    ],
    "sign": [{"surrogate": "clip"}, {"surrogate": "polynomial"}],
}


@pytest.mark.parametrize("name", sorted(BINARIZERS))
def test_every_form_says_what_its_binarizer_computes(name: str) -> None:
    for options in OPTIONS.get(name, [{}]):
        for negative in (False, True):
            binarizer = scramble(BINARIZERS[name](4, **options).double().eval())
            with torch.no_grad():
                for key in ("k", "alpha"):  # slopes of either sign, and flat ones
                    gain = getattr(binarizer, key, None)
                    if gain is not None and negative:
                        gain.neg_()
                    if gain is not None and key == "k":
                        gain[0] = 0.0
            form = binarizer.threshold_form()
            assert form is not None
            x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
            x[0, :, 0] = 0.0
            torch.testing.assert_close(carry_out(form, x), binarizer(x).detach())
            tensors = [value for value in vars(form).values() if isinstance(value, Tensor)]
            assert not any(tensor.requires_grad for tensor in tensors)
            assert form.b.shape == (4,)
            # A constant part is what does not leave a padded sum.
            assert binarizer.popcount_exact == (form.offset is None)


def test_forms_are_right_at_the_threshold_itself() -> None:
    """In single precision, around the number where the rounded line crosses zero."""
    binarizer = BINARIZERS["redistributed-sign"](2000)
    with torch.no_grad():
        binarizer.k.normal_()
        binarizer.b.normal_()
        binarizer.k[:2] = 0.0
        binarizer.b[0], binarizer.b[1] = 0.0, -1.0
        binarizer.b[2:40] = 0.0
        binarizer.k[40:50] *= 1e-20
    form = binarizer.threshold_form()
    assert form is not None
    x = form.b.clone().nan_to_num(0.0, 0.0, 0.0)[None, :, None].repeat(1, 1, 7)
    for step in range(3):
        x[:, :, step] = torch.nextafter(x[:, :, step], torch.tensor(torch.inf))
        x[:, :, 6 - step] = torch.nextafter(x[:, :, 6 - step], torch.tensor(-torch.inf))
    x[:, :, 0] = torch.nextafter(x[:, :, 0], torch.tensor(torch.inf))
    # Products below the smallest number are 0, and count as positive on either side of it.
    told = (binarizer.k[:, None] * x).abs() > 1e-30
    told[:, :2] = True
    assert told.float().mean() > 0.9
    assert torch.equal(carry_out(form, x)[told], binarizer(x).detach()[told])


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_levels_of_several_bits_are_a_sum_of_forms(bits: int) -> None:
    binarizer = BINARIZERS["learned-levels"](3, bits=bits).double().eval()
    x = 3 * torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for _ in range(5):
        binarizer.basis.normal_()
        forms = binarizer.threshold_forms()
        assert len(forms) == bits
        total = sum(carry_out(form, x) for form in forms)
        torch.testing.assert_close(total, binarizer(x))


def test_several_bits_and_scales_per_channel_have_no_single_form() -> None:
    assert BINARIZERS["learned-levels"](3, bits=2).threshold_form() is None
    scaled = BINARIZERS["ablated-dab"](3, scale="channel")
    assert scaled.threshold_form() is None
    assert scaled.threshold_forms() == ()
    assert BINARIZERS["ablated-dab"](3, scale="channel", factor="none").threshold_form() is not None
