"""Search directions and paths between positions of a grid, for pairwise affinities.

After IRN (Ahn, Cho, Kwak, 2019), `misc/indexing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np


def search_directions(radius: int) -> list[tuple[int, int]]:
    """(dy, dx) of every pair within `radius`, half of the disc: the source lies above or left."""
    if radius < 2:
        raise ValueError(f"radius must be at least 2, got {radius}")
    directions = [(0, x) for x in range(1, radius)]
    directions += [
        (y, x) for y in range(1, radius) for x in range(-radius + 1, radius) if x * x + y * y < radius * radius
    ]
    return directions


def path_points(dy: int, dx: int) -> list[tuple[int, int]]:
    """Points (y, x) of the path from (dy, dx) back to (0, 0): less than 1 from the line, both ends included."""
    length = dy * dy + dx * dx
    points = [
        (y, x)
        for y in range(min(0, dy), max(0, dy) + 1)
        for x in range(min(0, dx), max(0, dx) + 1)
        if (dy * x - dx * y) ** 2 < length
    ]
    return sorted(points, key=lambda point: -(abs(point[0]) + abs(point[1])))


@dataclass(frozen=True)
class PathIndex:
    """All directions and paths of a radius on a grid.

    Directions are grouped by the number of points on their path, groups in rising order, search order inside.

    Attributes:
        radius: pairs lie closer than this, in positions.
        size: (h, w) of the grid.
        directions: int64 (directions, 2), (dy, dx) of each destination.
        paths: for each direction its points, int64 (points, 2), destination first and source last.
        group_ends: index of the direction after each group.
    """

    radius: int
    size: tuple[int, int]
    directions: np.ndarray
    paths: tuple[np.ndarray, ...]
    group_ends: tuple[int, ...]

    @property
    def source_shape(self) -> tuple[int, int]:
        """(rows, columns) of the sources: all destinations of these lie on the grid."""
        height, width = self.size
        return height - self.radius + 1, width - 2 * self.radius + 2

    @cached_property
    def sources(self) -> np.ndarray:
        """Flat positions of the sources, int64 (sources,): rows 0..h-R, columns R-1..w-R."""
        rows, columns = self.source_shape
        y, x = np.mgrid[0:rows, self.radius - 1 : self.radius - 1 + columns]
        return (y * self.size[1] + x).reshape(-1).astype(np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Every (dy, dx) that occurs on a path, int64 (offsets, 2)."""
        return np.unique(np.concatenate(self.paths), axis=0)

    @cached_property
    def path_offsets(self) -> tuple[np.ndarray, ...]:
        """For each group, int64 (paths, points): which row of `offsets` each point is."""
        rows = {tuple(offset): row for row, offset in enumerate(self.offsets.tolist())}
        groups, start = [], 0
        for end in self.group_ends:
            group = [[rows[tuple(point)] for point in path.tolist()] for path in self.paths[start:end]]
            groups.append(np.array(group, dtype=np.int64))
            start = end
        return tuple(groups)

    def flat_paths(self, paths: tuple[np.ndarray, ...]) -> np.ndarray:
        """Flat positions of one group's paths for every source: int64 (paths, points, sources)."""
        points = np.stack(paths)
        steps = points[..., 0] * self.size[1] + points[..., 1]
        return steps[..., None] + self.sources


@lru_cache(maxsize=64)
def _grouped_paths(radius: int) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[int, ...]]:
    by_length: dict[int, list[tuple[tuple[int, int], list[tuple[int, int]]]]] = {}
    for direction in search_directions(radius):
        path = path_points(*direction)
        by_length.setdefault(len(path), []).append((direction, path))
    directions, paths, ends = [], [], []
    for length in sorted(by_length):
        for direction, path in by_length[length]:
            directions.append(direction)
            paths.append(np.array(path, dtype=np.int64))
        ends.append(len(directions))
    return np.array(directions, dtype=np.int64), tuple(paths), tuple(ends)


@lru_cache(maxsize=32)
def path_index(radius: int, size: tuple[int, int]) -> PathIndex:
    """Directions and paths of `radius` on a grid of `size` (h, w); cached.

    Raises ValueError when no source fits: the grid needs h >= radius and w >= 2 * radius - 1.
    """
    height, width = size
    if height < radius or width < 2 * radius - 1:
        raise ValueError(
            f"a grid of {height}x{width} is too small for paths of radius {radius} (at least {radius}x{2 * radius - 1})"
        )
    directions, paths, ends = _grouped_paths(radius)
    return PathIndex(radius, (height, width), directions, paths, ends)
