"""Augmentation keeps picture, mask and depth together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from binarize.data import Augment, Scenes
from binarize.data.augment import Depth, Normal, RandomZoom
from binarize.data.images import resize_map
from binarize.errors import DataError


def test_flip_moves_everything() -> None:
    plain = Scenes(1, (24, 32))[0]
    flipped = Scenes(1, (24, 32), augment=Augment(flip=1.0))[0]
    for key, value in plain.items():
        assert torch.equal(flipped[key], value.flip(-1)), key


def test_off_changes_nothing() -> None:
    plain = Scenes(1, (24, 32))[0]
    same = Scenes(1, (24, 32), augment=Augment(flip=0.0))[0]
    assert all(torch.equal(plain[key], same[key]) for key in plain)


def test_the_cache_stays_as_it_was() -> None:
    data = Scenes(1, (24, 32), augment=Augment(flip=0.5, zoom=2.0, jitter=0.5))
    plain = Scenes(1, (24, 32), augment=Augment(flip=0.0, zoom=2.0))
    before = {key: value.clone() for key, value in plain._stored(0).items()}
    for _ in range(5):
        item = data[0]
        item["image"].zero_()
        item["mask"].zero_()
        item["depth"].zero_()
    assert all(torch.equal(value, data._stored(0)[key]) for key, value in before.items())


def test_zoom_brings_the_scene_nearer() -> None:
    """Seen z times larger, a plane at depth d is a plane at depth d / z."""
    zoom = RandomZoom((20, 30), (2.0, 2.0))
    sample = zoom(
        {
            "image": tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8)),
            "mask": tv_tensors.Mask(torch.full((40, 60), 7, dtype=torch.uint8)),
            "depth": Depth(torch.full((1, 40, 60), 6.0)),
        }
    )
    assert [tuple(sample[key].shape[-2:]) for key in sample] == [(20, 30)] * 3
    assert (sample["mask"] == 7).all()
    assert torch.equal(sample["depth"].as_subclass(torch.Tensor), torch.full((1, 20, 30), 3.0))


def test_windows_move_freely_in_both_directions() -> None:
    zoom = RandomZoom((20, 20), (2.0, 2.0))
    drawn = [zoom.make_params([torch.zeros(3, 20, 20)]) for _ in range(400)]
    corners = torch.tensor([[p["top"], p["left"]] for p in drawn], dtype=torch.float64).T
    assert corners.amin(1).tolist() == [0, 0]
    assert corners.amax(1).tolist() == [10, 10]
    # Three standard deviations of the correlation of independent draws.
    assert abs(float(torch.corrcoef(corners)[0, 1])) < 0.15


def test_zoom_keeps_picture_and_mask_aligned() -> None:
    """A mask that is a threshold of the picture stays one through the zoom, but at edges."""
    rows = torch.arange(80).view(80, 1).expand(80, 80)
    image = (rows >= 40).to(torch.uint8).mul(255).expand(3, 80, 80)
    depth = (rows >= 40).float().mul(4).add(2).unsqueeze(0)
    zoom = RandomZoom((40, 40), (1.0, 2.0))
    for _ in range(10):
        moved = zoom(
            {
                "image": tv_tensors.Image(image),
                "mask": tv_tensors.Mask((rows >= 40).to(torch.uint8)),
                "depth": Depth(depth),
            }
        )
        white = moved["image"][0].as_subclass(torch.Tensor) > 127
        assert (white != moved["mask"].as_subclass(torch.Tensor).bool()).sum() <= 40
        levels = moved["depth"].as_subclass(torch.Tensor).unique()
        assert len(levels) <= 2
        if len(levels) == 2:
            assert levels[1] / levels[0] == pytest.approx(3.0)


def test_maps_are_resized_by_the_nearest_pixel_centre() -> None:
    assert resize_map(torch.arange(4).view(1, 4).byte(), (1, 2)).tolist() == [[1, 3]]
    assert resize_map(torch.arange(6).view(1, 6).int(), (1, 2)).tolist() == [[1, 4]]
    labels = torch.randint(0, 256, (31, 17), dtype=torch.uint8)
    assert set(resize_map(labels, (64, 9)).unique().tolist()) <= set(labels.unique().tolist())
    assert torch.equal(resize_map(labels, (31, 17)), labels)


def test_jitter_changes_the_picture_only() -> None:
    plain = Scenes(1, (24, 32))[0]
    jittered = Scenes(1, (24, 32), augment=Augment(flip=0.0, jitter=0.5))[0]
    assert not torch.equal(plain["image"], jittered["image"])
    assert torch.equal(plain["mask"], jittered["mask"])
    assert torch.equal(plain["depth"], jittered["depth"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip=1.5: must be from 0 to 1; choose a value in range"),
        ({"zoom": 0.5}, "zoom=0.5: must be from 1 to 8; choose a value in range"),
        ({"jitter": -1}, "jitter=-1: must be from 0 to 1; choose a value in range"),
    ],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Augment(**options)
    assert str(caught.value) == message


def columns(count: int) -> dict[str, torch.Tensor]:
    """An image whose value is its column, with a mask and a depth of the same."""
    values = torch.arange(count, dtype=torch.uint8).expand(10, count)
    return {
        "image": tv_tensors.Image(values.expand(3, 10, count)),
        "mask": tv_tensors.Mask(values),
        "depth": Depth(values.float().unsqueeze(0) + 1),
    }


def test_windows_of_another_shape_keep_the_aspect_ratio() -> None:
    zoom = RandomZoom((10, 20), (1.0, 1.0), keep_aspect=True)
    seen = set()
    for _ in range(60):
        moved = {key: value.as_subclass(torch.Tensor) for key, value in zoom(columns(40)).items()}
        left = int(moved["mask"][0, 0])
        seen.add(left)
        assert moved["mask"][3].tolist() == list(range(left, left + 20))
        assert torch.equal(moved["image"][1], moved["mask"])
        assert torch.equal(moved["depth"][0], moved["mask"].float() + 1)
    assert min(seen) >= 0
    assert max(seen) <= 20
    assert len(seen) > 10


def test_shrinking_fills_what_is_beyond_the_image() -> None:
    zoom = RandomZoom((10, 10), (0.5, 0.5), fill=(1.0, 2.0, 3.0))
    moved = zoom(
        {
            "image": tv_tensors.Image(torch.full((3, 10, 10), 9, dtype=torch.uint8)),
            "mask": tv_tensors.Mask(torch.full((10, 10), 7, dtype=torch.uint8)),
            "depth": Depth(torch.full((1, 10, 10), 4.0)),
        }
    )
    mask = moved["mask"].as_subclass(torch.Tensor)
    assert mask.unique().tolist() == [7, 255]
    assert (mask == 7).sum() == 25
    # Half as large is twice as far.
    assert moved["depth"].as_subclass(torch.Tensor).unique().tolist() == [0.0, 8.0]
    assert (moved["depth"].as_subclass(torch.Tensor)[0] == 8).equal(mask == 7)
    image = moved["image"].as_subclass(torch.Tensor)
    assert {tuple(color) for color in image.flatten(1).T.tolist()} >= {(9, 9, 9), (1, 2, 3)}


def test_rotation_fills_the_corners() -> None:
    torch.manual_seed(1)
    turned = Augment(flip=0.0, rotate=45.0).build((10, 10), fill=(5.0, 5.0, 5.0))(columns(10))
    plain = {key: value.as_subclass(torch.Tensor) for key, value in turned.items()}
    corner = plain["mask"] == 255
    assert corner.any()
    assert torch.equal(corner, plain["depth"][0] == 0)
    assert plain["image"][:, corner].float().mean() < 12
    # The middle keeps its place, and depth its values.
    assert set(plain["depth"].unique().tolist()) <= set(range(11))


def test_an_unknown_way_to_fit() -> None:
    with pytest.raises(DataError, match="fit='zoom': unknown; use 'resize' or 'crop'"):
        Scenes(1, (40, 80), fit="zoom")


def test_a_window_of_a_tall_image_is_no_zoom() -> None:
    zoom = RandomZoom((10, 10), (1.0, 1.0), keep_aspect=True)
    sample = {
        "image": tv_tensors.Image(torch.zeros(3, 20, 10, dtype=torch.uint8)),
        "depth": Depth(torch.full((1, 20, 10), 4.0)),
    }
    assert zoom(sample)["depth"].as_subclass(torch.Tensor).unique().tolist() == [4.0]


@pytest.mark.parametrize(
    ("angle", "turned"),
    [(0, (1, 0, 0)), (90, (0, -1, 0)), (180, (-1, 0, 0)), (30, (0.75**0.5, -0.5, 0))],
)
def test_rotation_turns_normals_as_it_turns_the_picture(angle: float, turned: Any) -> None:
    right = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 9, 9)
    moved = v2.functional.rotate(Normal(right), angle)
    assert moved[:, 4, 4].tolist() == pytest.approx(turned, abs=1e-6)
    # A mark to the right of the middle moves the same way.
    mark = torch.zeros(1, 9, 9)
    mark[0, 4, 7] = 1
    if angle % 90 == 0:
        row, column = torch.nonzero(v2.functional.rotate(mark, angle)[0])[0].tolist()
        assert (column - 4, row - 4) == tuple(3 * x for x in turned[:2])


def test_normals_beyond_the_image_are_unknown() -> None:
    down = Normal(torch.tensor([0.0, 1, 0]).view(3, 1, 1).repeat(1, 12, 16))
    for options in ({"shrink": 0.5}, {"rotate": 45.0}):
        transform = Augment(flip=0, **options).build((12, 16))
        lengths = []
        for seed in range(3):
            torch.manual_seed(seed)
            picture = tv_tensors.Image(torch.full((3, 12, 16), 9, dtype=torch.uint8))
            lengths.append(transform({"image": picture, "normal": down})["normal"].norm(dim=0))
        length = torch.cat(lengths)
        assert ((length < 1e-6) | ((length - 1).abs() < 1e-5)).all()
        assert (length < 1e-6).any()
