"""The plan of a run: which site is computed in which step. Every policy compiles to one, every run leaves one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import PolyditError

__all__ = ["Plan", "diffusers_steps", "first_then_every", "non_uniform_steps"]


@dataclass(frozen=True)
class Plan:
    """Steps by sites.

    Attributes:
        sites: their names.
        computed: for each step, for each site, whether it is computed (True) or estimated from what it gave before.
    """

    sites: tuple[str, ...]
    computed: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.sites) for row in self.computed):
            raise ValueError(f"a row of the plan does not have one entry for each of {len(self.sites)} sites")

    @classmethod
    def build(cls, sites: Iterable[str], steps: int, computes: Callable[[int, str], bool]) -> Plan:
        """The plan of a rule ``computes(step, site)``."""
        names = tuple(sites)
        return cls(names, tuple(tuple(computes(step, name) for name in names) for step in range(steps)))

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.computed)

    @property
    def full_steps(self) -> list[int]:
        """Steps in which every site is computed."""
        return [step for step, row in enumerate(self.computed) if all(row)]

    @property
    def reused(self) -> float:
        """Part of the entries that are not computed, from 0 to 1 (HarmoniCa's cache-use ratio)."""
        entries = self.steps * len(self.sites)
        return 1 - sum(map(sum, self.computed)) / entries if entries else 0.0

    def of(self, site: str) -> tuple[bool, ...]:
        """The column of one site."""
        column = self.sites.index(site)
        return tuple(row[column] for row in self.computed)

    def to_json(self) -> str:
        """As text: names once, and a string of 1 (computed) and 0 per step."""
        rows = ["".join("01"[entry] for entry in row) for row in self.computed]
        return json.dumps({"sites": list(self.sites), "computed": rows}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Inverse of :meth:`to_json`.

        Raises:
            PolyditError: the text is no plan.
        """
        try:
            content = json.loads(text)
            rows = tuple(tuple({"0": False, "1": True}[mark] for mark in row) for row in content["computed"])
            return cls(tuple(content["sites"]), rows)
        except (ValueError, KeyError, TypeError) as error:
            raise PolyditError(
                f"plan: not one that was saved by Plan.to_json ({error}); record it again"
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """A plan from a JSON file.

        Raises:
            PolyditError: there is no such file, or it holds no plan.
        """
        try:
            return cls.from_json(Path(path).read_text())
        except OSError as error:
            raise PolyditError(
                f"{path}: the plan cannot be read ({error.strerror}); check the path"
            ) from error

    def __str__(self) -> str:
        """A line per group of sites that share a column: ``#`` is computed, ``.`` is not."""
        columns: dict[tuple[bool, ...], list[str]] = {}
        for name, column in zip(self.sites, zip(*self.computed, strict=True), strict=True):
            columns.setdefault(column, []).append(name)
        lines = []
        for column, names in columns.items():
            label = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})"
            lines.append("".join(".#"[entry] for entry in column) + f"  {label}")
        return "\n".join(lines)


def first_then_every(interval: int, first: int = 1) -> Callable[[int], bool]:
    """Full for the first steps, then each time ``interval - 1`` steps have passed (TaylorSeer's released schedule).

    With ``first`` 1 these are the multiples of ``interval`` (FORA, DeepCache, Delta-DiT).

    Raises:
        PolyditError: one of the two is below 1.
    """
    if interval < 1 or interval != int(interval):
        raise PolyditError(f"interval {interval}: every how many steps to compute in full; give 1 or more")
    if first < 1 or first != int(first):
        raise PolyditError(f"first steps {first}: the first step has nothing to reuse; give 1 or more")
    return lambda step: step < first or (step - first + 1) % interval == 0


def diffusers_steps(total: int, interval: int, before: int) -> list[int]:
    """The full steps of diffusers' ``TaylorSeerCacheConfig(cache_interval, disable_cache_before_step)``.

    They differ from the released schedule: the first step behind the warm-up is never full unless the interval is 1.
    """
    return [step for step in range(total) if step < before or (step - before - 1) % interval == 0]


def non_uniform_steps(total: int, interval: int, centre: int, power: float) -> list[int]:
    """DeepCache's schedule that is denser around a step (arXiv 2312.00858): ``ceil(total / interval)`` full steps.

    Evenly spaced points of ``(step - centre) ** (1 / power)``, whose power is lowered by 0.02 until the steps are
    distinct. Below the centre the released code takes roots of negative numbers, which are complex, and keeps the real
    part; so does this.
    """
    count = -(-total // interval)
    while power > 0:
        low, high = complex(-centre) ** (1 / power), complex(total - centre) ** (1 / power)
        # NumPy's rounding, as released: Python's own powers fall on the other side of a whole number now and then.
        points = np.linspace(low, high, count + 1) ** power
        whole = sorted(set(points.real.astype(int).tolist()))
        steps = [0, *(step + centre for step in whole[1:-1])]
        if len(steps) == count:
            return steps
        power = round(power - 0.02, 10)
    raise PolyditError(
        f"schedule of {count} of {total} steps around {centre}: no power gives so many; take another centre"
    )


def check_steps(steps: Sequence[int], total: int | None) -> None:
    """Refuse a list of full steps that cannot be run.

    Raises:
        PolyditError: the first step is missing, or one lies behind the last.
    """
    if 0 not in steps:
        raise PolyditError(
            f"full steps {list(steps)}: step 0 must be among them, there is nothing to reuse yet"
        )
    if total is not None and max(steps) >= total:
        raise PolyditError(
            f"full steps {list(steps)}: the run has {total} steps (0 to {total - 1}); leave the later ones out"
        )


def check_order(method: str, schedule: Callable[[int], bool], order: int, total: int, begin: int = 0) -> None:
    """Refuse an order of forecast that a run has too few full steps for.

    Args:
        method: shown in the complaint.
        schedule: whether a step is full.
        order: of the forecast.
        total: steps of the run.
        begin: first step that forms differences.

    Raises:
        PolyditError: see above.
    """
    full = [schedule(step) for step in range(total)]
    if all(full):
        return
    last = max(step for step in range(total) if not full[step])
    known = sum(full[max(begin - 1, 0) : last])
    if order >= known:
        raise PolyditError(
            f"{method}: order {order} needs {order + 1} full steps before a forecast, and a run of {total} steps has "
            f"{known}; take order {known - 1} or less, a shorter interval or more steps"
        )
