"""Re-ttention: a fixed band of attention whose softmax is repaired by what full steps have seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..attention.masks import band_mask
from ..attention.sparse import attend_with_lse, band_attend, row_lse
from ..errors import PolyditError
from .attention_site import AttentionPolicy, AttentionSite
from .clock import Moment
from .sites import CacheSite

__all__ = ["Rettention", "repaired_attention", "softmax_ratio"]


def softmax_ratio(full_lse: Tensor, sparse_lse: Tensor) -> Tensor:
    """Part of each row's softmax that the mask keeps, from 0 to 1: (B, H, N) each."""
    return torch.exp(sparse_lse - full_lse)


def repaired_attention(out: Tensor, ratio: Tensor) -> Tensor:
    """A masked attention (B, H, N, d) whose rows sum to ``ratio`` (B, H, N) rather than to 1."""
    return out * ratio[..., None].to(out.dtype)


class Rettention(AttentionPolicy):
    """Attend within a narrow band, scaled as the full softmax would (arXiv 2505.22918).

    A full step remembers per row which part of the softmax falls into the band, and what a band so scaled misses of the
    output. Between full steps the band is computed, scaled by the remembered part, and the missed output is added;
    after each such step the part is raised, since it has been seen to grow.

    Args:
        sparsity: width of the band over the number of tokens (published: 0.03125, "96.9 %", and 0.0625).
        warmup: first steps, full.
        interval: every how many steps behind them is full.
        raise_by: added to the part after each sparse step.
        clamp: keep the part at 1 or below; the released code does not.
        text_tokens: how many tokens of a joint sequence are text, which sees and is seen by all.
        text_first: whether they stand in front.
        frame_tokens: of a video, tokens of one frame: the band is then that of the places within frames, between all
            frames. 0 is one band over all.

    Raises:
        PolyditError: a width that is none, an interval below 1.
    """

    def __init__(
        self,
        sparsity: float = 0.0625,
        warmup: int = 5,
        interval: int = 5,
        raise_by: float = 0.04,
        clamp: bool = False,
        text_tokens: int = 0,
        text_first: bool = True,
        frame_tokens: int = 0,
    ) -> None:
        if not 0 < sparsity <= 2:  # a band of twice the length holds all
            raise PolyditError(f"sparsity {sparsity}: width of the band over the tokens; give more than 0")
        if interval < 1 or warmup < 1:
            raise PolyditError(f"warmup {warmup}, interval {interval}: of full steps; give 1 or more")
        self.sparsity, self.warmup, self.interval = sparsity, warmup, interval
        self.raise_by, self.clamp = raise_by, clamp
        self.text_tokens, self.text_first, self.frame_tokens = text_tokens, text_first, frame_tokens

    def site(self, name: str, module: nn.Module) -> AttentionSite:
        """One band."""
        return _BandSite(name, module, self)

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """The warm-up, its end, and every n-th step."""
        step = moment.step
        full = step <= self.warmup or step % self.interval == 0
        assert isinstance(site, _BandSite)
        site.refreshing = full and step >= self.warmup
        return full

    def mask(self, tokens: int) -> Tensor:
        """(N, N) of a sequence, as the dense reference has it."""
        image = tokens - self.text_tokens
        if self.frame_tokens:
            if image % self.frame_tokens:
                raise PolyditError(f"{self}: {image} tokens are no whole frames of {self.frame_tokens}")
            frames = image // self.frame_tokens
            band = band_mask(self.frame_tokens, int(self.frame_tokens * self.sparsity) // 2)
            band = band.repeat(frames, frames)
        else:
            band = band_mask(image, int(image * self.sparsity) // 2)
        if not self.text_tokens:
            return band
        mask = torch.ones(tokens, tokens, dtype=torch.bool)
        start = self.text_tokens if self.text_first else 0
        mask[start : start + image, start : start + image] = band
        return mask

    def sparse(self) -> Callable[[Tensor, Tensor, Tensor, float | None], tuple[Tensor, Tensor]]:
        """The masked attention and its log-sum-exp: by windows where the mask is one band, else dense."""

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
            tokens = query.shape[2]
            if self.text_tokens or self.frame_tokens:
                return attend_with_lse(query, key, value, self.mask(tokens).to(query.device), scale)
            return band_attend(query, key, value, int(tokens * self.sparsity) // 2, scale)

        return attend

    def __repr__(self) -> str:
        return f"Rettention(sparsity={self.sparsity}, warmup={self.warmup}, interval={self.interval})"


class _BandSite(AttentionSite):
    """Keeps, per branch, the part of each row and what the band misses."""

    refreshing = False

    def __init__(self, name: str, module: nn.Module, policy: Rettention) -> None:
        self.ratios: dict[int, Tensor] = {}
        self.missed: dict[int, Tensor] = {}
        super().__init__(name, module, self.ratios, self.missed)
        self.policy = policy
        self.attend = policy.sparse()

    def product(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, fused: Callable[[], Tensor]
    ) -> Tensor:
        branch = self._branch
        if self.compute:
            full = fused()
            if self.refreshing or branch not in self.ratios:  # guidance may begin in the middle of a run
                sparse, sparse_lse = self.attend(query, key, value, scale)
                self.ratios[branch] = softmax_ratio(row_lse(query, key, scale), sparse_lse)
                # In front of the output projection, which is linear: the same as behind it.
                self.missed[branch] = full - repaired_attention(sparse, self.ratios[branch])
            return full
        sparse, _ = self.attend(query, key, value, scale)
        ratio = self.ratios[branch].clamp(max=1) if self.policy.clamp else self.ratios[branch]
        self.ratios[branch] = self.ratios[branch] + self.policy.raise_by
        return repaired_attention(sparse, ratio) + self.missed[branch]
