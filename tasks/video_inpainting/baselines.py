"""What inpainting is compared with: no network, no diffusion, all of it in scikit-image and NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.alpha import fill_smoothly
from ...core.metrics.video import optical_flow, visible, warp_back

__all__ = ["BASELINES", "biharmonic", "flow_fill", "temporal_median"]

Frames = NDArray[np.uint8]
Masks = NDArray[np.bool_]


def biharmonic(frames: Frames, masks: Masks) -> Frames:
    """scikit-image's biharmonic inpainting, frame by frame.

    Args:
        frames: (T, H, W, 3).
        masks: (T, H, W).
    """
    from skimage.restoration import inpaint_biharmonic

    done = frames.copy()
    for number, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        if mask.any():
            filled = inpaint_biharmonic(
                frame.astype(np.float64) / 255, mask, channel_axis=-1, split_into_regions=True
            )
            done[number] = (filled * 255).round().clip(0, 255).astype(np.uint8)
    return done


def temporal_median(frames: Frames, masks: Masks) -> Frames:
    """Median over time of what is not masked; what is masked in all frames is filled biharmonically."""
    values = np.where(masks[..., None], np.nan, frames.astype(np.float32))
    never = masks.all(0)
    values[:, never] = 0
    median = np.nanmedian(values, 0)
    done = np.where(masks[..., None], median[None], frames).round().clip(0, 255).astype(np.uint8)
    return biharmonic(done, masks & never[None]) if never.any() else done


def flow_fill(frames: Frames, masks: Masks) -> Frames:
    """Fill along optical flow, forwards and backwards through the clip, as flow-guided methods do.

    The flow (scikit-image's TV-L1, on frames filled smoothly) is continued smoothly into the masks, and each masked
    pixel takes the colour of the neighbouring frame where the flow leads and its two directions agree; both passes
    are averaged, and what neither reaches is filled biharmonically.
    """
    smooth = _smooth(frames, masks)
    count = len(frames)
    ahead = [_continued(optical_flow(smooth[n], smooth[n + 1]), masks[n]) for n in range(count - 1)]
    behind = [_continued(optical_flow(smooth[n + 1], smooth[n]), masks[n + 1]) for n in range(count - 1)]
    forward = _carry(frames, masks, behind, ahead, range(1, count), -1)
    backward = _carry(frames, masks, ahead, behind, range(count - 2, -1, -1), 1)
    done, left = frames.astype(np.float32), masks.copy()
    for number in range(count):
        values = [(v[number], k[number]) for v, k in (forward, backward)]
        weight = sum(k.astype(np.float32) for _, k in values)[..., None]
        mean = sum(v * k[..., None] for v, k in values) / np.maximum(weight, 1)
        take = masks[number] & (weight[..., 0] > 0)
        done[number][take] = mean[take]
        left[number] &= ~take
    result = done.round().clip(0, 255).astype(np.uint8)
    return biharmonic(result, left)


BASELINES: dict[str, Callable[[Frames, Masks], Frames]] = {
    "biharmonic": biharmonic,
    "temporal median": temporal_median,
    "flow": flow_fill,
}
"""By the name in tables: frames (T, H, W, 3) uint8 and masks (T, H, W) to frames."""


def _smooth(frames: Frames, masks: Masks) -> Frames:
    pixels = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float()
    known = torch.from_numpy(~masks)[:, None].float()
    filled = fill_smoothly(pixels, known).permute(0, 2, 3, 1)
    return filled.round().clamp(0, 255).byte().numpy()


def _continued(flow: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    field = torch.from_numpy(flow.copy()).permute(2, 0, 1)[None]
    known = torch.from_numpy(~mask)[None, None].float()
    found: NDArray[np.float32] = fill_smoothly(field, known)[0].permute(1, 2, 0).numpy()
    return found


def _carry(
    frames: Frames,
    masks: Masks,
    back: list[NDArray[np.float32]],
    there: list[NDArray[np.float32]],
    order: range,
    step: int,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One pass: colours, and where they are known; ``back[n]`` leads to the frame that was done before."""
    values, known = frames.astype(np.float32), ~masks
    for number in order:
        source, pair = number + step, min(number, number + step)
        flow = back[pair]
        agrees = visible(flow, there[pair])
        carried = warp_back(np.dstack([values[source], known[source].astype(np.float32)]), flow)
        take = masks[number] & agrees & (carried[..., 3] > 0.999)
        values[number][take] = carried[..., :3][take]
        known[number] |= take
    return values, known
