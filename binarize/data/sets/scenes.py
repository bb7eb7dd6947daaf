"""Procedural scenes: solids on a floor in front of a wall, with exact masks and depth.

A data set without download, for the demo, for tests and for experiments. Each class has its own
shape and pattern, while colours, light, sizes and positions are random: a network has to use
texture and outline, and perspective for the depth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from binarize.data.dense import DenseDataset
from binarize.data.sets.shapes import (
    Array,
    Hit,
    Solid,
    hit_ball,
    hit_box,
    hit_cone,
    hit_cylinder,
)

__all__ = ["Scenes"]

CLASSES = ("floor", "wall", "ball", "box", "cylinder", "cone")
COLORS = (
    (96, 96, 104),
    (176, 176, 160),
    (228, 76, 76),
    (76, 132, 228),
    (88, 184, 96),
    (240, 176, 48),
)
MAX_DEPTH = 10.0
_SHAPES = {2: hit_ball, 3: hit_box, 4: hit_cylinder, 5: hit_cone}


class Scenes(DenseDataset):
    """Scenes of textured solids from a seed: sample ``i`` depends on (seed, i) only.

    Args:
        count: Number of scenes.
        size: Rows and columns.
        seed: Seed of the whole set.
        objects: Smallest and largest number of solids in a scene.
        task: "segmentation", "depth", or None for both targets.
        **options: ``augment``, ``normalize``, ``cache``; see
            :class:`~binarize.data.dense.DenseDataset`.
    """

    classes = CLASSES
    num_classes = len(CLASSES)

    def __init__(
        self,
        count: int = 256,
        size: tuple[int, int] = (96, 128),
        seed: int = 0,
        *,
        objects: tuple[int, int] = (3, 7),
        task: str | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("allow_empty", True)  # a few scenes may lack a class
        super().__init__(
            count,
            size=size,
            task=task,
            classes=CLASSES,
            max_depth=MAX_DEPTH,
            colors=COLORS,
            **options,
        )
        self.seed = seed
        self.objects = objects

    def read(self, index: int) -> dict[str, Tensor]:
        """Render one scene."""
        assert self.size is not None
        random = np.random.default_rng([self.seed, index])
        image, mask, depth, normal = _render(random, self.size, self.objects)
        return {
            "image": torch.from_numpy(image),
            "mask": torch.from_numpy(mask),
            "depth": torch.from_numpy(depth).unsqueeze(0),
            "normal": torch.from_numpy(normal),
        }


def _render(
    random: np.random.Generator, size: tuple[int, int], objects: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image uint8 (3, H, W), mask uint8, depth and normals (3, H, W) float32."""
    rows, columns = size
    focal = columns * random.uniform(0.8, 1.0)
    horizon = rows * random.uniform(0.35, 0.5)
    x = np.broadcast_to(
        ((np.arange(columns, dtype=np.float32) - (columns - 1) / 2) / focal).astype(np.float32),
        size,
    )
    y = np.broadcast_to(
        ((np.arange(rows, dtype=np.float32) - horizon) / focal).astype(np.float32)[:, None], size
    )
    floor, wall = random.uniform(1.1, 1.8), random.uniform(5.5, 9.5)
    light = random.normal(size=3) * (1.0, 0.3, 0.3) + (0.0, -1.0, -1.0)
    light /= np.linalg.norm(light)

    depth, mask, color = _room(random, x, y, floor, wall)
    # The floor looks up, the wall at the camera.
    normal = np.zeros((3, *size), np.float32)
    normal[1][mask == 0] = -1
    normal[2][mask == 1] = -1
    for _ in range(int(random.integers(objects[0], objects[1] + 1))):
        kind = int(random.integers(2, len(CLASSES)))
        solid = _place(random, floor, wall, columns / focal)
        window = _window(solid, focal, horizon, size)
        if window is None:
            continue
        hit = _SHAPES[kind](x[window], y[window], solid)
        front = hit.depth < depth[window]
        depth[window] = np.where(front, hit.depth, depth[window])
        mask[window] = np.where(front, np.uint8(kind), mask[window])
        painted = _paint(random, kind, hit, solid, light)
        color[(slice(None), *window)] = np.where(front, painted, color[(slice(None), *window)])
        normal[(slice(None), *window)] = np.where(
            front, np.stack(hit.normal), normal[(slice(None), *window)]
        )
    color *= random.uniform(0.75, 1.15)
    color += random.normal(scale=0.02, size=color.shape).astype(np.float32)
    image = np.clip(color * 255, 0, 255).astype(np.uint8)
    return image, mask, np.minimum(depth, np.float32(MAX_DEPTH)), normal


