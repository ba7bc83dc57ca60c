"""Keys and values of token groups that stay constant over the sampling steps.

A group that looks at nothing but itself and keeps its timestep has the same features at every step, so running it
once is exact, not an approximation (EasyControl, arXiv 2503.07027; OminiControl, arXiv 2411.15098).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapters.lora import lora_layers
from ..attention.attention import KeyValueHook

if TYPE_CHECKING:
    from .token_groups import TokenGroup

__all__ = ["KeyValueCache", "Recorder", "append_hooks"]

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys (normalised, rotated) and values of a group, each (B, H, N, d), block by block."""


class Recorder:
    """Hooks that write down what each block's attention computes, and change nothing."""

    def __init__(self, blocks: int) -> None:
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self.hooks: list[KeyValueHook] = [self._hook(index) for index in range(blocks)]

    def _hook(self, index: int) -> KeyValueHook:
        def record(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            # The value is a view of the packed projection; a copy lets the queries' memory go.
            self._found[index] = (key.detach().contiguous(), value.detach().contiguous())
            return key, value

        return record

    @property
    def entries(self) -> KeyValues:
        """What was recorded, one pair per block."""
        return [self._found[index] for index in range(len(self.hooks))]


def append_hooks(groups: Sequence[KeyValues]) -> list[KeyValueHook]:
    """For each block, the hook that puts the cached groups' keys and values behind the sequence's own."""

    def hook(pairs: Sequence[tuple[Tensor, Tensor]]) -> KeyValueHook:
        def append(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = zip(*pairs, strict=True)
            return torch.cat([key, *keys], dim=2), torch.cat([value, *values], dim=2)

        return append

    return [hook(pairs) for pairs in zip(*groups, strict=True)]


class KeyValueCache:
    """The state of one sampling run; modules keep none.

    An entry is valid for one group (its picture or tokens, place, timestep, type embedding, adapter), one prompt and
    one set of weights. Whatever changes of these, the group is run again: a stale entry is never used. Weights are
    compared by identity and by the counter that torch raises on every in-place change; a write through ``.data`` goes
    past that counter, so call :meth:`clear` after one.

    Attributes:
        runs: How often groups were run, rather than read, so far.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self.runs = 0

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget everything, for instance to free its memory."""
        self._entries.clear()

    def get(self, dit: nn.Module, group: TokenGroup, shared: Sequence[Tensor | None]) -> KeyValues | None:
        """What is stored for a group, or None if it was never run or something that it depends on changed."""
        entry = self._entries.get(group.name)
        if entry is None or not entry.inputs.same(_inputs(group, shared)) or not entry.weights.same(dit):
            return None
        return entry.key_values

    def put(
        self, dit: nn.Module, group: TokenGroup, shared: Sequence[Tensor | None], key_values: KeyValues
    ) -> KeyValues:
        """Store a group that was just run."""
        self.runs += 1
        self._entries[group.name] = _Entry(_Inputs(_inputs(group, shared)), _Weights(dit), key_values)
        return key_values


def _inputs(group: TokenGroup, shared: Sequence[Tensor | None]) -> list[Any]:
    return [
        group.picture,
        group.tokens,
        group.position_ids,
        group.type_embedding,
        group.timestep,
        group.grid,
        group.position,
        group.adapter,
        group.guidance,
        *shared,
    ]


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class _Inputs:
    """Copies of what went in, and how to recognise it quickly."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._copies = [v.detach().clone() if isinstance(v, Tensor) else v for v in values]
        self._seen = [(v, _version(v)) if isinstance(v, Tensor) else None for v in values]

    def same(self, values: Sequence[Any]) -> bool:
        return all(self._equal(i, value) for i, value in enumerate(values))

    def _equal(self, index: int, value: Any) -> bool:
        copy, seen = self._copies[index], self._seen[index]
        if not isinstance(value, Tensor) or not isinstance(copy, Tensor) or seen is None:
            return type(value) is type(copy) and bool(value == copy)
        version = _version(value)
        if value is seen[0] and version is not None and version == seen[1]:
            return True  # the very tensor, untouched: no need to wait for the device
        alike = value.shape == copy.shape and value.dtype == copy.dtype and value.device == copy.device
        return alike and bool(torch.equal(value, copy))


class _Weights:
    """Which weights, in which version, with which adapters on."""

    def __init__(self, dit: nn.Module) -> None:
        self._parameters = [(weakref.ref(p), _version(p)) for p in dit.parameters()]
        self._adapters = _adapters(dit)

    def same(self, dit: nn.Module) -> bool:
        parameters = list(dit.parameters())
        if len(parameters) != len(self._parameters) or self._adapters != _adapters(dit):
            return False
        pairs = zip(parameters, self._parameters, strict=True)
        return all(ref() is p and version == _version(p) for p, (ref, version) in pairs)


def _adapters(dit: nn.Module) -> list[Any]:
    return [
        (
            name,
            dict(layer.scaling),
            list(layer.active_adapters),
            list(getattr(layer, "merged_adapters", ())),
            getattr(layer, "disable_adapters", False),
        )
        for name, layer in lora_layers(dit)
    ]


@dataclass
class _Entry:
    inputs: _Inputs
    weights: _Weights
    key_values: KeyValues
