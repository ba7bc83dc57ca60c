"""Adapters: LoRA and its relatives on any backbone, and files that load at equal strength everywhere."""

from __future__ import annotations

from .lora import (
    adapter_names,
    adapter_weights,
    bake,
    count_trainable,
    grow_rank,
    inject,
    merge,
    set_adapter_weights,
    unload,
    unmerge,
)
from .lora_file import LoadReport, apply_lora, load_lora, save_lora
from .options import LoraOptions

__all__ = [
    "LoadReport",
    "LoraOptions",
    "adapter_names",
    "adapter_weights",
    "apply_lora",
    "bake",
    "count_trainable",
    "grow_rank",
    "inject",
    "load_lora",
    "merge",
    "save_lora",
    "set_adapter_weights",
    "unload",
    "unmerge",
]
