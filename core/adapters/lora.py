"""LoRA on any module through peft: inject, count, weigh, merge, grow. Files are in ``lora_file``."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .options import LoraOptions
from .targets import choose, resolve_targets

__all__ = [
    "adapter_names",
    "adapter_weights",
    "bake",
    "count_trainable",
    "grow_rank",
    "inject",
    "lora_layers",
    "merge",
    "set_adapter_weights",
    "unload",
    "unmerge",
]

PEFT_FLAG = "_hf_peft_config_loaded"
INITIAL = "lora_initial"
"""Name of the attribute of a LoRA layer that keeps the factors taken out of its base weight, by adapter."""


def lora_layers(model: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, Any]]:
    """Names and layers that carry a LoRA (this one, or any)."""
    for name, module in model.named_modules():
        if (
            hasattr(module, "lora_A")
            and hasattr(module, "base_layer")
            and (adapter is None or adapter in module.lora_A)
        ):
            yield name, module


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters that a model carries, in the order they were added."""
    names: dict[str, None] = {}
    for _, layer in lora_layers(model):
        names.update(dict.fromkeys(layer.lora_A))
    return list(names)


def add_adapter(model: nn.Module, config: Any, adapter: str) -> None:
    """Inject by peft, in place, with the flag that diffusers models keep about it."""
    from peft import inject_adapter_in_model

    if adapter in adapter_names(model):
        raise PolyditError(
            f"adapter {adapter!r}: the model has one of that name; choose another name or unload it"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(config, model, adapter)
    if hasattr(model, PEFT_FLAG):
        setattr(model, PEFT_FLAG, True)


def inject(model: nn.Module, options: LoraOptions, adapter: str = "default") -> list[str]:
    """Add a trainable LoRA to a model, in place; its output does not change by that.

    What was trainable stays trainable: freeze the base first if only the adapter is to learn.

    Returns:
        Names of the adapted modules.

    Raises:
        PolyditError: a target or pattern matches no module.
    """
    from peft import LoraConfig

    names = resolve_targets(model, options.targets, options.exclude)
    alpha = options.rank if options.alpha is None else options.alpha
    ranks = _by_name(names, options.rank_pattern, "model.adapter.rank_pattern")
    alphas = _by_name(names, options.alpha_pattern, "model.adapter.alpha_pattern")
    if options.alpha is None:
        alphas = {**ranks, **alphas}  # a scale of 1 everywhere unless alpha is given
    config = LoraConfig(
        r=options.rank,
        lora_alpha=alpha,
        target_modules=exactly(names),
        lora_dropout=options.dropout,
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        init_lora_weights=True if options.init == "default" else options.init,
        rank_pattern={re.escape(name): rank for name, rank in ranks.items()},
        alpha_pattern={re.escape(name): value for name, value in alphas.items()},
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    add_adapter(model, config, adapter)
    for parameter in trainable:
        parameter.requires_grad_(True)  # peft freezes everything but the adapter
    for _, layer in lora_layers(model, adapter):
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        for part in (a, b):
            part.float()  # factors of a bfloat16 base learn in float32
        b.weight.lr_scale = options.lr_ratio
        if options.changes_base:
            initial = getattr(layer, INITIAL, {})
            initial[adapter] = (a.weight.detach().clone(), b.weight.detach().clone())
            setattr(layer, INITIAL, initial)
    return names


def exactly(names: Sequence[str]) -> str:
    """The expression that matches these names and no other."""
    return "(?:" + "|".join(re.escape(name) for name in names) + ")"


def _by_name(names: Sequence[str], pattern: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Values of a pattern by full module name; later patterns win."""
    return {name: value for key, value in pattern.items() for name in choose(names, [key], option)}


def count_trainable(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def training_scale(layer: Any, adapter: str) -> float:
    """The scale by definition, whatever strength the adapter is set to at the moment."""
    rank, alpha = layer.r[adapter], layer.lora_alpha[adapter]
    return alpha / rank**0.5 if layer.use_rslora.get(adapter, False) else alpha / rank


def adapter_weights(model: nn.Module) -> dict[str, float]:
    """The active adapters and their strengths."""
    weights: dict[str, float] = {}
    for _, layer in lora_layers(model):
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weights[name] = layer.scaling[name] / training_scale(layer, name)
    return weights


def set_adapter_weights(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Activate adapters, each times its weight: the output is the base plus the weighted sum of their deltas.

    Raises:
        PolyditError: the model has no adapter of that name; or it is to be weighed, and its initialisation moved a part
            of the base into it (PiSSA, OLoRA).
    """
    have = adapter_names(model)
    for name in weights:
        if name not in have:
            raise PolyditError(f"adapter {name!r}: the model has {', '.join(have) or 'none'}")
    for _, layer in lora_layers(model):
        for name in getattr(layer, INITIAL, {}):
            if weights.get(name, 0.0) != 1:
                raise PolyditError(
                    f"adapter {name!r}: a part of the base is in it since its initialisation, so it has strength 1; "
                    "save it, and load the file on the base to weigh it"
                )
    for _, layer in lora_layers(model):
        active = [name for name in weights if name in layer.lora_A]
        layer.set_adapter(active)
        layer.requires_grad_(False)
        for name in active:
            layer.set_scale(name, weights[name])


def merge(model: nn.Module, adapters: Sequence[str] | None = None) -> None:
    """Add the (active, or named) adapters to the base weights; :func:`unmerge` takes them out again."""
    for _, layer in lora_layers(model):
        names = None if adapters is None else [name for name in adapters if name in layer.lora_A]
        layer.merge(adapter_names=names)


def unmerge(model: nn.Module) -> None:
    """Undo :func:`merge` up to rounding (below 1e-6 in float32)."""
    for _, layer in lora_layers(model):
        if layer.merged:
            layer.unmerge()


def unload(model: nn.Module) -> None:
    """Take all adapters off. Merged ones stay in the weights; use :func:`unmerge` first if they must not.

    A base whose initialisation moved a part of it into the adapter (PiSSA, OLoRA) gets that part back.
    """
    for name, layer in list(lora_layers(model)):
        base = layer.base_layer
        if not layer.merged:
            for adapter, (a, b) in getattr(layer, INITIAL, {}).items():
                base.weight.data += (training_scale(layer, adapter) * delta(a, b)).to(base.weight)
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], base)
    if hasattr(model, "peft_config"):
        del model.peft_config
    if hasattr(model, PEFT_FLAG):
        setattr(model, PEFT_FLAG, False)


def bake(model: nn.Module) -> None:
    """Merge the active adapters for good: a plain model of the same output remains."""
    merge(model)
    unload(model)


def delta(a: Tensor, b: Tensor) -> Tensor:
    """B A for linear factors (r, in), (out, r), or for convolutions (r, in, k...), (out, r, 1...)."""
    product = b.flatten(1) @ a.flatten(1)
    return product.view(b.shape[0], *a.shape[1:])


@torch.no_grad()
def grow_rank(
    model: nn.Module, rank: int, adapter: str = "default", generator: torch.Generator | None = None
) -> None:
    """Give an adapter more rank without changing what it computes.

    New rows of A are random, as at a fresh start, and new columns of B are zero: the product stays, and the new
    columns receive gradients (padding both with zeros would leave them dead). The scale stays too.

    Raises:
        PolyditError: the adapter is missing or has more rank already.
    """
    layers = list(lora_layers(model, adapter))
    if not layers:
        raise PolyditError(f"adapter {adapter!r}: the model has {', '.join(adapter_names(model)) or 'none'}")
    for name, layer in layers:
        a, b, old = layer.lora_A[adapter], layer.lora_B[adapter], layer.r[adapter]
        if rank < old:
            raise PolyditError(
                f"adapter {adapter!r}: {name} has rank {old}; it can grow, not shrink to {rank}"
            )
        if rank == old:
            continue
        rows = torch.empty(rank - old, *a.weight.shape[1:])
        bound = 1 / math.sqrt(rows[0].numel())  # Kaiming-uniform with a = sqrt(5), peft's start
        rows.uniform_(-bound, bound, generator=generator)
        columns = b.weight.new_zeros(b.weight.shape[0], rank - old, *b.weight.shape[2:])
        scale = getattr(b.weight, "lr_scale", 1.0)
        for part, value in (
            (a, torch.cat([a.weight, rows.to(a.weight)])),
            (b, torch.cat([b.weight, columns], 1)),
        ):
            part.weight = nn.Parameter(value, requires_grad=part.weight.requires_grad)
        b.weight.lr_scale = scale
        if isinstance(a, nn.Linear):
            a.out_features = b.in_features = rank
        else:
            a.out_channels = b.in_channels = rank
        scale = training_scale(layer, adapter)
        layer.r[adapter] = rank
        layer.lora_alpha[adapter] *= scale / training_scale(layer, adapter)
