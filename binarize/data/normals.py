"""Surface normals from depth.

Camera coordinates: x to the right, y down, z into the image; normals point towards the camera.

Shape legend: N samples, H, W rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from binarize.errors import DataError

__all__ = ["FIELD_OF_VIEW", "normals_from_depth"]

FIELD_OF_VIEW = 60.0
"""Default horizontal field of view, degrees: that of most indoor depth cameras is 57 to 65."""


def normals_from_depth(
    depth: Tensor,
    *,
    intrinsics: Tensor | None = None,
    fov: float = FIELD_OF_VIEW,
    step: int = 1,
) -> Tensor:
    """Return the surface normals of a depth map.

    Pixel (u, v) of depth z is the point z · K⁻¹ · (u, v, 1). The normal is the cross product of two
    differences of points, one along the rows and one along the columns, each to the neighbour on
    that side where depth changes less: planes get their exact normal up to their edges, and no
    difference crosses from an object to its background while the object goes on elsewhere.

    Args:
        depth: z in metres, (N, 1, H, W); 0 where unknown.
        intrinsics: Camera matrix K in pixels of this depth map, (3, 3) or one per sample (N, 3, 3).
            None: square pixels, the principal point in the middle, and ``fov``.
        fov: Horizontal field of view without ``intrinsics``, degrees.
        step: Distance of the neighbours in pixels; larger ones suppress noise and detail.

    Returns:
        Unit vectors (N, 3, H, W), 0 where the pixel or all neighbours of a direction are unknown.

    Raises:
        DataError: A shape or value is out of range.
    """
    if depth.ndim != 4 or depth.shape[1] != 1 or not depth.is_floating_point():
        raise DataError(
            "depth",
            f"{depth.dtype} {tuple(depth.shape)}",
            "must be metres in a float tensor of shape (N, 1, H, W)",
            "convert with depth.float() and add the missing dimensions",
        )
    if step < 1:
        raise DataError("step", step, "must be positive", "use 1 for direct neighbours")
    z = depth[:, 0].to(torch.float32 if depth.element_size() < 4 else depth.dtype)
    points = z.unsqueeze(1) * _rays(z, intrinsics, fov)
    across, seen = _difference(points, z, -1, step)
    down, also = _difference(points, z, -2, step)
    # x right times y down is z into the image: swapped, it points at the camera.
    normal = torch.linalg.cross(down, across, dim=1)
    length = normal.norm(dim=1, keepdim=True)
    known = ((z > 0) & seen & also).unsqueeze(1) & (length > 0)
    return torch.where(known, normal / torch.where(length > 0, length, 1), 0)


def _rays(z: Tensor, intrinsics: Tensor | None, fov: float) -> Tensor:
    """Return K⁻¹ · (u, v, 1), (N or 1, 3, H, W)."""
    rows, columns = z.shape[-2:]
    if intrinsics is None:
        if not 0 < fov < 180:
            raise DataError("fov", fov, "must be between 0 and 180 degrees", "give e.g. 60")
        focal = columns / (2 * math.tan(math.radians(fov) / 2))
        center = (columns - 1) / 2, (rows - 1) / 2
        matrix = [[focal, 0.0, center[0]], [0.0, focal, center[1]], [0.0, 0.0, 1.0]]
        intrinsics = torch.tensor(matrix)
    elif intrinsics.shape[-2:] != (3, 3) or intrinsics.ndim > 3:
        raise DataError(
            "intrinsics", tuple(intrinsics.shape), "must be (3, 3) or (N, 3, 3)", "give K in pixels"
        )
    u = torch.arange(columns, device=z.device, dtype=z.dtype).expand(rows, columns)
    v = torch.arange(rows, device=z.device, dtype=z.dtype).unsqueeze(1).expand(rows, columns)
    pixels = torch.stack((u, v, torch.ones_like(u))).flatten(1)
    inverse = torch.linalg.inv(intrinsics.to(z.device, torch.float64)).to(z.dtype)
    return (inverse.reshape(-1, 3, 3) @ pixels).unflatten(2, (rows, columns))


def _difference(points: Tensor, z: Tensor, dim: int, step: int) -> tuple[Tensor, Tensor]:
    """Return the differences of points along a dimension, and where there is one."""
    size = z.shape[dim]
    best = torch.zeros_like(points)
    least = torch.full_like(z, torch.inf)
    if size > step:
        along = points.narrow(dim, step, size - step) - points.narrow(dim, 0, size - step)
        first, second = z.narrow(dim, 0, size - step), z.narrow(dim, step, size - step)
        change = torch.where((first > 0) & (second > 0), (first - second).abs(), torch.inf)
        for start in (0, step):  # the next neighbour, then the one before
            here = least.narrow(dim, start, size - step)
            nearer = change < here
            target = best.narrow(dim, start, size - step)
            target.copy_(torch.where(nearer.unsqueeze(1), along, target))
            here.copy_(torch.where(nearer, change, here))
    return best, least.isfinite()
