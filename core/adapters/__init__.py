"""Adapters: LoRA and its relatives on any backbone, and files that load at equal strength everywhere."""

from __future__ import annotations

from .converting import convert_lora
from .difffit import DiffFit
from .group import inject_group, load_group_lora
from .inspecting import inspect_lora
from .loading import LoadReport, apply_lora, continue_from, load_lora
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
from .options import LoraOptions
from .saving import save_lora

__all__ = [
    "DiffFit",
    "LoadReport",
    "LoraOptions",
    "adapter_names",
    "adapter_weights",
    "apply_lora",
    "bake",
    "continue_from",
    "convert_lora",
    "count_trainable",
    "grow_rank",
    "inject",
    "inject_group",
    "inspect_lora",
    "load_group_lora",
    "load_lora",
    "merge",
    "save_lora",
    "set_adapter_weights",
    "unload",
    "unmerge",
]
