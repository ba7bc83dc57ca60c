"""``polydit lora``: what a LoRA file holds, and the same LoRA in the layout of another tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parser import Menu, Parser

__all__ = ["run_lora"]

LAYOUTS = ("diffusers", "kohya", "comfyui")
FAMILIES = ("flux", "sd3", "wan", "pixart", "qwen-image", "ltx-video", "native")
"""Those with names for layers in the other layouts; a test keeps both equal to ``core.adapters``."""


def run_lora(words: Sequence[str]) -> int:
    """Run ``polydit lora inspect`` or ``polydit lora convert``."""
    menu = Menu(
        prog="polydit lora",
        summary="LoRA files of this and other tools.",
        sections=(
            (
                "commands",
                (
                    ("inspect", "layout, model family, rank, strength, and which tools read it"),
                    ("convert", "write it in another layout, the strength baked into the weights"),
                ),
            ),
        ),
    )
    chosen = menu.choose(words)
    if chosen is None:
        print(menu.help())
        return 0
    name, rest = chosen
    return _inspect(rest) if name == "inspect" else _convert(rest)


def _inspect(words: Sequence[str]) -> int:
    parser = Parser(
        "polydit lora inspect", "What a LoRA file holds, and which tools read it at full strength."
    )
    parser.add_argument("file", type=Path, help="a .safetensors file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(words)
    from ..adapters import inspect_lora

    found = inspect_lora(options.file)
    if options.json:
        import json

        print(json.dumps(found, indent=2))
        return 0
    for title, value in _rows(found):
        print(f"{title + ':':<12}{value}")
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    return 0


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is printed of a file: title and value."""
    left_out = [
        f"{found[key]} {what}"
        for key, what in (
            ("text_encoder_keys", "keys of text encoders"),
            ("other_changes", "changes of biases or whole weights"),
            ("half_pairs", "layers with one factor only"),
            ("unknown_keys", "keys that are no LoRA"),
        )
        if found[key]
    ]
    trained_on = f", trained on {found['trained_on']}" if found["trained_on"] else ""
    dora = ", DoRA" if found["dora"] else ""
    return [
        ("layout", found["layout"]),
        ("family", (" or ".join(found["family"]) or "not known") + trained_on),
        ("layers", f"{found['layers']}, rank {_span(found['rank'])}, {', '.join(found['dtype'])}{dora}"),
        ("scale", f"{_span(found['scale'])} (alpha/rank; from: {found['alpha']})"),
        ("left out", "; ".join(left_out) or "nothing"),
        ("loads in", ", ".join(found["loads_in"])),
    ]


def _span(values: Sequence[float]) -> str:
    low, high = values
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _convert(words: Sequence[str]) -> int:
    parser = Parser(
        "polydit lora convert",
        "Write a LoRA file in another layout, with its scale in the weights: it loads at equal strength everywhere.",
    )
    parser.add_argument("input", type=Path, help="a .safetensors file in any layout")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--layout", required=True, choices=LAYOUTS, help="diffusers is what PEFT calls its own"
    )
    parser.add_argument(
        "--base", choices=FAMILIES, help="model family; only needed where the file does not tell it"
    )
    parser.add_argument(
        "--alpha-keys", action="store_true", help="write .alpha = rank in comfyui too; kohya always has it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    options = parser.parse_args(words)
    from ..adapters import convert_lora

    print(
        convert_lora(
            options.input,
            options.output,
            options.layout,
            base=options.base,
            alpha_keys=options.alpha_keys,
            overwrite=options.overwrite,
        )
    )
    print(options.output)
    return 0
