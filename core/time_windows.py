"""Long clips through networks that take short ones: windows over time, with or without overlap.

Four ways, all for clips (B, C, T, ...), frames of pixels or of latents:

- `plain`: window after window; where windows overlap, the results are crossfaded;
- `hand_over`: each window begins with the last frames of the result before, given as known (EraserDiT's released
  streaming; 121 frames with 9 known there);
- `averaged`: at every sampling step the answers of overlapping windows are averaged ("MultiDiffusion",
  arXiv 2302.08113);
- `circular`: at every sampling step the clip, mirrored into a ring, is cut into windows elsewhere (circular
  position-shift of "EraserDiT", arXiv 2506.12853, its Algorithm 1).

A network that treats every frame by itself gives the same with each of them as on the whole clip. For clips that do
not fit into memory, `stream_windows` cuts an iterable of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = [
    "CircularShift",
    "StreamWindow",
    "averaged",
    "from_ring",
    "hand_over",
    "mirrored",
    "plain",
    "plan_windows",
    "stream_windows",
    "to_ring",
]

T = TypeVar("T")
Denoise = Callable[[Tensor, Tensor], Tensor]


def plan_windows(length: int, window: int, overlap: int = 0) -> list[slice]:
    """Windows that cover a clip, all of the same length.

    The last one is moved back so that it ends with the clip and overlaps the one before by more than asked. A clip
    shorter than a window is one window of its own length.

    Raises:
        ValueError: a length or window below 1, or an overlap that is not below the window.
    """
    if length < 1 or window < 1 or not 0 <= overlap < window:
        raise ValueError(f"windows of {window} frames with {overlap} in common do not cut {length} frames")
    if length <= window:
        return [slice(0, length)]
    starts = [*range(0, length - window, window - overlap), length - window]
    return [slice(start, start + window) for start in starts]


def ramp(window: int, before: int, after: int, like: Tensor) -> Tensor:
    """Weights (window,) that rise linearly over the frames in common with the window before, and fall likewise."""
    weights = torch.ones(window, dtype=like.dtype, device=like.device)
    for count, flip in ((before, False), (after, True)):
        rise = torch.arange(1, count + 1, dtype=like.dtype, device=like.device) / (count + 1)
        if count and not flip:
            weights[:count] *= rise
        elif count:
            weights[window - count :] *= rise.flip(0)
    return weights


def plain(fn: Callable[[Tensor], Tensor], clip: Tensor, window: int, overlap: int = 0) -> Tensor:
    """Window after window; what windows have in common is crossfaded linearly.

    Args:
        fn: (B, C, t, ...) to (B, C', t, ...), t at most `window`.
        clip: (B, C, T, ...).
        window: frames.
        overlap: frames that neighbouring windows have in common.
    """
    plan = plan_windows(clip.shape[2], window, overlap)
    return _blend(plan, (fn(clip[:, :, part]) for part in plan), clip.shape[2], crossfade=True)


def hand_over(fn: Callable[[Tensor, Tensor | None], Tensor], clip: Tensor, window: int, known: int) -> Tensor:
    """Window after window; each is told the last frames of the result so far.

    Args:
        fn: called with (B, C, t, ...) and the results of its first frames (B, C', known, ...) or None for the first
            window; gives (B, C', t, ...), of which the known frames are not used.
        clip: (B, C, T, ...).
        window: frames.
        known: frames handed over.
    """
    result: Tensor | None = None
    for part in plan_windows(clip.shape[2], window, known):
        if result is None:
            result = fn(clip[:, :, part], None)
            continue
        handed = result[:, :, part.start :]
        new = fn(clip[:, :, part], handed)
        result = torch.cat([result, new[:, :, handed.shape[2] :]], 2)
    assert result is not None
    return result


def averaged(denoise: Denoise, window: int, overlap: int, crossfade: bool = True) -> Denoise:
    """A network for clips of any length, that averages windows at every call (MultiDiffusion).

    Args:
        denoise: the network for `window` frames: (B, C, t, ...) and timestep.
        window: frames.
        overlap: frames in common.
        crossfade: weigh answers less towards the ends of their window; False is the plain mean.
    """

    def call(x_t: Tensor, timestep: Tensor) -> Tensor:
        plan = plan_windows(x_t.shape[2], window, overlap)
        parts = (denoise(x_t[:, :, part], timestep) for part in plan)
        return _blend(plan, parts, x_t.shape[2], crossfade)

    return call


def to_ring(clip: Tensor) -> Tensor:
    """A clip (B, C, T, ...) mirrored into a ring of 2 T - 2 frames, every window of which is continuous.

    Latents of a causal autoencoder are not mirrored latents: mirror the pixels, then encode.
    """
    return torch.cat([clip, clip[:, :, 1:-1].flip(2)], 2) if clip.shape[2] > 2 else clip


def from_ring(ring: Tensor, frames: int) -> Tensor:
    """The clip's own frames of a ring."""
    return ring[:, :, :frames]


class CircularShift:
    """A network for rings, that cuts them at another place at every call (circular position-shift).

    Windows begin at the offset and follow one another round the ring; where the last one runs into the first, the
    answers are averaged. Each call moves the offset on, so that no two steps have their borders at the same frames.

    Args:
        denoise: the network for `window` frames: (B, C, t, ...) and timestep.
        window: frames.
        shift: by how much each call moves on; None is about a third of the window.

    Attributes:
        offset: of the next call. Set it to 0 before a new clip, or make a new one.
    """

    def __init__(self, denoise: Denoise, window: int, shift: int | None = None) -> None:
        if window < 1:
            raise ValueError(f"a window of {window} frames holds nothing")
        self.denoise, self.window = denoise, window
        self.shift = max(1, window // 3) if shift is None else shift
        self.offset = 0

    def __call__(self, ring: Tensor, timestep: Tensor) -> Tensor:
        """Answers for all frames of a ring (B, C, L, ...)."""
        length = ring.shape[2]
        if length <= self.window:
            return self.denoise(ring, timestep)
        self.offset = (self.offset + self.shift) % length
        turned = ring.roll(-self.offset, 2)
        count = -(-length // self.window)
        # Past the ring's end it goes on with its beginning.
        padded = torch.cat([turned, turned[:, :, : count * self.window - length]], 2)
        parts = [self.denoise(part, timestep) for part in padded.split(self.window, 2)]
        answer = torch.cat(parts, 2)
        extra = answer.shape[2] - length
        answer[:, :, :extra] = (answer[:, :, :extra] + answer[:, :, length:]) / 2
        return answer[:, :, :length].roll(self.offset, 2)


def mirrored(frames: Sequence[T], length: int) -> list[T]:
    """A sequence continued to a length by going back and forth, without repeating the ends."""
    if not frames:
        raise ValueError("nothing to continue")
    if len(frames) == 1:
        return [*frames] * length
    period = 2 * len(frames) - 2
    return [frames[i if i < len(frames) else period - i] for i in (n % period for n in range(length))]


@dataclass(frozen=True)
class StreamWindow(Generic[T]):
    """A window of a stream.

    Attributes:
        frames: `window` of them; the first `known` were in the window before, the last `padding` continue the clip
            backwards.
        start: number of the first frame in the clip.
        known: how many were at the end of the window before.
        padding: how many are made up at the end of the clip.
    """

    frames: list[T]
    start: int
    known: int
    padding: int


def stream_windows(
    frames: Iterable[T], window: int, known: int = 0, length: Callable[[int], int] | None = None
) -> Iterator[StreamWindow[T]]:
    """Cut a stream of frames; no more than one window of it is in memory.

    Args:
        frames: of the clip.
        window: frames of each window.
        known: frames at its beginning that the window before had at its end; 0 for the first window.
        length: gives the length of the last window, which has so many frames of its own or more: 8 k + 1 for LTX-Video,
            4 k + 1 for Wan and CogVideoX. None is the window.

    Raises:
        ValueError: `known` is not below `window`.
    """
    if not 0 <= known < window:
        raise ValueError(f"windows of {window} frames cannot begin with {known} known ones")
    held: list[T] = []
    start, fresh = 0, 0
    for frame in frames:
        held.append(frame)
        fresh += 1
        if len(held) == window:
            yield StreamWindow(list(held), start, window - fresh, 0)
            start += window - known
            held, fresh = held[window - known :], 0
    if fresh:
        whole = window if length is None else min(window, max(length(len(held)), len(held)))
        yield StreamWindow(mirrored(held, whole), start, len(held) - fresh, whole - len(held))


def _blend(plan: list[slice], parts: Iterable[Tensor], length: int, crossfade: bool) -> Tensor:
    total: Tensor | None = None
    weight = torch.zeros(0)
    for number, (part, new) in enumerate(zip(plan, parts, strict=True)):
        if total is None:
            total = new.new_zeros(*new.shape[:2], length, *new.shape[3:])
            weight = new.new_zeros(length)
        before = max(0, plan[number - 1].stop - part.start) if number else 0
        after = max(0, part.stop - plan[number + 1].start) if number + 1 < len(plan) else 0
        weights = ramp(new.shape[2], before if crossfade else 0, after if crossfade else 0, new)
        total[:, :, part] += new * weights.view(-1, *[1] * (new.ndim - 3))
        weight[part] += weights
    assert total is not None
    return total / weight.view(-1, *[1] * (total.ndim - 3))
