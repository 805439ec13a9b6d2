"""Where labels go so that they can be read: pure geometry in pixels, the same for the same input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """An axis-parallel rectangle, in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area shared with another box.

        >>> Box(0, 0, 2, 2).overlap(Box(1, 1, 3, 3))
        1.0
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return float(max(width, 0.0) * max(height, 0.0))

    def outside(self, frame: Box) -> float:
        """How far, in pixels, the box sticks out of a frame, summed over its sides."""
        gaps = (frame.left - self.left, frame.top - self.top, self.right - frame.right, self.bottom - frame.bottom)
        return sum(max(g, 0.0) for g in gaps)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is closest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


def place_boxes(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    obstacles: Sequence[Box] = (),
) -> tuple[Box, ...]:
    """A box of the given size near each anchor, so that boxes overlap neither each other nor obstacles.

    Greedy, in the order given: the nearest free spot on rings around the anchor; where none is free, the spot
    with the least overlap.

    Args:
        anchors: (x, y) of each mark.
        sizes: (width, height) of each label.
        frame: boxes stay inside where they can.
        obstacles: boxes to keep clear of (marks, intervals).
    """
    placed: list[Box] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        best, best_cost = None, math.inf
        for box, distance in _spots(x, y, width, height):
            hidden = sum(box.overlap(o) for o in placed) * 4 + sum(box.overlap(o) for o in obstacles)
            cost = distance + 50 * hidden + 50 * box.outside(frame)
            if cost < best_cost:
                best, best_cost = box, cost
        assert best is not None
        placed.append(best)
    return tuple(placed)


def _spots(x: float, y: float, width: float, height: float) -> list[tuple[Box, float]]:
    out = []
    for ring, radius in enumerate((9, 16, 26, 40, 58, 80, 106, 136, 170, 210, 260)):
        for turn in range(16):
            angle = 2 * math.pi * turn / 16
            dx, dy = radius * math.cos(angle), -radius * math.sin(angle)
            left = x + dx - width * (1 - math.cos(angle)) / 2
            top = y + dy - height * (1 + math.sin(angle)) / 2
            # Labels to the right and left read best, so that they win within a ring.
            out.append((Box(left, top, left + width, top + height), radius + abs(math.sin(angle)) * (3 + ring)))
    return out


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> tuple[float, ...]:
    """Move positions on a line as little as can be until neighbours are `gap` apart, inside [low, high].

    Keeps the order. Where the line is too short, the gap shrinks to what fits.

    >>> spread([10.0, 10.0], 4.0, 0.0, 100.0)
    (8.0, 12.0)
    """
    n = len(positions)
    if n == 0:
        return ()
    gap = min(gap, (high - low) / max(n - 1, 1))
    order = sorted(range(n), key=lambda i: (positions[i], i))
    # Isotonic regression of the positions less their share of gaps: the least squares solution.
    blocks: list[list[float]] = []
    for k, i in enumerate(order):
        blocks.append([positions[i] - k * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    flat = [total / count for total, count in blocks for _ in range(int(count))]
    out = [0.0] * n
    for k, i in enumerate(order):
        out[i] = min(max(flat[k], low), high - (n - 1) * gap) + k * gap
    return tuple(out)
