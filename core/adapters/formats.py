"""Layer names and factors of the three file layouts, to and from the names of a diffusers (or our own) model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import PolyditError
from .families import Family
from .fusing import fuse, split, swap_halves
from .lora_file import FLAT, LoraModule

__all__ = ["LAYOUTS", "Layout", "bake_scale", "from_layout", "to_layout"]

Layout = Literal["diffusers", "kohya", "comfyui"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def bake_scale(module: LoraModule) -> LoraModule:
    """The same LoRA at scale 1: B takes the scale, in the precision it has.

    Of float16, whose small values lose their bits, A takes as many powers of two as it can without such a loss.
    """
    a, b, scale = module.a, module.b, module.scale
    if scale == 1:
        return module
    if b.dtype == torch.float16 and a.any():
        size = math.log2(float(a.double().square().mean().sqrt()))
        lowest = min(0, math.ceil(-11 - size))  # the normal ones begin at 2 ** -14
        power = min(0, max(lowest, math.frexp(scale)[1]))
        a, scale = (2.0**power * a.double()).to(a.dtype), scale * 2.0**-power
    b = (scale * b.double()).to(b.dtype)
    return LoraModule(a, b, module.magnitude, 1.0, module.keys)


def from_layout(
    modules: Mapping[str, LoraModule], family: Family | None, known: Collection[str] = ()
) -> dict[str, LoraModule]:
    """A file's modules under the names of the model.

    Args:
        modules: As ``open_lora`` gives them.
        family: Whose published names to translate.
        known: Names of the model's layers, which are taken as they are, also with underscores for dots.

    Returns:
        By model name. A fused layer becomes its parts. Names that nothing is known of stay as they are.

    Raises:
        PolyditError: a fused layer has not the rows of its parts.
    """
    known = set(known)
    flat_known = {name.replace(".", "_"): name for name in known}
    found: dict[str, LoraModule] = {}
    for name, module in modules.items():
        begin = FLAT.match(name)
        flat, bare = begin is not None, name[begin.end() :] if begin else name
        if not flat and bare in known:
            found[bare] = module
            continue
        if flat and bare in flat_known:
            found[flat_known[bare]] = module
            continue
        names = family.names if family else None
        if names is not None and (own := names.from_module(bare, flat)) and not names.from_native(bare, flat):
            found[own[2]] = module
        elif names is not None and (native := names.from_native(bare, flat)):
            rule, number = native
            targets = [target.replace("*", number) for target in rule.modules]
            if len(targets) == 1:
                found[targets[0]] = swap_halves(module) if rule.swap else module
                continue
            try:
                found.update(split(module, targets, rule.widths))
            except ValueError as error:
                raise PolyditError(
                    f"{module.keys[0]}: cannot be split into {', '.join(targets)} ({error}); it is of another model"
                ) from error
        else:
            found[name] = module
    return found


def to_layout(
    modules: Mapping[str, LoraModule], family: Family | None, layout: Layout, alpha_keys: bool = False
) -> dict[str, Tensor]:
    """Tensors of a file, every scale baked.

    Args:
        modules: By the model's names.
        family: Of the model; needed for all layouts but ``diffusers``.
        layout: ``diffusers`` (PEFT keys), ``kohya`` or ``comfyui``.
        alpha_keys: Write ``.alpha`` = rank in ``comfyui`` too; ``kohya`` always has them, ``diffusers`` never.

    Raises:
        PolyditError: other tools have no name for a layer, or a fused layer cannot carry DoRA on a part of it.
    """
    baked = {name: bake_scale(module) for name, module in modules.items()}
    if layout == "diffusers":
        if alpha_keys:  # some loaders of diffusers refuse a file that has them
            raise PolyditError(
                "--alpha-keys: the diffusers layout has none, its scale is 1; leave the option out"
            )
        named = {f"transformer.{name}": module for name, module in baked.items()}
        return _tensors(named, ("lora_A", "lora_B"), "lora_magnitude_vector", column=False)
    if family is None:
        raise PolyditError(
            f"--layout {layout}: there is no table of published names for this model; use --layout diffusers"
        )
    native = _native(baked, family, layout)
    if layout == "kohya":
        native = {f"lora_unet_{name.replace('.', '_')}": module for name, module in native.items()}
        tensors = _tensors(native, ("lora_down", "lora_up"), "dora_scale", column=True)
    else:
        native = {f"diffusion_model.{name}": module for name, module in native.items()}
        tensors = _tensors(native, family.factors, "dora_scale", column=True)
    if layout == "kohya" or alpha_keys:
        for name, module in native.items():
            tensors[f"{name}.alpha"] = torch.tensor(float(module.a.shape[0]))
    return tensors


def _native(modules: Mapping[str, LoraModule], family: Family, layout: str) -> dict[str, LoraModule]:
    """By published names, what is fused there fused."""
    if family.names is None:
        return dict(modules)
    groups: dict[str, tuple[tuple[str, ...], tuple[int, ...], bool]] = {}
    strangers = []
    for name in modules:
        entry = family.names.from_module(name)
        if entry is None:
            strangers.append(name)
            continue
        rule, number, _ = entry
        parts = tuple(part.replace("*", number) for part in rule.modules)
        groups[rule.native.replace("*", number)] = (parts, rule.widths, rule.swap)
    if strangers:
        raise PolyditError(
            f"--layout {layout}: {family.name} has no published name for {len(strangers)} layers "
            f"({', '.join(strangers[:3])}); leave them out of the targets, or use --layout diffusers"
        )
    native: dict[str, LoraModule] = {}
    for name, (parts, widths, swap) in groups.items():
        if len(parts) == 1:
            native[name] = swap_halves(modules[parts[0]]) if swap else modules[parts[0]]
            continue
        try:
            native[name] = fuse(modules, parts, widths)
        except ValueError as error:
            raise PolyditError(
                f"--layout {layout}: {name} is one layer there, and the LoRA has DoRA magnitudes for a part of it "
                f"only; use --layout diffusers, or train on {', '.join(parts)} together"
            ) from error
    return native


def _tensors(
    modules: Mapping[str, LoraModule],
    factors: tuple[str, str],
    magnitude: str,
    column: bool,
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for factor, value in zip(factors, (module.a, module.b), strict=True):
            tensors[f"{name}.{factor}.weight"] = value
        if module.magnitude is not None:
            # diffusers takes a vector; elsewhere the shape says that the lengths are those of the rows.
            shape = (-1, *[1] * (module.a.ndim - 1)) if column else (-1,)
            suffix = magnitude if column else f"{magnitude}.weight"
            tensors[f"{name}.{suffix}"] = module.magnitude.reshape(shape)
    return tensors
