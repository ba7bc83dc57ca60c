"""AdaSpa: blocks of attention chosen per head while sampling, from the softmax mass that they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..attention.sparse import block_attend, block_attend_flex, block_mass, row_lse, to_blocks
from ..errors import PolyditError
from .attention_site import AttentionPolicy, AttentionSite
from .clock import Moment
from .sites import CacheSite

__all__ = ["AdaSpa", "choose_blocks", "head_sparsity", "recall"]


def choose_blocks(mass: Tensor, sparsity: Tensor | float, always: Tensor | None = None) -> Tensor:
    """The blocks of most mass (B, H, n, m), equally many in each row of blocks of a head.

    Args:
        mass: of :func:`~polydit.core.attention.sparse.block_mass`.
        sparsity: part of a row that is left out, for all or (B, H) by head; at least one block stays.
        always: boolean (n, m): kept whatever they hold (text), in place of others.
    """
    columns = mass.shape[-1]
    left_out = torch.as_tensor(sparsity, dtype=torch.float32, device=mass.device).expand(mass.shape[:2])
    count = ((1 - left_out) * columns).round().clamp(1, columns)[..., None, None]
    ranked = mass if always is None else mass.masked_fill(always, float("inf"))
    rank = ranked.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    blocks = rank < count
    return blocks if always is None else blocks | always


def recall(mass: Tensor, blocks: Tensor) -> Tensor:
    """Part of the softmax mass that is kept, by head: (B, H)."""
    return (mass * blocks).sum((-1, -2)) / mass.sum((-1, -2))


def head_sparsity(recalls: Tensor, sparsity: float, good: float = 0.8) -> Tensor:
    """Sparsity of each head (B, H), whose mean is ``sparsity``.

    As many heads as recall more than ``good`` of their mass, at most half of them, are made sparser, (1 + s) / 2, and
    as many of those that recall least denser, (3 s - 1) / 2.

    Raises:
        PolyditError: ``sparsity`` is below a third, where a head cannot be dense enough.
    """
    if not 1 / 3 <= sparsity < 1:
        raise PolyditError(f"sparsity {sparsity}: with heads of their own it must be from a third up to 1")
    heads = recalls.shape[-1]
    count = (recalls > good).sum(-1).clamp(max=heads // 2)[..., None]  # (B, 1)
    rank = recalls.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    out = torch.full_like(recalls, sparsity)
    out = torch.where(rank < count, (1 + sparsity) / 2, out)
    return torch.where(rank >= heads - count, (3 * sparsity - 1) / 2, out)


class AdaSpa(AttentionPolicy):
    """Search the blocks that hold a head's attention once or twice in a run, and compute only these (arXiv 2502.21079).

    Dense steps come first. The first search computes the dense output with its log-sum-exp, and from that the mass of
    each block without the square of scores; later ones use the log-sum-exp of the one before, which drifts little, and
    need no dense output.

    Args:
        sparsity: mean part of the blocks that is left out.
        searches: steps of the searches; steps before the first are dense.
        block: tokens of a block.
        adapt_heads: let heads differ, see :func:`head_sparsity`.
        text_tokens: tokens of the text in a joint sequence, whose rows and columns are always kept.
        text_first: whether they stand in front.

    Raises:
        PolyditError: a sparsity that is none, or no search.
    """

    def __init__(
        self,
        sparsity: float = 0.8,
        searches: Sequence[int] = (10, 30),
        block: int = 64,
        adapt_heads: bool = True,
        text_tokens: int = 0,
        text_first: bool = True,
    ) -> None:
        if not 0 <= sparsity < 1:
            raise PolyditError(f"sparsity {sparsity}: part of the blocks that is left out; give 0 up to 1")
        if not searches or min(searches) < 0 or block < 1:
            raise PolyditError(f"searches {list(searches)}, block {block}: give steps, and 1 token or more")
        if adapt_heads and 0 < sparsity < 1 / 3:
            raise PolyditError(f"sparsity {sparsity}: with adapt_heads it must be 0 or at least a third")
        self.sparsity, self.searches, self.block = sparsity, sorted(searches), block
        self.adapt_heads = adapt_heads and sparsity > 0
        self.text_tokens, self.text_first = text_tokens, text_first

    def site(self, name: str, module: nn.Module) -> AttentionSite:
        """One choice of blocks."""
        return _BlockSite(name, module, self)

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """Up to the first search."""
        assert isinstance(site, _BlockSite)
        site.searching = moment.step in self.searches
        return moment.step <= self.searches[0]

    def always(self, rows: int, tokens: int, device: torch.device) -> Tensor | None:
        """Blocks that hold text, (n, n)."""
        if not self.text_tokens:
            return None
        index = torch.arange(rows, device=device) * self.block
        behind = tokens - self.text_tokens
        text = index < self.text_tokens if self.text_first else index + self.block > behind
        return text[:, None] | text[None]

    def __repr__(self) -> str:
        return f"AdaSpa(sparsity={self.sparsity}, searches={list(self.searches)}, block={self.block})"


class _BlockSite(AttentionSite):
    """Keeps, per branch, the blocks and the log-sum-exp that the next search uses."""

    searching = False

    def __init__(self, name: str, module: nn.Module, policy: AdaSpa) -> None:
        self.blocks: dict[int, Tensor] = {}
        self.lse: dict[int, Tensor] = {}
        super().__init__(name, module, self.blocks, self.lse)
        self.policy = policy

    def product(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, fused: Callable[[], Tensor]
    ) -> Tensor:
        branch, block = self._branch, self.policy.block
        if self.compute:
            late = (
                branch not in self.blocks and self._step > self.policy.searches[0]
            )  # guidance that begins mid-run
            if self.searching or late:
                self._search(query, key, row_lse(query, key, scale), scale)
            return fused()
        if self.searching:
            self._search(query, key, self.lse[branch], scale)
        attend = block_attend_flex if query.is_cuda else block_attend
        out, _ = attend(query, key, value, self.blocks[branch], block, scale)
        return out

    def _search(self, query: Tensor, key: Tensor, lse: Tensor, scale: float | None) -> None:
        policy = self.policy
        mass = block_mass(query, key, lse, policy.block, scale=scale)
        always = policy.always(to_blocks(query.shape[2], policy.block), query.shape[2], query.device)
        blocks = choose_blocks(mass, policy.sparsity, always)
        if policy.adapt_heads:
            blocks = choose_blocks(mass, head_sparsity(recall(mass, blocks), policy.sparsity), always)
        self.blocks[self._branch], self.lse[self._branch] = blocks, lse
