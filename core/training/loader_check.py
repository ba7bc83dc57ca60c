"""What a data loader gives, looked at before a run: samples that fail, shapes that differ, values without sense."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from .guard import describe_batch
from .resume import NO_BATCH

__all__ = ["LoaderReport", "inspect_loader", "loaders_of"]

SAMPLES, SECONDS = 32, 10.0
"""So many samples are looked at one by one, spread over the data, or as many as this time allows."""
BATCHES = 100_000
"""So many are searched for the one that an odd sample comes in."""
SHOWN = 10
"""Failing samples that are told apart; the others are counted."""


@dataclass
class LoaderReport:
    """What was found.

    Attributes:
        name: Which loader.
        summary: One line.
        problems: What would fail, a line each.
        batch: The first batch, or None if there is none.
        seconds: That a further batch took.
        workers: Processes that prepare batches.
    """

    name: str
    summary: str = ""
    problems: list[str] = field(default_factory=list)
    batch: Any = None
    seconds: float | None = None
    workers: int = 0


def loaders_of(loaders: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The loaders that a data module's hook returned, which may be none, one or several, with names."""
    if isinstance(loaders, Mapping):
        for key, loader in loaders.items():
            yield f"{name} {key}", loader
    elif isinstance(loaders, (list, tuple)):
        for number, loader in enumerate(loaders):
            yield name if len(loaders) == 1 else f"{name} {number + 1}", loader
    elif loaders is not None:
        yield name, loaders


def inspect_loader(loader: Any, name: str) -> LoaderReport:
    """Read samples one by one, then two batches through the loader itself.

    Args:
        loader: A data loader, or anything that can be iterated.
        name: For the messages.
    """
    report = LoaderReport(name, workers=getattr(loader, "num_workers", 0))
    samples = _samples(loader, report)
    if report.problems:
        # What a batch would say is a consequence; and a loader with workers would say it in their words.
        return report
    _read_batches(loader, report)
    if report.batch is None:
        return report
    named = dict(_tensors(report.batch))
    try:
        count = f"{len(loader.dataset):,} samples in {len(loader):,} batches"
    except (AttributeError, TypeError):
        count = "a stream of samples"
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in named.items())
    report.summary = f"{name} data: {count}; a batch is {shapes or type(report.batch).__name__}"
    _look_at_values([report.batch, *samples], report)
    return report


def _samples(loader: Any, report: LoaderReport) -> list[Any]:
    """Samples spread over a map-style data set; those that cannot be had are problems."""
    data = getattr(loader, "dataset", None)
    if data is None or isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
        return []
    try:
        total = len(data)
    except TypeError:
        return []
    if total == 0:
        report.problems.append(f"{report.name} data: holds no samples")
        return []
    count, end = min(SAMPLES, total), time.monotonic() + SECONDS
    found: dict[int, Any] = {}
    failed: dict[str, int] = {}
    for number in range(count):
        index = number * (total - 1) // max(count - 1, 1)
        try:
            found[index] = data[index]
        except Exception as error:  # of whoever wrote the data set; training would end with it
            failed.setdefault(_tell(error), index)
        if time.monotonic() > end:
            break
    for line, index in list(failed.items())[:SHOWN]:
        report.problems.append(f"{report.name} data, sample {index}: {line}")
    if len(failed) > SHOWN:
        report.problems.append(f"{report.name} data: {len(failed) - SHOWN} more samples fail")
    size = getattr(loader, "batch_size", None)
    if size and getattr(loader.collate_fn, "__name__", "") == "default_collate" and len(found) > 1:
        _compare_shapes(loader, found, report)
    return list(found.values())


Shapes = dict[str, dict[tuple[int, ...], tuple[int, str]]]
"""By key and shape: the first sample that had it, and what it says of itself."""


def _shapes(samples: Mapping[int, Any]) -> Shapes:
    shapes: Shapes = {}
    for index, sample in samples.items():
        for key, value in _tensors(sample):
            shapes.setdefault(key, {}).setdefault(tuple(value.shape), (index, describe_batch(sample)))
    return shapes


def _compare_shapes(loader: Any, samples: Mapping[int, Any], report: LoaderReport) -> None:
    """Samples that cannot be stacked, though a batch holds them; each batch may have a size of its own."""
    odd = next((index for seen in _shapes(samples).values() for index, _ in list(seen.values())[1:]), None)
    if odd is None:
        return
    batches = islice(getattr(loader, "batch_sampler", None) or (), BATCHES)
    together = next((indices for indices in batches if odd in indices), ())
    for key, seen in _shapes(
        {i: samples[i] if i in samples else loader.dataset[i] for i in together}
    ).items():
        if len(seen) > 1:
            (first, _), (second, (_, which)) = list(seen.items())[:2]
            where = f" ({which})" if which else ""
            report.problems.append(
                f"{report.name} data: samples cannot make a batch, {key} is {first} in one and {second} in "
                f"another{where}; crop or pad them to one size"
            )


def _read_batches(loader: Any, report: LoaderReport) -> None:
    try:
        batches = iter(loader)
        report.batch = next(batches)
        begin = time.perf_counter()
        if next(batches, None) is not None:
            report.seconds = time.perf_counter() - begin
    except StopIteration:
        report.problems.append(f"{report.name} data: {NO_BATCH}")
    except Exception as error:  # as above
        report.problems.append(f"{report.name} data: no batch can be had: {_tell(error)}")


def _look_at_values(things: Sequence[Any], report: LoaderReport) -> None:
    """Numbers that are not finite, and masks that are none."""
    painted: dict[str, bool] = {}
    wrong: dict[str, None] = {}
    for thing in things:
        which = describe_batch(thing)
        where = f" ({which})" if which else ""
        for key, value in _tensors(thing):
            if value.is_floating_point() and not torch.isfinite(value).all():
                wrong.setdefault(f"{report.name} data: {key} holds NaN or infinity{where}")
                continue
            if "mask" not in key.lower().split("_") or not value.numel():
                continue
            low, high = float(value.min()), float(value.max())
            if low < 0 or high > 1:
                wrong.setdefault(
                    f"{report.name} data: {key} runs from {low:g} to {high:g}{where}; a mask is 0 to 1"
                )
            painted[key] = painted.get(key, False) or high > 0
    report.problems += wrong
    for key, any_painted in painted.items():
        if not any_painted:
            report.problems.append(
                f"{report.name} data: {key} is empty in every sample that was looked at; nothing is masked"
            )


def _tensors(batch: Any) -> list[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        return [("tensor", batch)]
    if isinstance(batch, Mapping):
        items: Any = batch.items()
    elif isinstance(batch, (list, tuple)):
        items = enumerate(batch)
    else:
        return []
    return [(str(key), value) for key, value in items if isinstance(value, Tensor)]


def _tell(error: Exception) -> str:
    """One line; of an error in a worker process what it was about."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    if "Caught" in lines[0] and "worker" in lines[0]:
        return lines[-1].strip().removeprefix("polydit.core.errors.PolyditError: ")
    from ..commands.failures import explain

    return explain(error) or f"{type(error).__name__}: {lines[0]}"
