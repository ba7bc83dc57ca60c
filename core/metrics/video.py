"""Figures of videos: PSNR and SSIM of frames by the inpainting protocols, and E_warp, how much a video flickers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .psnr import psnr
from .ssim import ssim

__all__ = ["Flow", "frame_psnr", "frame_ssim", "optical_flow", "visible", "warp_back", "warping_error"]

Frames = NDArray[np.uint8]
Field = NDArray[np.float32]
Flow = Callable[[Frames, Frames], Field]
Window = Literal["gaussian11", "uniform7", "uniform65"]
HIGHEST_PSNR = 100.0


def frame_psnr(prediction: Frames, target: Frames) -> NDArray[np.float64]:
    """PSNR of each frame over all channels, in dB, at most 100 (equal frames have no finite one).

    Args:
        prediction: (T, H, W, 3) uint8.
        target: the same.

    Returns:
        (T,). The inpainting protocol's figure is the mean over all frames of all clips.
    """
    found: NDArray[np.float64] = psnr(prediction, target).numpy()
    return np.minimum(found, HIGHEST_PSNR)


def frame_ssim(prediction: Frames, target: Frames, window: Window) -> NDArray[np.float64]:
    """SSIM of each frame, mean over the three channels.

    Args:
        prediction: (T, H, W, 3) uint8.
        target: the same.
        window: ``"gaussian11"``: Wang et al. (2004), see `ssim`; ``"uniform65"``: a mean over 65 x 65 pixels with
            sample covariances, the protocol of ProPainter and its successors; ``"uniform7"``: scikit-image's
            default, which HQVI's figures use. They differ much: name it beside the figure.

    Returns:
        (T,).

    Raises:
        ValueError: the window is unknown, or larger than the frames.
    """
    if window == "gaussian11":
        found: NDArray[np.float64] = ssim(prediction, target).numpy()
        return found
    if window not in ("uniform7", "uniform65"):
        raise ValueError(f"window is {window!r}; choose 'gaussian11', 'uniform7' or 'uniform65'")
    from skimage.metrics import structural_similarity

    size = int(window.removeprefix("uniform"))
    return np.array(
        [
            structural_similarity(a, b, win_size=size, channel_axis=-1, data_range=255)
            for a, b in zip(prediction, target, strict=True)
        ]
    )


def warping_error(
    frames: Frames, reference: Frames | None = None, flow: Flow | Literal["tvl1", "ilk"] = "tvl1"
) -> float:
    """E_warp: mean squared difference of frames to their warped successors where both show the same, in [0, 1] levels.

    "Learning Blind Video Temporal Consistency" (arXiv 1808.00449), with its tests for what is visible in both frames
    (forward-backward check and motion boundaries, see `visible`). It is usually quoted times 1000. Published figures
    use FlowNet2 or RAFT; with another flow only figures of one flow can be compared.

    Args:
        frames: (T, H, W, 3) uint8.
        reference: of the same shape; the flow is taken from it, so that no method is judged by its own flow. None is
            the frames themselves.
        flow: ``"tvl1"`` or ``"ilk"`` of scikit-image, or a function of two frames.

    Returns:
        the mean over pairs of neighbouring frames; 0 for a clip of one frame.
    """
    reference = frames if reference is None else reference
    estimate: Flow = flow if callable(flow) else lambda a, b: optical_flow(a, b, flow)
    errors = list(_pairs(frames, reference, estimate))
    return float(np.mean(errors)) if errors else 0.0


def _pairs(frames: Frames, reference: Frames, flow: Flow) -> Iterator[float]:
    for number in range(len(frames) - 1):
        forward = flow(reference[number], reference[number + 1])
        backward = flow(reference[number + 1], reference[number])
        seen = visible(forward, backward)
        if not seen.any():
            continue
        warped = warp_back(frames[number + 1].astype(np.float32) / 255, forward)
        difference = warped - frames[number].astype(np.float32) / 255
        yield float(np.square(difference, dtype=np.float64)[seen].mean())


def optical_flow(first: Frames, second: Frames, method: Literal["tvl1", "ilk"] = "tvl1") -> Field:
    """Where each pixel of a frame goes in the next one, by scikit-image.

    Args:
        first: (H, W, 3) uint8.
        second: the same.
        method: ``"tvl1"``: Zach et al. (2007), sharp at edges; ``"ilk"``: iterative Lucas-Kanade, about twice as quick.

    Returns:
        (H, W, 2): columns to the right, rows down.
    """
    from skimage.registration import optical_flow_ilk, optical_flow_tvl1

    grey = [f.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255 for f in (first, second)]
    estimate: dict[str, Callable[..., Any]] = {"tvl1": optical_flow_tvl1, "ilk": optical_flow_ilk}
    if method not in estimate:
        raise ValueError(f"flow is {method!r}; choose 'tvl1' or 'ilk'")
    rows, columns = estimate[method](grey[0], grey[1])
    return np.stack([columns, rows], -1).astype(np.float32)


def warp_back(frame: NDArray[np.float32], flow: Field) -> NDArray[np.float32]:
    """The next frame (H, W, C) as it looked one frame before: its value at where each pixel went, bilinear."""
    height, width = frame.shape[:2]
    rows, columns = np.indices((height, width), dtype=np.float32)
    x = (columns + flow[..., 0]).clip(0, width - 1)
    y = (rows + flow[..., 1]).clip(0, height - 1)
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = frame[top, left] * (1 - across) + frame[top, right] * across
    lower = frame[bottom, left] * (1 - across) + frame[bottom, right] * across
    return upper * (1 - down) + lower * down


def visible(forward: Field, backward: Field) -> NDArray[np.bool_]:
    """Pixels of a frame that are seen in the next one too: the way back leads home, and the motion has no edge there.

    Hidden is where |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5, b taken at where f leads, or where f leads out of the
    frame; a motion boundary is where |grad f|^2 > 0.01 |f|^2 + 0.002.

    Args:
        forward: (H, W, 2), from this frame to the next.
        backward: (H, W, 2), from the next frame to this one.

    Returns:
        bool (H, W).
    """
    height, width = forward.shape[:2]
    back = warp_back(backward, forward)
    length = np.square(forward).sum(-1)
    hidden = np.square(forward + back).sum(-1) > 0.01 * (length + np.square(back).sum(-1)) + 0.5
    rows, columns = np.indices((height, width), dtype=np.float32)
    x, y = columns + forward[..., 0], rows + forward[..., 1]
    outside = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
    slopes = [np.square(np.gradient(forward[..., c], axis=axis)) for c in (0, 1) for axis in (0, 1)]
    boundary = sum(slopes) > 0.01 * length + 0.002
    seen: NDArray[np.bool_] = ~(hidden | outside | boundary)
    return seen
