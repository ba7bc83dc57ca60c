"""Bringing a LoRA file to a model: as an adapter beside others, or added to its weights for good."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .families import family_of, tell_family
from .formats import from_layout
from .inspecting import CHANGES, scale_span
from .lora import (
    adapter_weights,
    add_adapter,
    delta,
    exactly,
    lora_layers,
    set_adapter_weights,
    training_scale,
)
from .lora_file import TEXT_ENCODER, LoraFile, LoraModule, open_lora
from .saving import describe_base
from .targets import adaptable_modules

__all__ = ["LoadReport", "apply_lora", "continue_from", "load_lora"]


@dataclass
class LoadReport:
    """What came of loading a LoRA file.

    Attributes:
        matched: Keys of the file that were used.
        unexpected: Keys that belong to no module of the model.
        missing: Modules of which the file has only one factor.
        scale: The strength it was loaded at.
        note: What else to know: layout and scale of a foreign file, what was left out, another base; or empty.
    """

    matched: list[str]
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    scale: float = 1.0
    note: str = ""

    def __str__(self) -> str:
        total = len(self.matched) + len(self.unexpected)
        return f"{len(self.matched)} of {total} keys matched, scale {self.scale:g}" + (
            f"; {self.note}" if self.note else ""
        )


def base_weight(module: nn.Module) -> Tensor:
    """The weight under an adapter, or of a module without one."""
    weight = getattr(module, "base_layer", module).weight
    assert isinstance(weight, Tensor)
    return weight


def match_modules(
    path: str | Path, model: nn.Module, scale: float, group: bool = False
) -> tuple[dict[str, LoraModule], LoadReport]:
    """Read a file for a model; every module of the file must be one of the model, in shape too."""
    file = open_lora(path)
    entry = file.entry
    if entry.get("tokens") == "group" and not group:
        raise PolyditError(
            f"{path}: was trained for one group of tokens and would change all of them; give its pipeline folder as "
            "--weights, or attach it with load_group_lora"
        )
    have = adaptable_modules(model)
    try:
        modules = from_layout(file.modules, family_of(model), have)
    except PolyditError as error:
        raise PolyditError(f"{path}: {error}") from error
    strangers = [name for name in modules if name not in have]
    if strangers:
        raise PolyditError(
            f"{path}: {len(strangers)} of {len(modules)} modules are not in {type(model).__name__}{_origin(file)}: "
            f"{', '.join(strangers[:3])}; use the weights it was trained on"
        )
    for name, part in modules.items():
        weight = base_weight(have[name])
        if (part.b.shape[0], *part.a.shape[1:]) != tuple(weight.shape) or part.b.shape[1] != part.a.shape[0]:
            raise PolyditError(
                f"{path}: {name} is made for a weight of {[part.b.shape[0], *part.a.shape[1:]]}{_origin(file)}, the "
                f"model has {list(weight.shape)}; use the weights it was trained on"
            )
    matched = list(dict.fromkeys(key for part in file.modules.values() for key in part.keys))
    note = "; ".join(_remarks(file, describe_base(model)))
    return modules, LoadReport(matched, file.unexpected, file.missing, scale, note)


def _origin(file: LoraFile) -> str:
    """In brackets, what the file is of, as far as it can be told."""
    if trained_on := file.entry.get("base", {}).get("class"):
        return f" (it was trained on {trained_on})"
    families = " or ".join(family.name for family in tell_family(file))
    return f" (its names are those of {families})" if families else ""


def _remarks(file: LoraFile, mine: dict[str, Any]) -> list[str]:
    """What a user should know of a file beside the count of its keys."""
    remarks = []
    if file.layout != "diffusers":
        remarks.append(f"{file.layout} layout")
    low, high = scale_span(file)
    if (low, high) != (1.0, 1.0):
        span = f"{low:g}" + (f" to {high:g}" if low != high else "")
        remarks.append(f"alpha/rank {span} from its {file.alpha}")
    encoder = sum(TEXT_ENCODER.match(key) is not None for key in file.unexpected)
    if encoder:
        remarks.append(f"{encoder} keys of text encoders left out")
    changes = sum(CHANGES.search(key) is not None for key in file.unexpected)
    if changes:
        remarks.append(f"{changes} changes of biases or whole weights left out")
    base = file.entry.get("base")
    if base and base != mine:
        remarks.append(f"trained on another {base.get('class', 'base')} configuration")
    return remarks


def load_lora(model: nn.Module, path: str | Path, scale: float = 1.0, adapter: str = "default") -> LoadReport:
    """Attach a LoRA file to a model as an adapter, active beside those it has, with frozen factors.

    Args:
        model: Any module whose names the file uses.
        path: A safetensors file in any layout: diffusers/PEFT, kohya or ComfyUI.
        scale: Strength; 1 is as trained, 0 is off.
        adapter: Name to give it.

    Raises:
        PolyditError: the file is not a LoRA of this model; lists the first three modules that do not match.
    """
    from peft import LoraConfig

    modules, report = match_modules(path, model, scale)
    others = adapter_weights(model)
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    config = LoraConfig(
        r=max(part.a.shape[0] for part in modules.values()),
        target_modules=exactly(list(modules)),
        use_dora=any(part.magnitude is not None for part in modules.values()),
        rank_pattern={re.escape(name): part.a.shape[0] for name, part in modules.items()},
        alpha_pattern={re.escape(name): part.scale * part.a.shape[0] for name, part in modules.items()},
    )
    add_adapter(model, config, adapter)
    for name, layer in lora_layers(model, adapter):
        part = modules[name]
        layer.lora_A[adapter].weight.data.copy_(part.a)
        layer.lora_B[adapter].weight.data.copy_(part.b)
        if part.magnitude is not None:
            layer.lora_magnitude_vector[adapter].weight.data.copy_(part.magnitude)
    for name, parameter in model.named_parameters():
        if name.replace(".base_layer", "") in frozen:
            parameter.requires_grad_(frozen[name.replace(".base_layer", "")])
    set_adapter_weights(model, {**others, adapter: scale})
    return report


@torch.no_grad()
def apply_lora(model: nn.Module, path: str | Path, scale: float = 1.0) -> LoadReport:
    """Add a LoRA file to the weights of a model for good: nothing slows its calls down.

    Raises:
        PolyditError: as :func:`load_lora`.
    """
    modules, report = match_modules(path, model, scale)
    have = adaptable_modules(model)
    for name, part in modules.items():
        weight = base_weight(have[name])
        change = scale * part.scale * delta(part.a.float(), part.b.float()).to(weight.device)
        updated = weight.float() + change
        if part.magnitude is not None:  # DoRA: the direction, times the learned length of each output's row
            shape = (-1, *[1] * (weight.ndim - 1))
            length = updated.flatten(1).norm(dim=1).view(shape)
            updated = updated * (part.magnitude.float().to(weight.device).view(shape) / length)
        weight.copy_(updated)
    return report


@torch.no_grad()
def continue_from(model: nn.Module, path: str | Path, adapter: str = "default") -> LoadReport:
    """Start a freshly injected adapter from a file of the same or a lower rank.

    The file's factors take the first rows of A and columns of B. The other columns of B are zero, so the adapter
    computes what the file does, and the other rows of A stay random, so they learn.

    Raises:
        PolyditError: the file adapts modules that the adapter does not, has more rank, or is DoRA where it is not.
    """
    layers = dict(lora_layers(model, adapter))
    group = any(hasattr(layer, "per_group") for layer in layers.values())
    modules, report = match_modules(path, model, 1.0, group=group)
    strangers = [name for name in modules if name not in layers]
    if strangers:
        raise PolyditError(
            f"{path}: adapts {len(strangers)} modules that this run does not ({', '.join(strangers[:3])}); "
            "add them to --model.adapter.targets"
        )
    for name, part in modules.items():
        layer, rank = layers[name], part.a.shape[0]
        magnitude = getattr(layer, "lora_magnitude_vector", {})
        if rank > layer.r[adapter]:
            raise PolyditError(f"{path}: {name} has rank {rank}; set --model.adapter.rank {rank} or more")
        if (part.magnitude is not None) != (adapter in magnitude):
            raise PolyditError(
                f"{path}: --model.adapter.use_dora must be {str(part.magnitude is not None).lower()}"
            )
        layer.lora_A[adapter].weight[:rank] = part.a.to(layer.lora_A[adapter].weight)
        b = layer.lora_B[adapter].weight
        b.zero_()
        b[:, :rank] = (part.b * (part.scale / training_scale(layer, adapter))).to(b)
        if part.magnitude is not None:
            magnitude[adapter].weight.copy_(part.magnitude)
    return report
