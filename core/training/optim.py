"""Optimiser and learning-rate schedule: what a config says about them, and how they are built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from .extras import require

__all__ = ["OptimizerOptions", "build_optimizer", "learning_rate_factor", "parameter_groups"]


@dataclass
class OptimizerOptions:
    """AdamW and its schedule.

    Attributes:
        kind: ``adamw``, or ``adamw_8bit`` (bitsandbytes, arXiv 2110.02861): its two moments take a quarter of the
            memory.
        lr: Peak learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay of matrices; vectors, embeddings and tables are never decayed.
        warmup_steps: Optimiser steps of linear warm-up from zero.
        schedule: ``constant``, ``cosine`` to zero, or ``wsd`` (constant, then linear to zero over the last
            ``decay_fraction`` of the run).
        decay_fraction: Share of the run that ``wsd`` spends decaying.
        min_lr_ratio: Where ``cosine`` and ``wsd`` end, as a share of ``lr``.
        fused: Use the fused kernel; None takes it where every parameter is on a device that has one.
    """

    kind: Literal["adamw", "adamw_8bit"] = "adamw"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"
    decay_fraction: float = 0.25
    min_lr_ratio: float = 0.0
    fused: bool | None = None


def parameter_groups(module: nn.Module, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Group the trainable parameters of a module by weight decay and learning-rate scale.

    Vectors and embedding tables are not decayed, nor is a parameter tagged ``no_weight_decay = True`` where it was
    created; a tag ``lr_scale`` multiplies the learning rate of that parameter.

    Returns:
        Dictionaries with ``params``, ``lr``, ``weight_decay`` and ``name``, in an order that depends on the module
        only, so that a resumed run finds its optimiser state.
    """
    tables = {
        id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        exempt = (
            parameter.ndim <= 1 or id(parameter) in tables or getattr(parameter, "no_weight_decay", False)
        )
        groups.setdefault((not exempt, float(getattr(parameter, "lr_scale", 1.0))), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": options.lr * scale,
            "weight_decay": options.weight_decay if decayed else 0.0,
            "name": ("decay" if decayed else "no_decay") + (f"_x{scale:g}" if scale != 1.0 else ""),
        }
        for (decayed, scale), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """AdamW over :func:`parameter_groups`.

    Raises:
        PolyditError: the library of the 8-bit one is missing.
    """
    groups = parameter_groups(module, options)
    betas = (options.betas[0], options.betas[1])
    if options.kind == "adamw_8bit":
        require("bitsandbytes", "--model.optimizer.kind adamw_8bit")
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(groups, lr=options.lr, betas=betas, eps=options.eps)
    fused = options.fused
    if fused is None:
        fused = all(
            p.device.type in ("cuda", "cpu") and p.is_floating_point() for g in groups for p in g["params"]
        )
    return torch.optim.AdamW(groups, lr=options.lr, betas=betas, eps=options.eps, fused=fused)


def learning_rate_factor(options: OptimizerOptions, step: int, progress: float) -> float:
    """Factor on the learning rate.

    Args:
        options: The schedule.
        step: Optimiser steps taken so far; only the warm-up counts them.
        progress: Share of the run that is over, 0..1, by steps or by the clock.
    """
    progress = min(max(progress, 0.0), 1.0)
    warm = 1.0 if step >= options.warmup_steps else (step + 1) / (options.warmup_steps + 1)
    if options.schedule == "constant":
        return warm
    if options.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        shape = min(1.0, (1 - progress) / options.decay_fraction) if options.decay_fraction > 0 else 1.0
    return warm * (options.min_lr_ratio + (1 - options.min_lr_ratio) * shape)
