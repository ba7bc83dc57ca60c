"""What a LoRA file holds, which tools read it, and where they would run it at another strength."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .families import tell_family
from .lora_file import TEXT_ENCODER, LoraFile, open_lora

__all__ = ["CHANGES", "inspect_lora", "scale_span"]

CHANGES = re.compile(r"\.(diff|diff_b|lora_B\.bias|set_weight|reshape_weight)$")
"""Keys of changes that are no product of two factors."""


def inspect_lora(path: str | Path) -> dict[str, Any]:
    """Look into a LoRA file without its model.

    Returns:
        Anything JSON: ``layout``, ``family`` (names, several if they cannot be told apart), ``layers``, ``rank`` and
        ``scale`` (lowest and highest), ``alpha`` (where the scale stands), ``dtype``, ``dora``, counts of keys that
        are left out, ``trained_on``, ``training`` (our header entry), ``loads_in`` and ``warnings``.

    Raises:
        PolyditError: the file is missing, unreadable or no LoRA.
    """
    file = open_lora(path)
    modules = file.modules.values()
    families = tell_family(file)
    ranks = sorted({module.a.shape[0] for module in modules})
    return {
        "file": str(path),
        "layout": file.layout,
        "family": [family.name for family in families],
        "trained_on": file.entry.get("base", {}).get("class"),
        "layers": len(modules),
        "rank": [ranks[0], ranks[-1]],
        "scale": scale_span(file),
        "alpha": file.alpha,
        "dtype": sorted({str(module.b.dtype).removeprefix("torch.") for module in modules}),
        "dora": any(module.magnitude is not None for module in modules),
        "half_pairs": len(file.missing),
        "text_encoder_keys": sum(TEXT_ENCODER.match(key) is not None for key in file.unexpected),
        "other_changes": sum(CHANGES.search(key) is not None for key in file.unexpected),
        "unknown_keys": len(
            [key for key in file.unexpected if not TEXT_ENCODER.match(key) and not CHANGES.search(key)]
        ),
        "training": {key: value for key, value in file.entry.items() if key != "base"},
        "loads_in": ["polydit", *(families[0].readers.get(file.layout, ()) if len(families) == 1 else ())],
        "warnings": _warnings(file, [family.name for family in families]),
    }


def scale_span(file: LoraFile) -> list[float]:
    """The lowest and the highest alpha / rank of a file's layers."""
    scales = sorted(module.scale for module in file.modules.values())
    return [scales[0], scales[-1]]


def _warnings(file: LoraFile, families: list[str]) -> list[str]:
    """Where tools differ about a file; `polydit lora convert` puts right what is about alpha and keys."""
    found = []
    scaled = scale_span(file) != [1.0, 1.0]
    if scaled and file.alpha in ("header", "adapter_config.json"):
        found.append(f"alpha stands in the {file.alpha} only: ComfyUI and kohya's tools run it at 1")
    beside_a = file.alpha == ".alpha tensors" and "lora_A" in file.factors and file.layout == "diffusers"
    if scaled and beside_a and families != ["flux"]:
        found.append(
            ".alpha tensors beside lora_A: diffusers honours them for flux only, else it runs at 1 or fails"
        )
    if file.alpha == "none":
        found.append("no alpha anywhere: it runs at 1 in every tool, also if it was trained at another scale")
    if file.base_model and not set(families) & {"pixart", "sd3"}:
        found.append("keys begin with base_model.model.: ComfyUI knows them for pixart and sd3 only")
    if any(module.magnitude is not None for module in file.modules.values()):
        if file.layout == "diffusers":
            found.append("DoRA: ComfyUI does not know lora_magnitude_vector and computes something else")
        else:
            found.append(
                "DoRA: diffusers leaves dora_scale out, and ComfyUI divides by the lengths of the unchanged weight: "
                "both compute something else; export a pipeline with the LoRA merged"
            )
    if file.entry.get("tokens") == "group":
        found.append("it acts on one group of tokens; other tools would apply it to all")
    return found
