"""Human correction effort: how many clicks would mend a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["human_correction_effort"]

Bools = NDArray[np.bool_]
Point = tuple[int, int]  # row, column

# Clockwise as seen on the screen, from the right: (rows, columns).
_AROUND = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
FRAME = 1  # the number of the picture's rim, in which everything lies


def human_correction_effort(prediction: Bools, target: Bools, relax: int = 5, epsilon: float = 2.0) -> int:
    """Estimate the clicks that turn a mask into the true one: corners of polygons, plus separate regions.

    "Highly Accurate Dichotomous Image Segmentation" (Qin et al., 2022, arXiv 2203.03041). Errors thinner than twice
    ``relax`` pixels along outlines are forgiven, missed parts of the truth's skeleton never.

    Args:
        prediction: bool (H, W).
        target: bool (H, W).
        relax: pixels of tolerance.
        epsilon: how far in pixels a polygon may leave the outline.

    Returns:
        clicks; lower is better. 1024x1024 take half a second on one core, more for very ragged masks.
    """
    from skimage.morphology import skeletonize

    from ..data.masks import erode

    hits = prediction & target
    false_alarms, misses = prediction & ~target, target & ~prediction
    core = erode(prediction | target, relax, "diamond")
    false_alarms &= _regrown(false_alarms & core, ~target, relax)
    misses &= _regrown(misses & core, ~prediction, relax)
    misses |= skeletonize(target) & ~hits
    to_cut = _clicks(false_alarms, hits | misses, epsilon)
    return to_cut + _clicks(misses, ~(hits | false_alarms | misses), epsilon)


def _regrown(seed: Bools, within: Bools, steps: int) -> Bools:
    from ..data.masks import dilate

    for _ in range(steps):
        seed = dilate(seed, 1, "diamond") & within
    return seed


def _clicks(region: Bools, beside: Bools, epsilon: float) -> int:
    """Corners along the outlines of the region where they touch ``beside``, plus parts that nowhere do."""
    from skimage.measure import label

    from ..data.masks import dilate

    if not region.any():
        return 0
    beside = dilate(beside, 1, "diamond")
    parts = label(region, connectivity=2)
    alone = np.ones(int(parts.max()) + 1, dtype=bool)
    alone[0] = False
    free = beside.copy()  # what no earlier outline has been drawn along
    corners = 0
    for outline in _outlines(region):
        pieces: list[list[Point]] = [[]]
        for point in outline:
            if free[point]:
                free[point] = False
                alone[parts[point]] = False
                pieces[-1].append(point)
            elif pieces[-1]:
                pieces.append([])
        pieces = [piece for piece in pieces if piece]
        if len(pieces) > 1 and _neighbours(pieces[0][0], pieces[-1][-1]):
            pieces[-1].extend(reversed(pieces.pop(0)))
        corners += sum(_corners(piece, epsilon) for piece in pieces)
    return corners + int(alone.sum())


def _neighbours(a: Point, b: Point) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1


def _outlines(region: Bools) -> list[list[Point]]:
    """All outlines of 8-connected parts and of their holes, as closed chains of border pixels.

    The border following of Suzuki and Abe (1985): outer outlines run counter-clockwise from their top left pixel,
    those of holes clockwise. Each is followed by what lies in it; of those beside each other the lowest comes first.
    """
    padded = np.pad(region, 1)
    left, right = np.roll(padded, 1, 1), np.roll(padded, -1, 1)
    starts = padded & (~left | ~right)
    # 0 is empty, 1 not followed yet, else the number of an outline, negative if an empty pixel to the right was seen
    flat = padded.astype(np.int64).ravel().tolist()
    width = padded.shape[1]
    offsets = [dy * width + dx for dy, dx in _AROUND]
    chains: dict[int, list[int]] = {}
    parents, holes = {FRAME: FRAME}, {FRAME}
    inside: dict[int, list[int]] = {FRAME: []}
    for start in np.flatnonzero(starts).tolist():
        if flat[start] == 1 and not flat[start - 1]:
            entry, is_hole = 4, False  # from the left
        elif flat[start] >= 1 and not flat[start + 1]:
            entry, is_hole = 0, True  # from the right
        else:
            continue
        last = start  # the outline met before this one in the row; what it is tells where this one lies
        while abs(flat[last]) < 2 and last % width:
            last -= 1
        beside = abs(flat[last]) or FRAME
        number = len(parents) + 1
        parents[number] = parents[beside] if is_hole == (beside in holes) else beside
        inside[parents[number]].append(number)
        inside[number] = []
        if is_hole:
            holes.add(number)
        chains[number] = _follow(flat, start, entry, offsets, number)
    outlines, todo = [], list(inside[FRAME])
    while todo:
        number = todo.pop()
        outlines.append([(place // width - 1, place % width - 1) for place in chains[number]])
        todo += inside[number]
    return outlines


def _follow(flat: list[int], start: int, entry: int, offsets: list[int], number: int) -> list[int]:
    """One outline from a pixel and the direction in which an empty one lies; numbers what it passes."""
    for turn in range(8):  # clockwise: the pixel that will come last
        direction = (entry + turn) % 8
        if flat[start + offsets[direction]]:
            break
    else:
        flat[start] = -number
        return [start]
    last = start + offsets[direction]
    place, chain = start, []
    while True:
        chain.append(place)
        looked_right = False
        direction = (direction - 1) % 8
        while not flat[place + offsets[direction]]:  # counter-clockwise
            looked_right |= direction == 0
            direction = (direction - 1) % 8
        if looked_right:
            flat[place] = -number
        elif flat[place] == 1:
            flat[place] = number
        following = place + offsets[direction]
        if following == start and place == last:
            return chain
        place, direction = following, (direction + 4) % 8


def _corners(piece: list[Point], epsilon: float) -> int:
    """Points of the polygon that stays within epsilon of an open chain of pixels (Douglas and Peucker, 1973).

    A chain that ends where it starts is split at the pixel farthest from there, and is one point if that is near.
    """
    points = np.array(piece, dtype=np.int64)
    end = len(piece) - 1
    keep, todo = {0, end}, [(0, end)]
    if end > 0 and piece[0] == piece[end]:
        distance = ((points - points[0]) ** 2).sum(1)
        farthest = int(distance.argmax())
        if distance[farthest] <= epsilon**2:
            return 1
        keep, todo = {0, farthest}, [(0, farthest), (farthest, end)]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        chord, offset = points[last] - points[first], points[first + 1 : last] - points[first]
        length = int(
            (chord**2).sum()
        )  # squared, as are the distances, which are multiplied by it: whole numbers
        along = offset @ chord
        distance = (offset[:, 0] * chord[1] - offset[:, 1] * chord[0]) ** 2
        before, behind = along < 0, along > length
        distance[before] = (offset[before] ** 2).sum(1) * length
        distance[behind] = ((offset[behind] - chord) ** 2).sum(1) * length
        farthest = int(distance.argmax())
        if distance[farthest] > epsilon**2 * length:
            middle = first + 1 + farthest
            keep.add(middle)
            todo += [(first, middle), (middle, last)]
    return _straightened(points[sorted(keep)], epsilon)


def _straightened(corners: NDArray[np.int64], epsilon: float) -> int:
    """Count corners without those that lie almost on the line between their neighbours.

    A corner is dropped if the line is oblique, passes within epsilon / sqrt(2), and the chain does not turn back;
    after a dropped corner the next one stays. The published measure counts in this way.
    """
    count, start, i = len(corners), corners[0], 1
    left = count
    while i < count - 1 and left > 2:
        corner, end = corners[i], corners[i + 1]
        chord, offset = end - start, corner - start
        distance = abs(offset[0] * chord[1] - offset[1] * chord[0])
        forward = float((offset * (end - corner)).sum()) >= 0
        if forward and chord.all() and distance**2 <= 0.5 * epsilon**2 * (chord**2).sum():
            left, start, i = left - 1, end, i + 2
        else:
            start, i = corner, i + 1
    return left
