"""Learned tables of what to compute: a score for each step and site. HarmoniCa and Learning-to-Cache share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import PolyditError
from ..tensor_files import save_tensors
from .blocks import find_blocks
from .clock import Moment
from .estimators import Taylor
from .policy import BranchPolicy, Policy
from .sites import BranchSite, CacheSite, branch_sites

__all__ = ["Routed", "Router", "SoftRouting"]

LIMIT = 5.0
"""Scores are kept within this of zero; the first step, which always computes, stands at it."""


class Router(nn.Module):
    """Scores of steps and sites; above a threshold a site is computed.

    Args:
        steps: of the sampler it is learned for.
        sites: names, in the order of :func:`~polydit.core.acceleration.sites.branch_sites`: attention and MLP of each
            block in turn.
        generator: source of the first scores, which are standard normal.

    Attributes:
        logits: (steps, sites), in the order of sampling; the first row does not learn.
    """

    def __init__(self, steps: int, sites: Sequence[str], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.logits = nn.Parameter(torch.randn(steps, len(self.sites), generator=generator))
        self.clamp_()

    @classmethod
    def of(cls, model: nn.Module, steps: int, generator: torch.Generator | None = None) -> Router:
        """A fresh one for a model."""
        names = [site.name for site in branch_sites(find_blocks(model), Taylor())]
        return cls(steps, names, generator)

    @property
    def steps(self) -> int:
        """Of the sampler."""
        return self.logits.shape[0]

    def scores(self, step: int) -> Tensor:
        """Weights (sites,) of the fresh value in a step, between 0 and 1."""
        return torch.sigmoid(self.logits[step])

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep scores where they can still move; call it behind every step of the optimiser."""
        self.logits.clamp_(-LIMIT, LIMIT)
        self.logits[0] = LIMIT

    def share(self, threshold: float = 0.1) -> float:
        """Part of steps and sites that is computed, the first step with them."""
        return float((self.logits.detach().sigmoid() > threshold).float().mean())

    @torch.no_grad()
    def meet(self, share: float, threshold: float = 0.1) -> None:
        """Shift all scores so that this part of steps and sites is computed; their order stays.

        Raises:
            PolyditError: the first step alone is more.
        """
        steps, sites = self.logits.shape
        wanted = round(share * steps * sites) - sites
        if not 0 <= wanted <= (steps - 1) * sites:
            raise PolyditError(
                f"share {share}: give {1 / steps:.2f} to 1; the first of {steps} steps is full"
            )
        ranked = self.logits[1:].flatten().sort(descending=True).values
        limit = math.log(threshold / (1 - threshold))
        bounds = torch.cat([ranked[:1] + 1, ranked, ranked[-1:] - 1])
        self.logits[1:] += limit - (bounds[wanted] + bounds[wanted + 1]) / 2
        self.clamp_()

    def save(self, path: str | Path) -> None:
        """Write safetensors in the released layout: ``routers.{i}.prob``, i counting from the last step sampled."""
        tensors = {
            f"routers.{self.steps - 1 - step}.prob": row.detach().clone()
            for step, row in enumerate(self.logits)
        }
        save_tensors(tensors, Path(path), {"sites": ",".join(self.sites)})

    @classmethod
    def load(cls, path: str | Path, sites: Sequence[str] | None = None) -> Router:
        """Read what :meth:`save` wrote, or a released router that was turned into safetensors.

        Args:
            path: of the file.
            sites: names, where the file does not hold them.

        Raises:
            PolyditError: there is no such file, or it holds no router.
        """
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {key.removeprefix("routers."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise PolyditError(f"{path}: cannot be read as safetensors ({error}); check the path") from error
        names = tuple(sites or header.get("sites", "").split(","))
        try:
            rows = [tensors[f"{index}.prob"] for index in range(len(tensors))]
        except KeyError as error:
            raise PolyditError(
                f"{path}: no router, {error} is missing; HarmoniCa's and L2C's have them"
            ) from error
        if any(row.shape != (len(names),) for row in rows):
            raise PolyditError(
                f"{path}: a router for {rows[0].numel()} sites, {len(names)} are wanted; it belongs to another model"
            )
        router = cls(len(rows), names)
        with torch.no_grad():
            router.logits.copy_(torch.stack(rows[::-1]).float())
        return router


class Routed(BranchPolicy):
    """Compute what a learned router says: HarmoniCa (arXiv 2410.01723), or Learning-to-Cache (arXiv 2406.01733).

    Args:
        router: learned for the number of steps that is sampled.
        threshold: of the score, from which on a site is computed.
        pairs: every second step is full, as L2C learns it; counted so that the last is not.
        name: shown in reports.
    """

    def __init__(
        self, router: Router, threshold: float = 0.1, pairs: bool = False, name: str = "HarmoniCa"
    ) -> None:
        self.router, self.threshold, self.pairs, self.name = router, threshold, pairs, name
        self._table = (router.logits.detach().sigmoid() > threshold).tolist()
        self._columns = {site: column for column, site in enumerate(router.sites)}
        super().__init__(lambda step: True, Taylor())

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """All that the router scores."""
        found = super().sites(model)
        missing = [site.name for site in found if site.name not in self._columns]
        if missing or len(found) != len(self._columns):
            raise PolyditError(
                f"{self}: the router has {len(self._columns)} sites, {type(model).__name__} has {len(found)}; "
                "it was learned on another model"
            )
        return found

    def begin(self, total: int | None) -> None:
        """A router belongs to one number of steps."""
        if total is not None and total != self.router.steps:
            raise PolyditError(
                f"{self}: the router was learned for {self.router.steps} steps, the run has {total}"
            )

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """By the table."""
        if moment.step >= self.router.steps:
            raise PolyditError(
                f"{self}: the router was learned for {self.router.steps} steps, the run goes on"
            )
        if moment.step == 0 or (self.pairs and (self.router.steps - moment.step) % 2 == 0):
            return True
        return bool(self._table[moment.step][self._columns[site.name]])

    def __repr__(self) -> str:
        return f"{self.name}({self.router.steps} steps, threshold={self.threshold})"


class SoftRouting(Policy):
    """Routing as it is learned: fresh and kept values mixed by the score, so that a gradient reaches it.

    What a call does is set before it: ``"fill"`` computes and keeps, ``"plain"`` computes and keeps nothing (the
    teacher), ``"mix"`` mixes and keeps the mixture where the score passes the threshold.

    Args:
        router: gets the gradients.
        threshold: see above.
        straight_through: the score's passing of the threshold is the weight, its gradient that of the score.
    """

    def __init__(self, router: Router, threshold: float = 0.1, straight_through: bool = False) -> None:
        self.router, self.threshold, self.straight_through = router, threshold, straight_through
        self.mode = "plain"
        self.step = 0

    def set(self, mode: str, step: int = 0) -> None:
        """What the next call does, and by which row of the router."""
        self.mode, self.step = mode, step

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """One for each that the router scores."""
        self._sites = [
            _MixSite(site.name, site.module, Taylor(), site.feeders, site.method)
            for site in branch_sites(find_blocks(model), Taylor())
            if isinstance(site, BranchSite)
        ]
        if tuple(site.name for site in self._sites) != self.router.sites:
            raise PolyditError(f"router: it scores other sites than {type(model).__name__} has")
        return list(self._sites)

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """Always; what is mixed is both."""
        if site is self._sites[0]:
            weights: Sequence[Tensor | None] = [None] * len(self._sites)
            if self.mode == "mix":
                scores = self.router.scores(self.step)
                passes = scores.detach() > self.threshold
                if self.straight_through:
                    scores = passes.to(scores.dtype) - scores.detach() + scores
                weights = list(scores.unbind())
                for each, passed in zip(self._sites, passes.tolist(), strict=True):
                    each.passes = passed
            for each, weight in zip(self._sites, weights, strict=True):
                each.weight = weight
        return True

    def learns(self, moment: Moment, site: CacheSite) -> bool:
        """Not from the teacher; a mixture is kept by its site."""
        return self.mode == "fill"

    def __repr__(self) -> str:
        return f"SoftRouting({self.router.steps} steps)"


class _MixSite(BranchSite):
    """Mixes the fresh value with the kept one."""

    weight: Tensor | None = None
    passes = True

    def learn(self, output: Any) -> Any:
        if self.weight is None:
            return super().learn(output.detach() if self.learning else output)
        kept = self.memory.factors
        if kept:
            output = (1 - self.weight) * kept[0] + self.weight * output
        if self.passes or not kept:
            self.memory.plan(self._step, True)
            self.memory.update(output.detach())
        return output
