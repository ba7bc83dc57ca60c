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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import PolyditError
from .lora import INITIAL, adapter_names, lora_layers, training_scale

__all__ = ["LoraModule", "describe_base", "lora_state_dict", "read_lora", "save_lora"]

HEADER = "polydit"
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
SUFFIX = re.compile(
    r"\.(?:(?P<a>lora_A|lora_down)|(?P<b>lora_B|lora_up)|(?P<m>lora_magnitude_vector|dora_scale)|(?P<alpha>alpha))(?:\.weight)?$"
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
        "tokens": "group" if any(hasattr(layer, "per_group") for _, layer in layers) else "all",
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
