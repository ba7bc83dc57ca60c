"""What other frames show of what a mask hides: carried along the camera's motion, before any network looks.

"DiffuEraser" (arXiv 2501.10018) starts its diffusion from such a result. Here a plane's motion between neighbouring
frames is estimated on what is not hidden, and each hidden pixel takes its colour from the frames, nearest in time
first, in which its place is to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.alpha import fill_smoothly
from ...core.data.masks import bounding_box, dilate
from .camera import motions, project, sample_at, scenes_of

__all__ = ["Propagated", "agree", "chained", "propagate"]

_RIM = 6  # pixels around the hole by which a frame is compared with what was carried there
_NEAREST = 4  # frames that are mixed
_SOFT = 0.06  # difference on the rim, of the full range, at which a frame counts half


@dataclass(frozen=True)
class Propagated:
    """A clip whose holes are filled.

    Attributes:
        frames: (T, 3, H, W) in [0, 1]; outside of the holes the given frames.
        seen: (T, 1, H, W) in [0, 1], how far to trust it: 1 where it was given, near 1 where other frames show it, 0
            where it is only a smooth continuation of what is around.
        chains: motion of the camera from the first frame to each, (3, 3); empty where nothing was hidden.
        scenes: number of each frame's scene; nothing is carried over a cut.
    """

    frames: Tensor
    seen: Tensor
    chains: tuple[Tensor, ...] = ()
    scenes: tuple[int, ...] = ()


def propagate(
    frames: Tensor, hole: Tensor, reach: int | None = None, given: Sequence[Tensor] | None = None
) -> Propagated:
    """Fill holes from other frames, and smoothly where no frame shows what is there.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        hole: (T, 1, H, W), above 0 where a pixel is to be filled.
        reach: frames to either side to look at; None is all.
        given: the camera's motion from each frame to the next, where it is known already (:func:`.camera.motions`);
            then all frames are of one scene.
    """
    holes = hole > 0
    count = len(frames)
    if not holes.any():
        return Propagated(frames, torch.ones_like(frames[:, :1]))
    # The rim of a hole often has colours of what is hidden mixed in: it is not looked at.
    doubtful = dilate(holes, 1)
    steps = motions(frames, doubtful) if given is None else given
    scenes = scenes_of(frames, doubtful, steps) if given is None else [0] * count
    chains = chained(steps)
    inverse = [torch.linalg.inv(chain) for chain in chains]
    filled, seen = frames.clone(), (~holes).float()
    for number in range(count):
        box = bounding_box(holes[number], margin=_RIM + 2)
        if box is None:
            continue
        part = (slice(None), *box.slices)
        here = holes[number][part]
        around = dilate(here, _RIM) & ~dilate(here, 1)
        rows, columns = (here | around)[0].nonzero().unbind(1)
        places = torch.stack([columns + box.left, rows + box.top], 1).double()
        on_rim = around[0][rows, columns]
        truth = frames[number][part][:, rows, columns]
        total = torch.zeros_like(truth)
        weight = torch.zeros(len(places))
        taken = torch.zeros(len(places), dtype=torch.int64)
        for other in _by_nearness(number, scenes, reach):
            open_to = taken < _NEAREST
            if not open_to[~on_rim].any():
                break
            there = project(chains[other] @ inverse[number], places)
            clear = sample_at((~doubtful[other]).float()[None], there)[0] > 0.999
            use = clear & (open_to | on_rim)
            if not use.any():
                continue
            colour = sample_at(frames[other][None], there[use], "bicubic").clamp(0, 1)
            compared = on_rim[use]
            trust = 1.0
            if compared.any():
                difference = (colour[:, compared] - truth[:, on_rim & use]).abs().mean()
                trust = float(1 / (1 + (difference / _SOFT) ** 2))
            share = trust / abs(other - number)
            total[:, use] += share * colour
            weight[use] += share
            taken[use] += 1
        known = weight > 0
        mean = total / weight.clamp(min=1e-8)
        picture, there_map = frames[number][part].clone(), torch.zeros_like(frames[number][part][:1])
        offset, offset_known = torch.zeros_like(picture), torch.zeros_like(there_map)
        carried = known & ~on_rim
        picture[:, rows[carried], columns[carried]] = mean[:, carried]
        # Where the rim is darker or brighter than what was carried to it, so is the hole: the difference is continued.
        rim = known & on_rim
        offset[:, rows[rim], columns[rim]] = (truth - mean)[:, rim]
        offset_known[:, rows[rim], columns[rim]] = 1
        if rim.any():
            smooth = fill_smoothly(_blurred(offset, offset_known)[None], offset_known[None])[0]
            picture[:, rows[carried], columns[carried]] += smooth[:, rows[carried], columns[carried]]
        there_map[0, rows[carried], columns[carried]] = (weight / weight.clamp(min=1))[carried].clamp(max=1)
        solid = torch.where(here, (there_map > 0).float(), torch.ones_like(there_map))
        filled[number][part] = fill_smoothly(picture.clamp(0, 1)[None], solid[None])[0]
        seen[number][part] = torch.where(here, there_map, torch.ones_like(there_map))
    filled = agree(filled, (seen == 0) & holes, chains, scenes)
    return Propagated(filled, seen, tuple(chains), tuple(scenes))


def agree(
    frames: Tensor, loose: Tensor, chains: Sequence[Tensor], scenes: Sequence[int], most: int = 12
) -> Tensor:
    """Let frames agree on what none of them shows: each such pixel becomes the mean of what is said of its place.

    Args:
        frames: (T, 3, H, W).
        loose: (T, 1, H, W) bool, what was made up.
        chains: from places in the first frame to those in each, see :func:`chained`.
        scenes: number of each frame's; only frames of the same scene are asked.
        most: frames that are asked, spread evenly over the clip.

    Returns:
        (T, 3, H, W); what is not loose stays.
    """
    if not loose.any() or len(frames) < 2:
        return frames
    result = frames.clone()
    asked = sorted({round(i) for i in torch.linspace(0, len(frames) - 1, min(most, len(frames))).tolist()})
    inverse = [torch.linalg.inv(chain) for chain in chains]
    marked = torch.cat([frames * loose, loose.float()], 1)
    for number in range(len(frames)):
        rows, columns = loose[number, 0].nonzero().unbind(1)
        if not len(rows):
            continue
        places = torch.stack([columns, rows], 1).double()
        own = frames[number][:, rows, columns]
        total, weight = own.clone(), torch.ones(len(rows))
        for other in asked:
            if other != number and scenes[other] == scenes[number]:
                found = sample_at(marked[other][None], project(chains[other] @ inverse[number], places))
                said = found[3] > 0.999
                total[:, said] += found[:3, said]
                weight[said] += 1
        result[number][:, rows, columns] = total / weight
    return result


def chained(steps: Sequence[Tensor]) -> list[Tensor]:
    """From motions between neighbours to those from the first frame to each."""
    chains = [torch.eye(3, dtype=torch.float64)]
    for step in steps:
        moved = step @ chains[-1]
        chains.append(moved / moved[2, 2])
    return chains


def _by_nearness(number: int, scenes: Sequence[int], reach: int | None) -> list[int]:
    others = [
        other
        for other, scene in enumerate(scenes)
        if other != number and scene == scenes[number] and (reach is None or abs(other - number) <= reach)
    ]
    return sorted(others, key=lambda other: abs(other - number))


def _blurred(values: Tensor, known: Tensor) -> Tensor:
    """Mean of what is known within a few pixels: noise of single pixels is no change of brightness."""
    kernel = 5
    total = F.avg_pool2d(values[None], kernel, 1, kernel // 2)[0]
    share = F.avg_pool2d(known[None], kernel, 1, kernel // 2)[0]
    return total / share.clamp(min=1e-6)
