"""An adapter of a model as a file that loads at the same strength everywhere.

Loaders disagree about where a scale is written down (a tensor, a header, nowhere), and a file that relies on one
of them runs at the wrong strength elsewhere. Here B is multiplied by the scale before it is written, so every
loader computes the same; the alpha of the training is kept in our own header entry only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .families import Family, family_of
from .formats import Layout, to_layout
from .lora import INITIAL, adapter_names, lora_layers, training_scale
from .lora_file import HEADER, LoraModule, write_lora

__all__ = ["adapter_modules", "describe_base", "kohya_header", "layout_entry", "save_lora"]


def describe_base(model: nn.Module) -> dict[str, Any]:
    """What identifies the model that an adapter was trained on: class, hash of its config, number of weights."""
    config = {k: v for k, v in dict(getattr(model, "config", {})).items() if not str(k).startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    keys = {name.replace(".base_layer", "") for name in model.state_dict() if ".lora_" not in name}
    return {"class": type(model).__name__, "config_sha256": digest[:16], "keys": len(keys)}


def adapter_modules(model: nn.Module, adapter: str = "default") -> dict[str, LoraModule]:
    """The adapter as a plain LoRA for an untouched base, by module name.

    PiSSA and OLoRA change their base, so their delta against the untouched one has twice the rank:
    ``[A; A0]`` and ``[B, -B0]``.
    """
    modules: dict[str, LoraModule] = {}
    for name, layer in lora_layers(model, adapter):
        a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        initial = getattr(layer, INITIAL, {}).get(adapter)
        if initial is not None:
            a0, b0 = (value.to(a) for value in initial)
            a, b = torch.cat([a, a0]), torch.cat([b, -b0], 1)
        magnitudes = getattr(layer, "lora_magnitude_vector", {})
        magnitude = magnitudes[adapter].weight.detach().cpu().flatten() if adapter in magnitudes else None
        modules[name] = LoraModule(a.cpu(), b.cpu(), magnitude, training_scale(layer, adapter), [])
    return modules


def layout_entry(modules: Collection[str], family: Family | None, layout: Layout) -> dict[str, Any]:
    """What our header entry says of names; with underscores for dots and no table, the names themselves."""
    hidden = layout == "kohya" and family is not None and family.names is None
    return {
        "layout": layout,
        "family": family.name if family else None,
        **({"layers": sorted(modules)} if hidden else {}),
    }


def kohya_header(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The header entries by which other tools show rank and alpha of a kohya file."""
    ranks = {value.shape[0] for key, value in tensors.items() if key.endswith(".lora_down.weight")}
    size = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    return {"ss_network_module": "networks.lora", "ss_network_dim": size, "ss_network_alpha": size}


def save_lora(
    model: nn.Module,
    path: str | Path,
    adapter: str = "default",
    *,
    layout: Layout = "diffusers",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one adapter to a safetensors file (through a temporary name).

    Args:
        model: A model that carries it.
        path: The file.
        adapter: Its name.
        layout: ``diffusers``, ``kohya`` or ``comfyui``.
        metadata: Anything JSON to keep in our header entry (data, licence, command).
        overwrite: Replace an existing file.

    Raises:
        PolyditError: no such adapter, weights that are not finite, the file exists, or the layout cannot carry it.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise PolyditError(f"{path}: exists already; choose another name or pass --overwrite")
    layers = list(lora_layers(model, adapter))
    if not layers:
        raise PolyditError(f"adapter {adapter!r}: the model has {', '.join(adapter_names(model)) or 'none'}")
    tokens = "group" if any(hasattr(layer, "per_group") for _, layer in layers) else "all"
    if tokens == "group" and layout != "diffusers":
        raise PolyditError(
            f"--layout {layout}: the adapter acts on one group of tokens, other tools would apply it to all; use "
            "--layout diffusers"
        )
    modules, family = adapter_modules(model, adapter), family_of(model)
    tensors = to_layout(modules, family, layout)
    entry = {
        "scale": "baked",
        **layout_entry(modules, family, layout),
        "training_alpha": sorted({float(layer.lora_alpha[adapter]) for _, layer in layers}),
        "training_rank": sorted({layer.r[adapter] for _, layer in layers}),
        "rslora": any(layer.use_rslora.get(adapter, False) for _, layer in layers),
        "tokens": tokens,
        "base": describe_base(model),
        **(metadata or {}),
    }
    return write_lora(path, tensors, {HEADER: entry, **(kohya_header(tensors) if layout == "kohya" else {})})
