"""LoRA on the tokens of one group only (EasyControl, arXiv 2503.07027; OminiControl, arXiv 2411.15098).

Several groups of tokens (noisy picture, garment, person) run through the same frozen weights, and each may carry
its own adapter there: ``y_n = W x_n + s B A x_n`` for the tokens n of the adapter's group, ``W x_n`` for all others.
Such an adapter cannot be merged: no single weight computes both. Which tokens are whose is said for the time of a
call by :func:`token_layout`; the layers themselves hold weights and nothing of the call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .loading import LoadReport, match_modules
from .lora import _by_name, lora_layers
from .options import LoraOptions
from .targets import resolve_targets

__all__ = [
    "GroupLinear",
    "TokenLayout",
    "group_adapters",
    "inject_group",
    "load_group_lora",
    "plain_layers",
    "token_layout",
]

# One row per group rather than per token: the condition vectors are what these layers read.
PER_GROUP = re.compile(r"(.*\.)?(shared_)?modulation")
# Shared by all groups of a sequence, so there are no tokens of one group to change.
SHARED = re.compile(
    r"(.*\.)?(cross_attn\.kv|context_embed\..*|pooled_embed\..*|time_embed\..*|patch_embed\..*)"
)


@dataclass(frozen=True)
class TokenLayout:
    """Which adapter each run of tokens takes.

    Attributes:
        adapters: Adapter of each group in the order of the sequence, or None for the plain weights.
        sizes: Tokens of each group; None says that the one group there is has all rows, whatever their number.
    """

    adapters: tuple[str | None, ...]
    sizes: tuple[int, ...] | None


_layout: ContextVar[TokenLayout | None] = ContextVar("polydit_token_layout", default=None)


@contextmanager
def token_layout(layout: TokenLayout | None) -> Iterator[None]:
    """Say which tokens are whose while the ``with`` statement lasts; without it no group adapter acts."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


