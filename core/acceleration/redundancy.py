"""How much of what a transformer computes is new in a step: the measurement, and a plan made from it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from ..probing import tap
from .blocks import find_blocks, unwrap
from .clock import Moment
from .estimators import Taylor, tensors_in
from .handle import accelerate
from .plan import Plan
from .policy import BranchPolicy
from .sites import BranchSite, CacheSite, branch_sites

__all__ = ["Curve", "Redundancy", "study"]


@dataclass
class Curve:
    """One site over the steps; entry i compares step i + 1 with step i.

    Attributes:
        change: mean of ``|X_t - X_t-1|`` over all elements, then over runs and branches.
        variance: of the same over the elements.
        relative: ``mean|X_t - X_t-1| / (mean|X_t| + mean|X_t-1|)``, from 0 to 1.
        spread: standard deviation of ``change`` over runs and branches, divided by its mean: small where a plan made
            from some runs serves all.
    """

    change: list[float]
    variance: list[float]
    relative: list[float]
    spread: list[float]


@dataclass
class Redundancy:
    """What a study found.

    Attributes:
        steps: of a run.
        runs: how many were looked at.
        curves: by kind (``attn``, ``mlp``, ``k``, ``v``, ``block``), then by site.
        depth: for each block but the first, mean cosine similarity of its output with that of the block before.
    """

    steps: int
    runs: int
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    depth: dict[str, float] = field(default_factory=dict)

    def mean(self, kind: str) -> list[float]:
        """Relative change over the steps, mean over the sites of a kind."""
        rows = [curve.relative for curve in self.curves[kind].values()]
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    def to_json(self) -> str:
        """Everything, as text."""
        content = {
            "steps": self.steps,
            "runs": self.runs,
            "curves": {
                kind: {name: vars(curve) for name, curve in sites.items()}
                for kind, sites in self.curves.items()
            },
            "depth": self.depth,
        }
        return json.dumps(content, indent=1)

    def plan(self, share: float) -> Plan:
        """Which attention and MLP outputs to compute so that the least is missed, for ``Replay(FORA(), plan)``.

        A site is computed again when its relative changes since then add up to a threshold, which is one for all sites
        and as low as the share allows. The first step is full.

        Args:
            share: part of all entries that may be computed.

        Raises:
            PolyditError: the first step alone takes more.
        """
        if not 1 / self.steps <= share <= 1:
            raise PolyditError(
                f"share {share}: of {self.steps} steps the first is full; give {1 / self.steps:.2f} to 1"
            )
        curves = {
            name: curve.relative for kind in ("attn", "mlp") for name, curve in self.curves[kind].items()
        }

        def rows(threshold: float) -> Plan:
            columns = [_column(curve, threshold) for curve in curves.values()]
            return Plan(tuple(curves), tuple(zip(*columns, strict=True)))

        low, high = 0.0, float(self.steps)
        for _ in range(40):
            middle = (low + high) / 2
            if 1 - rows(middle).reused <= share:
                high = middle
            else:
                low = middle
        return rows(high)


def _column(changes: list[float], threshold: float) -> list[bool]:
    column, missed = [True], 0.0
    for change in changes:
        missed += change
        column.append(missed > threshold)
        missed = 0.0 if column[-1] else missed
    return column


def study(target: Any, runs: Iterable[Callable[[], object]]) -> Redundancy:
    """Measure a network while it samples ("Unveiling Redundancy in Diffusion Transformers", arXiv 2411.13588).

    Nothing that the network computes is changed.

    Args:
        target: as of :func:`~polydit.core.acceleration.accelerate`.
        runs: each samples once; all take as many steps.

    Returns:
        Curves of attention and MLP outputs, keys, values and block outputs.

    Raises:
        PolyditError: the runs have one step, or unlike numbers of them.
    """
    policy = _Probe()
    counts, seen = [], _Seen()
    with accelerate(target, policy) as handle:
        model = handle.model
        attention = [site.name for site in handle.sites if policy.kind(site) == "attn"]
        blocks = [name for name, _ in find_blocks(model)]
        inner = [f"{name}.{part}" for name in attention if "proj_out" not in name for part in ("k", "v")]
        with tap(model, [*blocks, *inner]) as record:

            def look(module: nn.Module, args: Any, output: Any) -> None:
                moment = handle.moment
                for name, value in record.items():
                    kind = name.rsplit(".", 1)[-1] if name not in blocks else "block"
                    seen.compare(kind, name, value, moment)
                for before, after in pairwise(blocks):
                    seen.similar(after, record[before], record[after])
                record.clear()

            hook = model.register_forward_hook(look)
            try:
                for run in runs:
                    run()
                    counts.append(len(handle.report().plan.computed))
                    seen.end_run(policy)
            finally:
                hook.remove()
    if not counts:
        raise PolyditError("redundancy: no run to look at")
    if min(counts) < 2 or min(counts) != max(counts):
        raise PolyditError(
            f"redundancy: runs of {', '.join(str(n) for n in sorted(set(counts)))} steps; all must have the same "
            "number, at least 2"
        )
    return seen.result(counts[0], len(counts))


class _Probe(BranchPolicy):
    """Computes everything and lets the sites compare."""

    def __init__(self) -> None:
        super().__init__(lambda step: True, Taylor())
        self.seen = _Seen()

    def sites(self, model: nn.Module) -> list[CacheSite]:
        found: list[CacheSite] = []
        for site in branch_sites(find_blocks(unwrap(model)), self.estimator):
            assert isinstance(site, BranchSite)
            probe = _ProbeSite(site.name, site.module, Taylor(), site.feeders, site.method)
            probe.kind, probe.seen = self.kind(site), self.seen
            found.append(probe)
        if not found:
            raise PolyditError(f"redundancy: no attention and no MLP found in {type(model).__name__}")
        return found

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        assert isinstance(site, _ProbeSite)
        site.moment = moment
        return True

    @staticmethod
    def kind(site: CacheSite) -> str:
        """``attn`` or ``mlp``; FLUX's joint projection counts as attention."""
        name = site.name.rsplit(".", 1)[-1]
        return "attn" if "attn" in name or name == "proj_out" else "mlp"

    def __repr__(self) -> str:
        return "redundancy"


