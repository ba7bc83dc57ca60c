"""LoRA files: the diffusers/PEFT layout in safetensors, with the scale baked into the weights.

Loaders disagree about where a scale is written down (a tensor, a header, nowhere), and a file that relies on one
of them runs at the wrong strength elsewhere. Here B is multiplied by the scale before it is written, so every
loader that takes alpha = rank computes the same; the alpha of the training is kept in our own header entry only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import PolyditError
from .lora import (
    INITIAL,
    adapter_names,
    adapter_weights,
    add_adapter,
    delta,
    exactly,
    lora_layers,
    set_adapter_weights,
    training_scale,
)
from .targets import adaptable_modules

__all__ = [
    "LoadReport",
    "apply_lora",
    "describe_base",
    "load_lora",
    "lora_state_dict",
    "read_lora",
    "save_lora",
]

HEADER = "polydit"
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
SUFFIX = re.compile(
    r"\.(?:(?P<a>lora_A|lora_down)|(?P<b>lora_B|lora_up)|(?P<m>lora_magnitude_vector|dora_scale)|(?P<alpha>alpha))(?:\.weight)?$"
)


@dataclass
class LoadReport:
    """What came of loading a LoRA file.

    Attributes:
        matched: Keys of the file that were used.
        unexpected: Keys that belong to no module of the model.
        missing: Modules of which the file has only one factor.
        scale: The strength it was loaded at.
        note: A remark on the base it was trained on, or empty.
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


@dataclass
class LoraModule:
    """One module's part of a file: A (r, in, ...), B (out, r, ...), DoRA's magnitude, and the scale yet to apply."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    scale: float
    keys: list[str]


def describe_base(model: nn.Module) -> dict[str, Any]:
    """What identifies the model that an adapter was trained on: class, hash of its config, number of weights."""
    config = {k: v for k, v in dict(getattr(model, "config", {})).items() if not str(k).startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    keys = {name.replace(".base_layer", "") for name in model.state_dict() if ".lora_" not in name}
    return {"class": type(model).__name__, "config_sha256": digest[:16], "keys": len(keys)}


def lora_state_dict(
    model: nn.Module, adapter: str = "default", prefix: str = "transformer."
) -> dict[str, Tensor]:
    """The adapter as a plain LoRA at scale 1, for an untouched base.

    PiSSA and OLoRA change their base, so their delta against the untouched one has twice the rank:
    ``[A; A0]`` and ``[s B, -s B0]``.
    """
    state: dict[str, Tensor] = {}
    for name, layer in lora_layers(model, adapter):
        a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        scale = training_scale(layer, adapter)
        initial = getattr(layer, INITIAL, {}).get(adapter)
        if initial is not None:
            a0, b0 = (value.to(a) for value in initial)
            a, b = torch.cat([a, a0]), torch.cat([b, -b0], 1)
        state[f"{prefix}{name}.lora_A.weight"] = a.cpu().contiguous()
        state[f"{prefix}{name}.lora_B.weight"] = (scale * b).cpu().contiguous()
        magnitudes = getattr(layer, "lora_magnitude_vector", {})
        if adapter in magnitudes:
            state[f"{prefix}{name}.lora_magnitude_vector.weight"] = (
                magnitudes[adapter].weight.detach().cpu().contiguous()
            )
    return state


def save_lora(
    model: nn.Module,
    path: str | Path,
    adapter: str = "default",
    *,
    prefix: str = "transformer.",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one adapter to a safetensors file (through a temporary name).

    Args:
        model: A model that carries it.
        path: The file.
        adapter: Its name.
        prefix: What diffusers expects before the module names.
        metadata: Anything JSON to keep in our header entry (data, licence, command).
        overwrite: Replace an existing file.

    Raises:
        PolyditError: no such adapter, weights that are not finite, or the file exists.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise PolyditError(f"{path}: exists already; choose another name or pass --overwrite")
    layers = list(lora_layers(model, adapter))
    state = lora_state_dict(model, adapter, prefix)
    if not state:
        raise PolyditError(f"adapter {adapter!r}: the model has {', '.join(adapter_names(model)) or 'none'}")
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise PolyditError(
            f"{path}: not written, {bad[0]} holds NaN or infinity; export an earlier checkpoint"
        )
    ranks = sorted({layer.r[adapter] for _, layer in layers})
    entry = {
        "layout": "diffusers",
        "scale": "baked",
        "training_alpha": sorted({float(layer.lora_alpha[adapter]) for _, layer in layers}),
        "training_rank": ranks,
        "rslora": any(layer.use_rslora.get(adapter, False) for _, layer in layers),
        "base": describe_base(model),
        **(metadata or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        save_file(state, temporary, metadata={"format": "pt", HEADER: json.dumps(entry)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_lora(path: str | Path) -> tuple[dict[str, LoraModule], list[str], list[str], dict[str, Any]]:
    """Parse a file in PEFT naming.

    Scales written as ``.alpha`` tensors or in diffusers' header are honoured; without either the scale is 1.

    Returns:
        The parts by module name, keys that are none, modules with one factor only, and our header entry.

    Raises:
        PolyditError: the file is missing, unreadable, or holds no LoRA.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise PolyditError(f"{path}: there is no such LoRA file")
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise PolyditError(
            f"{path}: cannot be read as safetensors ({error}); give a .safetensors LoRA"
        ) from error
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}
    unexpected = []
    for key, value in sorted(tensors.items()):
        match = SUFFIX.search(key)
        if match is None:
            unexpected.append(key)
        else:
            parts.setdefault(strip_prefix(key[: match.start()]), {})[str(match.lastgroup)] = (key, value)
    scales = header_scales(header)
    modules: dict[str, LoraModule] = {}
    missing = []
    for name, part in parts.items():
        if "a" not in part or "b" not in part:
            missing.append(name)
            unexpected += [key for key, _ in part.values()]
            continue
        a, b = part["a"][1], part["b"][1]
        alpha = part["alpha"][1].item() if "alpha" in part else None
        modules[name] = LoraModule(
            a=a,
            b=b,
            magnitude=part["m"][1].flatten() if "m" in part else None,
            scale=alpha / a.shape[0] if alpha is not None else scales(name, a.shape[0]),
            keys=[key for key, _ in part.values()],
        )
    if not modules:
        raise PolyditError(f"{path}: holds no LoRA in PEFT naming (lora_A, lora_B); convert it first")
    return modules, unexpected, missing, json.loads(header.get(HEADER, "{}"))