def _place(random: np.random.Generator, floor: float, wall: float, spread: float) -> Solid:
    """Place a random solid in view, between the camera and the wall."""
    z = random.uniform(2.2, wall - 0.8)
    radius = random.uniform(0.25, 0.6)
    return Solid(
        x=random.uniform(-0.5, 0.5) * spread * z,
        z=z,
        floor=floor,
        radius=radius,
        height=radius * random.uniform(1.4, 2.6),
        turn=random.uniform(0, np.pi / 2),
    )


def _window(
    solid: Solid, focal: float, horizon: float, size: tuple[int, int]
) -> tuple[slice, slice] | None:
    """Return the rows and columns that can show the solid; None if it is out of view."""
    reach = solid.radius * 1.45  # a turned box reaches √2 times its half width
    near, far = solid.z - reach, solid.z + reach
    middle = (size[1] - 1) / 2
    edges = [middle + focal * (solid.x + s * reach) / z for s in (-1, 1) for z in (near, far)]
    tall = max(solid.height, 2 * solid.radius)
    heights = [
        horizon + focal * y / z for y in (solid.floor - tall, solid.floor) for z in (near, far)
    ]
    top, bottom = max(0, int(min(heights))), min(size[0], int(max(heights)) + 2)
    left, right = max(0, int(min(edges))), min(size[1], int(max(edges)) + 2)
    if top >= bottom or left >= right:
        return None
    return slice(top, bottom), slice(left, right)


def _room(
    random: np.random.Generator, x: Array, y: Array, floor: float, wall: float
) -> tuple[Array, np.ndarray, Array]:
    """Render floor and wall: depth (H, W), mask (H, W) and colour (3, H, W)."""
    below = y * wall > floor
    depth = np.where(below, floor / np.maximum(y, 1e-6), wall).astype(np.float32)
    px, py = x * depth, y * depth
    tile = random.uniform(0.4, 0.9)
    offset = random.uniform(0, 1, 2)
    across, along = px / tile + offset[0], depth / tile + offset[1]
    joints = (across % 1 < 0.08) | (along % 1 < 0.08)
    boards = _hash(np.floor(across), np.floor(along))
    floor_tone = (0.75 + 0.25 * boards) * np.where(joints, 0.55, 1.0)
    course = np.floor(py / 0.35)
    bricks = (px / 0.8 + 0.5 * (course % 2)) % 1 < 0.06
    wall_tone = np.where(bricks | (py / 0.35 % 1 < 0.12), 0.8, 1.0) * (1 - 0.05 * np.abs(px))
    first, second = _color(random), _color(random)
    color = np.where(below, first * floor_tone, second * wall_tone).astype(np.float32)
    return depth, np.where(below, 0, 1).astype(np.uint8), color


def _paint(
    random: np.random.Generator, kind: int, hit: Hit, solid: Solid, light: np.ndarray
) -> Array:
    """Return a solid's colour (3, h, w): its class's pattern in two random colours, shaded."""
    px, py, pz = hit.point
    angle = np.arctan2(px, -pz + 1e-6)
    step = random.uniform(0.14, 0.24)
    if kind == 2:  # spots
        lean = np.arcsin(np.clip((py + solid.radius) / solid.radius, -1, 1))
        pattern = np.sin(6 * angle) * np.sin(6 * lean) > 0.25
    elif kind == 3:  # checks
        pattern = (np.floor(px / step) + np.floor(py / step) + np.floor(pz / step)) % 2 > 0.5
    elif kind == 4:  # upright stripes
        pattern = np.sin(12 * angle) > 0
    else:  # rings
        pattern = np.sin(2 * np.pi * py / (2 * step)) > 0
    nx, ny, nz = hit.normal
    shade = 0.45 + 0.55 * np.maximum(0.0, nx * light[0] + ny * light[1] + nz * light[2])
    first, second = _color(random), _color(random)
    if np.abs(first - second).sum() < 0.6:  # the pattern must be visible
        second = 1.0 - first
    return (np.where(pattern, first, second) * shade).astype(np.float32)


def _color(random: np.random.Generator) -> Array:
    return random.uniform(0.1, 0.95, (3, 1, 1)).astype(np.float32)


def _hash(a: Array, b: Array) -> Array:
    """Pseudo-random numbers in [0, 1) from whole numbers."""
    return ((np.sin(a * 12.9898 + b * 78.233) * 43758.547) % 1).astype(np.float32)