class GroupLinear(nn.Module):
    """A linear layer with LoRAs that act on their own group's tokens.

    Attributes are named as in peft's layers, so that counting, weighing and saving (``save_lora``) work alike.

    Args:
        base_layer: The layer; it is neither copied nor changed.
        per_group: Its input has one row per group instead of one per token (modulation).
    """

    merged = False

    def __init__(self, base_layer: nn.Linear, per_group: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.per_group = per_group
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self.scaling: dict[str, float] = {}
        self.active_adapters: list[str] = []

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base_layer.out_features

    def add(self, adapter: str, rank: int, alpha: float, options: LoraOptions) -> None:
        """Add a trainable adapter whose delta is zero."""
        a = nn.Linear(self.in_features, rank, bias=False)  # factors of a bfloat16 base learn in float32 too
        b = nn.Linear(rank, self.out_features, bias=False)
        if options.init == "gaussian":
            nn.init.normal_(a.weight, std=1 / rank)
        nn.init.zeros_(b.weight)
        b.weight.lr_scale = options.lr_ratio  # type: ignore[assignment]
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        self.lora_A[adapter], self.lora_B[adapter] = (part.to(self.weight.device, wide) for part in (a, b))
        self.lora_dropout[adapter] = nn.Dropout(options.dropout).train(self.base_layer.training)
        self.r[adapter], self.lora_alpha[adapter] = rank, alpha
        self.use_rslora[adapter] = options.use_rslora
        self.active_adapters.append(adapter)
        self.set_scale(adapter, 1.0)

    def set_scale(self, adapter: str, weight: float) -> None:
        """Set an adapter's strength: 1 is as trained, 0 is off."""
        rank = self.r[adapter]
        self.scaling[adapter] = (
            weight * self.lora_alpha[adapter] / (rank**0.5 if self.use_rslora[adapter] else rank)
        )

    def set_adapter(self, adapters: Sequence[str]) -> None:
        """Let only these adapters act."""
        self.active_adapters = list(adapters)

    def merge(self, adapter_names: Sequence[str] | None = None) -> NoReturn:
        """Impossible.

        Raises:
            PolyditError: always.
        """
        raise PolyditError(
            f"adapter {', '.join(adapter_names or self.lora_A)!r}: acts on the tokens of one group only and cannot be "
            "merged into weights that all groups share; save it as a LoRA file"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, in) -> (..., N, out); rows are tokens, or groups for a modulation."""
        out = self.base_layer(x)
        layout = _layout.get()
        acting = [(i, name) for i, name in enumerate(layout.adapters) if self.acts(name)] if layout else []
        if layout is None or not acting:
            return out
        vector = self.per_group and x.ndim == 2  # the condition vector (B, D) of the one group there is
        if layout.sizes is None or vector:
            return out + self.delta(acting[0][1], x).to(out.dtype)
        sizes = (1,) * len(layout.sizes) if self.per_group else layout.sizes
        if x.shape[-2] != sum(sizes):
            raise ValueError(
                f"{x.shape[-2]} rows arrived at a layer with group adapters, the layout has {sum(sizes)}"
            )
        parts = list(out.split(list(sizes), dim=-2))
        inputs = x.split(list(sizes), dim=-2)
        for index, name in acting:
            parts[index] = parts[index] + self.delta(name, inputs[index]).to(out.dtype)
        return torch.cat(parts, dim=-2)

    def acts(self, adapter: str | None) -> bool:
        """Whether the layer has this adapter, and it is on."""
        return adapter in self.active_adapters and self.scaling[adapter] != 0

    def delta(self, adapter: str | None, x: Tensor) -> Tensor:
        """The adapter's contribution, in the precision of its factors."""
        assert adapter is not None
        a, b = self.lora_A[adapter], self.lora_B[adapter]
        return self.scaling[adapter] * b(a(self.lora_dropout[adapter](x.to(a.weight.dtype))))


def inject_group(model: nn.Module, options: LoraOptions, adapter: str) -> list[str]:
    """Add a trainable LoRA for one group of tokens, in place; the model's output does not change by that.

    It acts where :func:`~polydit.core.conditioning.forward_groups` runs a group that names this adapter. Several
    adapters, of different ranks and targets, may sit on one layer. What was trainable stays trainable: freeze the
    base first if only the adapters are to learn. It adds ``rank * (in + out)`` trainable values per layer.

    Args:
        model: The native DiT.
        options: Rank, targets and so on; targets are linear layers that see tokens, and ``modulation``. DoRA and the
            initialisations that change the base weights are refused.
        adapter: Its name; a token group refers to it.

    Returns:
        Names of the adapted modules.

    Raises:
        PolyditError: a target is missing or is not computed per token; the name is taken.
    """
    if options.use_dora or options.changes_base:
        raise PolyditError(
            f"model.adapter: {'DoRA' if options.use_dora else options.init} changes the weights that all groups share; "
            "use a plain LoRA for one group"
        )
    names = resolve_targets(model, options.targets, options.exclude)
    if isinstance(options.targets, str) and options.targets in ("attention", "linear"):
        names = [name for name in names if not SHARED.fullmatch(name)]
    ranks = _by_name(names, options.rank_pattern, "model.adapter.rank_pattern")
    alphas = _by_name(names, options.alpha_pattern, "model.adapter.alpha_pattern")
    for name in names:
        _check(model, name, adapter)
    for name in names:
        rank = ranks.get(name, options.rank)
        alpha = alphas.get(name, rank if options.alpha is None else options.alpha)
        _group_linear(model, name).add(adapter, rank, alpha, options)
    return names


def _check(model: nn.Module, name: str, adapter: str) -> None:
    module = model.get_submodule(name)
    if SHARED.fullmatch(name):
        raise PolyditError(f"model.adapter.targets: {name} is shared by all groups of tokens; exclude it")
    if isinstance(module, GroupLinear):
        if adapter in module.lora_A:
            raise PolyditError(
                f"adapter {adapter!r}: the model has one of that name; choose another name or unload it"
            )
    elif hasattr(module, "base_layer"):
        raise PolyditError(f"model.adapter.targets: {name} has a LoRA over all tokens; bake that one first")
    elif not isinstance(module, nn.Linear):
        raise PolyditError(f"model.adapter.targets: {name} is no linear layer; exclude it")


def _group_linear(model: nn.Module, name: str) -> GroupLinear:
    """The layer of that name, wrapped if it is not yet."""
    module: Any = model.get_submodule(name)
    if not isinstance(module, GroupLinear):
        module = GroupLinear(module, per_group=PER_GROUP.fullmatch(name) is not None)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    return module


def load_group_lora(model: nn.Module, path: str | Path, adapter: str, scale: float = 1.0) -> LoadReport:
    """Attach a LoRA file to one group of tokens, with frozen factors.

    The file is what ``save_lora(model, path, adapter)`` writes, or any LoRA in PEFT naming for this model.

    Args:
        model: The native DiT.
        path: A safetensors file.
        adapter: Name to give it; a token group refers to it.
        scale: Strength; 1 is as trained, 0 is off.

    Raises:
        PolyditError: the file is not a LoRA of this model, or holds more than plain factors.
    """
    modules, report = match_modules(path, model, scale, group=True)
    if any(part.magnitude is not None for part in modules.values()):
        raise PolyditError(
            f"{path}: holds DoRA magnitudes, which change weights that all groups share; use a plain LoRA"
        )
    for name in modules:
        _check(model, name, adapter)
    for name, part in modules.items():
        layer, rank = _group_linear(model, name), part.a.shape[0]
        layer.add(adapter, rank, part.scale * rank, LoraOptions(rank=rank))
        layer.set_scale(adapter, scale)
        with torch.no_grad():
            for factor, value in ((layer.lora_A[adapter], part.a), (layer.lora_B[adapter], part.b)):
                factor.weight.copy_(value)  # not through .data: caches watch the version of a weight
                factor.requires_grad_(False)
    return report


@contextmanager
def plain_layers(model: nn.Module) -> Iterator[None]:
    """Put the layers under the group adapters back in their places while the ``with`` statement lasts.

    The model then computes, and saves itself, as if nothing had ever been added to it; afterwards the adapters are
    there again with what they had learned.
    """
    layers = [(name, m) for name, m in lora_layers(model) if isinstance(m, GroupLinear)]

    def put(name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)

    for name, layer in layers:
        put(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in layers:
            put(name, layer)


def group_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that act on a group of tokens."""
    return list(
        dict.fromkeys(name for _, m in lora_layers(model) if isinstance(m, GroupLinear) for name in m.lora_A)
    )