def strip_prefix(name: str) -> str:
    """Module name without what pipelines and wrappers put before it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def header_scales(header: Mapping[str, str]) -> Any:
    """``scale(name, rank)`` by diffusers' ``lora_adapter_metadata``; 1 where there is none."""
    config = json.loads(header.get("lora_adapter_metadata", "{}"))
    config = {strip_prefix(key): value for key, value in config.items()}
    alphas = config.get("alpha_pattern") or {}

    def scale(name: str, rank: int) -> float:
        alpha = next(
            (v for k, v in alphas.items() if re.match(rf"(.*\.)?({k})$", name)), config.get("lora_alpha")
        )
        if alpha is None:
            return 1.0
        return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank

    return scale


def base_weight(module: nn.Module) -> Tensor:
    """The weight under an adapter, or of a module without one."""
    weight = getattr(module, "base_layer", module).weight
    assert isinstance(weight, Tensor)
    return weight


def match_modules(
    path: str | Path, model: nn.Module, scale: float
) -> tuple[dict[str, LoraModule], LoadReport]:
    """Read a file for a model; every module of the file must be one of the model, in shape too."""
    modules, unexpected, missing, entry = read_lora(path)
    have = adaptable_modules(model)
    strangers = [name for name in modules if name not in have]
    if strangers:
        base = entry.get("base", {}).get("class")
        trained_on = f" (it was trained on {base})" if base else ""
        raise PolyditError(
            f"{path}: {len(strangers)} of {len(modules)} modules are not in {type(model).__name__}{trained_on}: "
            f"{', '.join(strangers[:3])}; use the weights it was trained on"
        )
    for name, part in modules.items():
        weight = base_weight(have[name])
        if (part.b.shape[0], *part.a.shape[1:]) != tuple(weight.shape) or part.b.shape[1] != part.a.shape[0]:
            raise PolyditError(
                f"{path}: {name} is made for a weight of {[part.b.shape[0], *part.a.shape[1:]]}, the model has "
                f"{list(weight.shape)}; use the weights it was trained on"
            )
    note = ""
    mine = describe_base(model)
    if entry.get("base") and entry["base"] != mine:
        note = f"trained on another {entry['base'].get('class', 'base')} configuration"
    matched = [key for part in modules.values() for key in part.keys]
    return modules, LoadReport(matched, unexpected, missing, scale, note)


def load_lora(model: nn.Module, path: str | Path, scale: float = 1.0, adapter: str = "default") -> LoadReport:
    """Attach a LoRA file to a model as an adapter, active beside those it has, with frozen factors.

    Args:
        model: Any module whose names the file uses.
        path: A safetensors file in PEFT naming.
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
    """Add a LoRA file to the weights of a model for good, without peft (whose import takes seconds).

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
