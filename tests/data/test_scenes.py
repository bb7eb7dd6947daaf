"""The procedural scenes: repeatable, exact, and worth learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from binarize.data import Scenes
from binarize.data.sets.shapes import Solid, hit_ball, hit_box, hit_cone, hit_cylinder
from binarize.errors import DataError


def test_a_scene_depends_on_seed_and_index_only() -> None:
    few, many = Scenes(3, (48, 64), seed=5), Scenes(9, (48, 64), seed=5)
    many[8]  # another order of reading must not matter
    torch.manual_seed(99)
    for index in range(3):
        for key, value in few[index].items():
            assert torch.equal(value, many[index][key])
    other = Scenes(3, (48, 64), seed=6)
    assert not torch.equal(few[0]["image"], other[0]["image"])
    assert not torch.equal(few[0]["image"], few[1]["image"])


def test_items_have_the_promised_types() -> None:
    data = Scenes(1, (40, 56))
    item = data[0]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in item.items()} == {
        "image": (torch.float32, (3, 40, 56)),
        "mask": (torch.int64, (40, 56)),
        "depth": (torch.float32, (1, 40, 56)),
    }
    assert item["depth"].min() > 0
    assert data.max_depth is not None
    assert item["depth"].max() <= data.max_depth
    assert set(Scenes(1, (40, 56), task="depth")[0]) == {"image", "depth"}
    assert set(Scenes(1, (40, 56), task="segmentation")[0]) == {"image", "mask"}


def test_every_class_occurs() -> None:
    data = Scenes(24, (48, 64), task="segmentation")
    assert (data.class_counts() > 0).all()
    assert data.num_classes == len(data.classes) == len(data.palette) == Scenes.num_classes


def test_perspective() -> None:
    """On the floor depth grows towards the horizon; solids are nearer than what they hide."""
    item = Scenes(1, (96, 128), objects=(0, 0))[0]
    depth, mask = item["depth"][0], item["mask"]
    floor_rows = (mask == 0).all(1).nonzero().flatten()
    column = depth[floor_rows, 64]
    assert (column[1:] < column[:-1]).all()
    # 1/z is linear in the row: the rule of a ground plane under a pinhole camera
    inverse = 1 / column.double()
    assert torch.allclose(inverse.diff(), inverse.diff().mean(), rtol=1e-3)
    empty = Scenes(1, (96, 128), objects=(0, 0), seed=1)[0]["depth"]
    full = Scenes(1, (96, 128), objects=(7, 7), seed=1)[0]
    solid = full["mask"] > 1
    assert solid.any()
    assert (full["depth"][0][solid] < empty[0][solid]).all()
    assert torch.equal(full["depth"][0][~solid], empty[0][~solid])


@pytest.mark.parametrize("hit", [hit_ball, hit_box, hit_cone, hit_cylinder])
def test_hits_lie_on_the_surface(hit) -> None:
    solid = Solid(x=0.3, z=3.0, floor=1.4, radius=0.5, height=1.0, turn=0.4)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 201), np.linspace(-0.2, 0.7, 181))
    x, y = x.astype(np.float32), y.astype(np.float32)
    found = hit(x, y, solid)
    seen = np.isfinite(found.depth)
    assert 200 < seen.sum() < seen.size / 2
    px, py, pz = (part[seen].astype(np.float64) for part in found.point)
    around = np.hypot(px, pz)
    if hit is hit_ball:
        error = np.sqrt(around**2 + (py + solid.radius) ** 2) - solid.radius
    elif hit is hit_box:
        outside = np.maximum(np.abs(px), np.abs(pz)) - solid.radius
        error = np.maximum(outside, np.abs(py + solid.height / 2) - solid.height / 2)
    elif hit is hit_cone:
        error = around - solid.radius * (py + solid.height) / solid.height
    else:
        error = np.maximum(around - solid.radius, -solid.height - py)
    assert np.abs(error).max() < 5e-4  # metres; float32 loses most near a cone's tip
    # what is seen faces the camera
    nx, ny, nz = (np.broadcast_to(part, x.shape)[seen] for part in found.normal)
    assert np.allclose(nx**2 + ny**2 + nz**2, 1, atol=1e-4)
    assert (nx * x[seen] + ny * y[seen] + nz < 1e-4).all()
    # from one pixel to the next one goes along the surface
    normal = np.stack([np.broadcast_to(part, x.shape) for part in found.normal])
    place = np.stack([x, y, np.ones_like(x)]) * np.where(seen, found.depth, np.nan)
    for axis in (1, 2):
        step = np.diff(place, axis=axis)
        length = np.linalg.norm(step, axis=0)
        along = (np.delete(normal, 0, axis) * step).sum(0)[np.isfinite(length)]
        assert np.abs(along / length[np.isfinite(length)]).mean() < 0.05


def test_windows_do_not_cut_solids() -> None:
    """Rendering within a window gives what rendering everywhere would."""
    from binarize.data.sets import scenes

    whole = pytest.MonkeyPatch()
    cut = [Scenes(1, (48, 64), seed=seed)[0]["depth"] for seed in range(12)]
    with whole.context() as patch:
        patch.setattr(scenes, "_window", lambda *_: (slice(0, 48), slice(0, 64)))
        full = [Scenes(1, (48, 64), seed=seed)[0]["depth"] for seed in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(cut, full, strict=True))


def test_out_of_range() -> None:
    data = Scenes(2, (32, 32))
    with pytest.raises(IndexError):
        data[2]
    with pytest.raises(DataError, match="data set=0: has no samples; check the split"):
        Scenes(0)
    with pytest.raises(DataError, match=r"size=\(0, 4\): must be \(rows, columns\)"):
        Scenes(1, (0, 4))
    with pytest.raises(DataError, match="task='flow': unknown task; use 'segmentation'"):
        Scenes(1, task="flow")
    with pytest.raises(DataError, match="normalize='zscore': unknown normalisation; use one of"):
        Scenes(1, normalize="zscore")
    for given in (None, False, 0.5, ((0.0,) * 3,)):
        with pytest.raises(
            DataError, match=r"normalize=.*: must be a name, or mean and deviation; "
        ):
            Scenes(1, normalize=given)  # type: ignore[arg-type]