class _ProbeSite(BranchSite):
    kind = "attn"
    seen: _Seen
    moment: Moment

    def learn(self, output: Any) -> Any:
        self.seen.compare(self.kind, self.name, next(tensors_in(output)), self.moment)
        return output


class _Seen:
    """Last values, and what was found of their changes."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], Tensor] = {}
        # kind, site -> step -> (change, variance, relative) of every run and branch
        self._found: dict[tuple[str, str], dict[int, list[tuple[float, float, float]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._depth: dict[str, list[float]] = defaultdict(list)

    @torch.no_grad()
    def compare(self, kind: str, name: str, value: Tensor, moment: Moment) -> None:
        place = (f"{kind} {name}", moment.branch)
        before = None if moment.new_run or moment.step == 0 else self._last.get(place)
        self._last[place] = value
        if before is None or before.shape != value.shape:
            return
        change = (value.float() - before.float()).abs()
        mean = float(change.mean())
        size = float(value.float().abs().mean() + before.float().abs().mean())
        found = (mean, float(change.var(unbiased=False)), mean / size if size else 0.0)
        self._found[kind, name][moment.step].append(found)

    @torch.no_grad()
    def similar(self, name: str, before: Tensor, after: Tensor) -> None:
        if before.shape == after.shape:
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            self._depth[name].append(float(cosine.mean()))

    def end_run(self, policy: _Probe) -> None:
        """Add what the sites of the policy have found, and close the run."""
        for place, steps in policy.seen._found.items():
            for step, found in steps.items():
                self._found[place][step] += found
        policy.seen._found.clear()
        self._last.clear()

    def result(self, steps: int, runs: int) -> Redundancy:
        redundancy = Redundancy(steps, runs)
        for (kind, name), by_step in self._found.items():
            columns = [list(zip(*by_step[step], strict=True)) for step in sorted(by_step)]
            means = [[sum(part) / len(part) for part in column] for column in columns]
            spreads = [_spread(column[0]) for column in columns]
            change, variance, relative = (list(part) for part in zip(*means, strict=True))
            redundancy.curves.setdefault(kind, {})[name] = Curve(change, variance, relative, spreads)
        redundancy.depth = {name: sum(values) / len(values) for name, values in self._depth.items()}
        return redundancy


def _spread(values: tuple[float, ...]) -> float:
    mean = sum(values) / len(values)
    if len(values) < 2 or mean == 0:
        return 0.0
    return (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5 / mean
