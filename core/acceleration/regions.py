"""Region-adaptive sampling: which tokens a step refreshes, and which keep their last prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PolyditError

__all__ = ["RAS", "Selection"]


@dataclass(frozen=True)
class RAS:
    """Region-Adaptive Sampling for transformers (arXiv 2502.10389): from step to step only part of the tokens is run.

    Tokens whose prediction varies least over its channels, which is where the subject is, are refreshed; the others
    keep the prediction they had, and stay visible by their last keys and values. A token that was left out often gets
    its turn: each time, its rank moves towards the refreshed ones by the factor ``exp(starvation)``.

    Args:
        ratio: of the tokens that are refreshed; 1 is no acceleration, bit for bit.
        start: first step that leaves tokens out; the steps before are dense.
        end: first dense step at the end; None is none.
        resets: dense steps in between.
        high_ratio: of the tokens left out, the part that is taken from the most varied ones; the rest are the least
            varied.
        starvation: see above; 0 is by the present prediction alone.
        metric: ``"std"`` over the channels, or their ``"norm"``.
        step_change: with ``step_length``, how many tokens fewer each group of steps refreshes.
        step_length: of a group of steps; 0 refreshes as many in all.
        released: as the released code does it: having been left out raises the chance of being left out again, and
            the step ``end`` still uses the last selection.

    Raises:
        PolyditError: a ratio that is none, or a start at the first step.
    """

    ratio: float = 0.5
    start: int = 4
    end: int | None = None
    resets: Sequence[int] = ()
    high_ratio: float = 1.0
    starvation: float = 0.1
    metric: Literal["std", "norm"] = "std"
    step_change: int = 0
    step_length: int = 0
    released: bool = False

    def __post_init__(self) -> None:
        for name in ("ratio", "high_ratio"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "ratio" and value == 0):
                raise PolyditError(f"RAS {name} {value}: a part of the tokens; give a number up to 1")
        if self.metric not in ("std", "norm"):
            raise PolyditError(f"RAS metric {self.metric!r}: is unknown; give std or norm")
        if not self.starvation >= 0:
            raise PolyditError(f"RAS starvation {self.starvation}: of tokens that wait; give 0 or more")
        if any(step < 0 for step in self.resets):
            raise PolyditError(
                f"RAS resets {list(self.resets)}: steps are counted from 0; leave negative ones out"
            )
        if self.start < 1:
            raise PolyditError(f"RAS start {self.start}: the first step is dense; give 1 or more")
        if self.released and self.high_ratio == 0:
            raise PolyditError("RAS high_ratio 0: the released code leaves no token over; use released=False")

    def __str__(self) -> str:
        return f"RAS(ratio={self.ratio:g}, start={self.start})"

    def attach(self, outer: Any, pipe: Any, strict: bool) -> Any:
        """What ``accelerate`` does with it."""
        from .region_sampling import RegionHandle

        return RegionHandle(outer, self, pipe, strict)

    def is_partial(self, step: int, total: int) -> bool:
        """Whether a step leaves tokens out."""
        end = total if self.end is None else self.end
        last = end if self.released else end - 1
        return self.ratio < 1 and self.start <= step <= min(last, total - 1) and step not in self.resets

    def skips(self, step: int, tokens: int, total: int) -> int:
        """How many tokens a step leaves out."""
        count = int((1 - self.ratio) * tokens)
        if self.step_length:
            middle = ((total + self.start) // self.step_length) // 2
            count += self.step_change * (step // self.step_length - middle)
            count = count // 64 * 64
        return min(max(count, 0), tokens - 1)


class Selection:
    """Choices and kept predictions of one run.

    Args:
        settings: of the method.
        patch: height and width of a token in latents.
        total: steps of the run.
        channels: of the prediction itself; a network may say more of each pixel, such as its variance.

    Attributes:
        active: (B, n) tokens that the next step refreshes, ascending; None for all.
        dropped: (B, N) how often each token was left out.
        kept: (B, C, H, W) the prediction that tokens left out keep.
    """

    def __init__(
        self, settings: RAS, patch: tuple[int, int], total: int, channels: int | None = None
    ) -> None:
        self.settings, self.patch, self.total, self.channels = settings, patch, total, channels
        self.active: Tensor | None = None
        self.dropped: Tensor | None = None
        self.kept: Tensor | None = None

    def merge(self, step: int, prediction: Tensor) -> Tensor:
        """The prediction (B, C, H, W) of a step with what was left out filled in; chooses for the step behind it."""
        if self.settings.is_partial(step, self.total) and self.active is not None and self.kept is not None:
            fresh = self._pixels(self._mask(self.active, prediction), prediction)
            prediction = torch.where(fresh, prediction, self.kept)
        following = step + 1
        end = self.total if self.settings.end is None else self.settings.end
        if self.settings.is_partial(following, self.total) and following < end:
            self._choose(following, prediction)
        self.kept = prediction
        return prediction

    def active_in(self, step: int) -> Tensor | None:
        """The tokens that a step runs, None for all."""
        return self.active if self.settings.is_partial(step, self.total) else None

    def scores(self, prediction: Tensor) -> Tensor:
        """How varied each token's prediction is, (B, N)."""
        values = prediction[:, : self.channels].float()
        spread = values.std(dim=1) if self.settings.metric == "std" else values.norm(dim=1)
        return F.avg_pool2d(spread[:, None], self.patch).flatten(1)

    def _choose(self, step: int, prediction: Tensor) -> None:
        scores = self.scores(prediction)
        if self.dropped is None:
            self.dropped = torch.zeros_like(scores, dtype=torch.long)
        count = self.settings.skips(step, scores.shape[1], self.total)
        if count == 0:
            self.active = None
            return
        weight = torch.exp(self.settings.starvation * self.dropped.float())
        high = int(count * self.settings.high_ratio)
        low = int(count * (1 - self.settings.high_ratio)) if self.settings.released else count - high
        left_out = torch.zeros_like(scores, dtype=torch.bool)
        if self.settings.released:
            order = (scores * weight).argsort(dim=1)
            left_out.scatter_(1, order[:, :low], True)
            left_out.scatter_(1, order[:, order.shape[1] - high :], True)
        else:
            left_out.scatter_(1, (scores / weight).topk(high, dim=1).indices, True)
            waiting = (scores * weight).masked_fill(left_out, float("inf"))
            left_out.scatter_(1, waiting.topk(low, dim=1, largest=False).indices, True)
        self.dropped = self.dropped + left_out
        # Every sample leaves out as many, so the rest is a rectangle.
        self.active = (~left_out).nonzero()[:, 1].unflatten(0, (scores.shape[0], -1))

    def _mask(self, active: Tensor, prediction: Tensor) -> Tensor:
        tokens = prediction.shape[-2] // self.patch[0] * (prediction.shape[-1] // self.patch[1])
        mask = torch.zeros(prediction.shape[0], tokens, dtype=torch.bool, device=prediction.device)
        return mask.scatter_(1, active, True)

    def _pixels(self, mask: Tensor, prediction: Tensor) -> Tensor:
        height, width = (size // patch for size, patch in zip(prediction.shape[-2:], self.patch, strict=True))
        grid = mask.unflatten(1, (height, width))[:, None]
        return grid.repeat_interleave(self.patch[0], 2).repeat_interleave(self.patch[1], 3)
