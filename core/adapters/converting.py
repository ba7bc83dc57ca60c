"""A LoRA file of one layout as a file of another, with its scale baked, without the model."""

from __future__ import annotations

from pathlib import Path

from ..errors import PolyditError
from .families import FAMILIES, Family, tell_family
from .formats import Layout, from_layout, to_layout
from .inspecting import scale_span
from .lora_file import FLAT, HEADER, LoraFile, open_lora, write_lora
from .saving import kohya_header, layout_entry

__all__ = ["convert_lora"]


def convert_lora(
    path: str | Path,
    output: str | Path,
    layout: Layout,
    *,
    base: str | None = None,
    alpha_keys: bool = False,
    overwrite: bool = False,
) -> str:
    """Write a LoRA file in another layout (or the same, with the scale baked).

    Args:
        path: A safetensors file in any layout.
        output: The file to write.
        layout: ``diffusers``, ``kohya`` or ``comfyui``.
        base: Family of the model it is for; needed where several have layers of these names.
        alpha_keys: Write ``.alpha`` = rank in ``comfyui`` too.
        overwrite: Replace an existing file.

    Returns:
        One line about what was written and left out.

    Raises:
        PolyditError: the file is no LoRA, its family is unknown or unclear, or the layout cannot carry it.
    """
    path, output = Path(path), Path(output)
    if output.exists() and not overwrite:
        raise PolyditError(f"{output}: exists already; choose another name or pass --overwrite")
    file = open_lora(path)
    if file.entry.get("tokens") == "group" and layout != "diffusers":
        raise PolyditError(
            f"{path}: acts on one group of tokens, other tools would apply it to all; use --layout diffusers"
        )
    family = _family(file, base)
    try:
        modules = from_layout(file.modules, family, file.entry.get("layers", ()))
        if unknown := [name for name in modules if FLAT.match(name)]:
            raise PolyditError(
                f"{len(unknown)} names are in no table of layers ({', '.join(unknown[:3])}); name the model's family "
                "with --base"
            )
        tensors = to_layout(modules, family, layout, alpha_keys)
    except PolyditError as error:
        raise PolyditError(f"{path}: {error}") from error
    kept = {key: value for key, value in file.entry.items() if key != "layers"}
    entry = {**kept, "scale": "baked", **layout_entry(modules, family, layout)}
    write_lora(
        output,
        tensors,
        {**file.header, HEADER: entry, **(kohya_header(tensors) if layout == "kohya" else {})},
    )
    low, high = scale_span(file)
    scale = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    left_out = f", {len(file.unexpected)} keys left out" if file.unexpected else ""
    return (
        f"{len(modules)} layers of {family.name if family else 'an unknown model'}, {file.layout} to {layout}, "
        f"scale {scale} ({file.alpha}) baked{left_out}"
    )


def _family(file: LoraFile, base: str | None) -> Family | None:
    """The family by its name, or as the file's names tell it; None where they tell nothing."""
    if base is not None:
        if base not in FAMILIES:
            raise PolyditError(f"--base {base}: no such family; choose {', '.join(FAMILIES)}")
        return FAMILIES[base]
    fitting = tell_family(file)
    if len(fitting) > 1:
        names = " and ".join(family.name for family in fitting)
        raise PolyditError(f"{file.path}: its names are those of {names}; say which with --base")
    return fitting[0] if fitting else None
