"""Ray casting of a few solids: exact depth, surface normal and surface position.

Camera coordinates in metres: x to the right, y down, z into the image; the camera is at the
origin. A ray is the set t·(x, y, 1), so that t is the depth z of the point itself.

Shape legend: R rays; every array is (R,), points and normals are tuples of three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hit", "Solid", "hit_ball", "hit_box", "hit_cone", "hit_cylinder"]

Array = NDArray[np.floating[Any]]
Triple = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Solid:
    """A solid that stands on the floor.

    Args:
        x, z: Its centre on the floor, metres.
        floor: Height of the floor below the camera, metres.
        radius: Half its width, metres.
        height: Its height, metres.
        turn: Rotation about the vertical, radians.
    """

    x: float
    z: float
    floor: float
    radius: float
    height: float
    turn: float = 0.0


@dataclass(frozen=True)
class Hit:
    """First intersections of rays with a surface: ``depth`` is infinite where they miss."""

    depth: Array
    normal: Triple
    point: Triple


def _points(x: Array, y: Array, depth: Array, solid: Solid) -> Triple:
    """Surface points relative to the solid's centre on the floor."""
    t = np.where(np.isfinite(depth), depth, 0.0).astype(np.float32)
    return x * t - np.float32(solid.x), y * t - np.float32(solid.floor), t - np.float32(solid.z)


def _roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Solve a·t² − 2·b·t + c = 0: the smaller and larger root, infinite where there is none."""
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0.0))
    missed = inside < 0
    near, far = (b - root) / a, (b + root) / a
    near[missed] = np.inf
    far[missed] = np.inf
    return near, far


def hit_ball(x: Array, y: Array, solid: Solid) -> Hit:
    """Intersect a ball of ``solid.radius`` on the floor."""
    middle = solid.floor - solid.radius
    a = x * x + y * y + 1
    b = x * solid.x + y * middle + solid.z
    c = np.full_like(x, solid.x**2 + middle**2 + solid.z**2 - solid.radius**2)
    depth, _ = _roots(a, b, c)
    px, py, pz = _points(x, y, depth, solid)
    normal = (px / solid.radius, (py + solid.radius) / solid.radius, pz / solid.radius)
    return Hit(depth, normal, (px, py, pz))


def hit_cylinder(x: Array, y: Array, solid: Solid) -> Hit:
    """Intersect an upright cylinder: its side, and its lid where the camera looks down on it."""
    a = x * x + 1
    b = x * solid.x + solid.z
    c = np.full_like(x, solid.x**2 + solid.z**2 - solid.radius**2)
    depth, _ = _roots(a, b, c)
    top = solid.floor - solid.height
    with np.errstate(invalid="ignore"):
        heights = y * depth
        depth[~((heights >= top) & (heights <= solid.floor))] = np.inf
    px, py, pz = _points(x, y, depth, solid)
    nx, ny, nz = px / solid.radius, np.zeros_like(px), pz / solid.radius
    if top > 0:
        lid = top / np.maximum(y, 1e-6)
        lx, lz = x * lid - solid.x, lid - solid.z
        on_lid = (y > 0) & (lx * lx + lz * lz <= solid.radius**2) & (lid < depth)
        depth = np.where(on_lid, lid, depth).astype(np.float32)
        px, py, pz = _points(x, y, depth, solid)
        nx, nz = np.where(on_lid, 0.0, nx), np.where(on_lid, 0.0, nz)
        ny = np.where(on_lid, -1.0, ny)
    return Hit(depth, (nx, ny, nz), (px, py, pz))


def hit_cone(x: Array, y: Array, solid: Solid) -> Hit:
    """Intersect an upright cone with its tip at ``solid.height``."""
    slope = solid.radius / solid.height
    tip = solid.floor - solid.height
    squared = slope * slope
    a = x * x + 1 - squared * y * y
    a = np.where(np.abs(a) < 1e-6, np.float32(1e-6), a)
    b = x * solid.x + solid.z - squared * y * tip
    c = np.full_like(x, solid.x**2 + solid.z**2 - squared * tip**2)
    first, second = _roots(a, b, c)
    depth = np.full_like(x, np.inf)
    for t in (first, second):
        with np.errstate(invalid="ignore"):
            heights = y * t
            valid = (t > 0) & (heights >= tip) & (heights <= solid.floor) & (t < depth)
        depth = np.where(valid, t, depth)
    depth = depth.astype(np.float32)
    px, py, pz = _points(x, y, depth, solid)
    around = np.maximum(np.sqrt(px * px + pz * pz), 1e-6)
    length = float(np.hypot(1.0, slope))
    normal = (px / around / length, np.full_like(px, -slope / length), pz / around / length)
    return Hit(depth, normal, (px, py, pz))


def hit_box(x: Array, y: Array, solid: Solid) -> Hit:
    """Intersect a box with a square footprint, turned about the vertical; points in its frame."""
    cos, sin = float(np.cos(solid.turn)), float(np.sin(solid.turn))
    dx, dz = cos * x + sin, -sin * x + cos
    ox, oz = -(cos * solid.x + sin * solid.z), sin * solid.x - cos * solid.z
    near = np.full_like(x, -np.inf)
    far = np.full_like(x, np.inf)
    face = np.zeros(x.shape, np.int8)
    slabs = (
        (dx, ox, -solid.radius, solid.radius),
        (y, 0.0, solid.floor - solid.height, solid.floor),
        (dz, oz, -solid.radius, solid.radius),
    )
    for axis, (direction, origin, low, high) in enumerate(slabs):
        safe = np.where(np.abs(direction) < 1e-6, np.float32(1e-6), direction)
        first, second = (low - origin) / safe, (high - origin) / safe
        enter, leave = np.minimum(first, second), np.maximum(first, second)
        face = np.where(enter > near, np.int8(axis), face)
        near, far = np.maximum(near, enter), np.minimum(far, leave)
    depth = np.where((near <= far) & (near > 0), near, np.inf).astype(np.float32)
    t = np.where(np.isfinite(depth), depth, 0.0)
    point = (dx * t + ox, y * t - solid.floor, dz * t + oz)
    side_x, side_z = -np.sign(dx) * (face == 0), -np.sign(dz) * (face == 2)
    normal = (cos * side_x - sin * side_z, -1.0 * (face == 1), sin * side_x + cos * side_z)
    return Hit(depth, normal, point)
