"""The model families whose LoRA files are exchanged with other tools, and how a file's family is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .lora_file import FLAT, LoraFile
from .maps_flux import FLUX_RULES
from .maps_ltx import LTX_RULES
from .maps_pixart import PIXART_RULES
from .maps_qwen import QWEN_RULES
from .maps_sd3 import SD3_RULES
from .maps_wan import WAN_RULES
from .name_map import NameMap

__all__ = ["FAMILIES", "Family", "family_of", "tell_family"]


@dataclass(frozen=True)
class Family:
    """A family of models with the same layer names.

    Attributes:
        name: As ``--base`` takes it.
        classes: Names of the classes of its transformers.
        names: Published names of the layers; None where they are those of the class itself.
        widths: Widths of the published sizes, to tell families with like names apart.
        factors: What the two factors are called in ComfyUI's layout. ComfyUI reads either pair; where a second
            loader reads only one of them, it is that one.
        readers: Which other tools read a layout at its full strength; each was run on files written here. "(blocks)":
            a LoRA of layers inside the blocks; "(all of the blocks)": of every linear layer there and no other.
    """

    name: str
    classes: tuple[str, ...]
    names: NameMap | None = None
    widths: tuple[int, ...] = ()
    factors: tuple[str, str] = ("lora_A", "lora_B")
    readers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "flux",
            ("FluxTransformer2DModel",),
            NameMap(FLUX_RULES),
            (3072,),
            ("lora_down", "lora_up"),  # diffusers converts no other
            {
                "diffusers": ("diffusers", "ComfyUI"),
                "kohya": ("diffusers (blocks)", "ComfyUI", "sd-scripts (blocks)"),
                "comfyui": ("diffusers (blocks)", "ComfyUI"),
            },
        ),
        Family(
            "sd3",
            ("SD3Transformer2DModel",),
            NameMap(SD3_RULES),
            (1536, 2432),
            readers={
                "diffusers": ("diffusers", "ComfyUI"),
                "kohya": ("ComfyUI", "sd-scripts (blocks)"),
                "comfyui": ("ComfyUI",),
            },
        ),
        Family(
            "wan",
            ("WanTransformer3DModel",),
            NameMap(WAN_RULES),
            readers={
                "diffusers": ("diffusers",),
                "kohya": ("diffusers (all of the blocks)", "ComfyUI", "musubi-tuner (blocks)"),
                "comfyui": ("diffusers", "ComfyUI"),
            },
        ),
        Family(
            "pixart",
            ("PixArtTransformer2DModel",),
            NameMap(PIXART_RULES),
            (1152,),
            readers={"diffusers": ("peft", "ComfyUI"), "kohya": ("ComfyUI",), "comfyui": ("ComfyUI",)},
        ),
        Family(
            "qwen-image",
            ("QwenImageTransformer2DModel",),
            NameMap(QWEN_RULES),
            (3072,),
            readers={
                "diffusers": ("diffusers", "ComfyUI"),
                "kohya": ("diffusers", "ComfyUI", "musubi-tuner (blocks)"),
                "comfyui": ("diffusers", "ComfyUI"),
            },
        ),
        Family(
            "ltx-video",
            ("LTXVideoTransformer3DModel",),
            NameMap(LTX_RULES),
            (2048, 4096),
            readers={
                "diffusers": ("diffusers",),
                "kohya": ("ComfyUI",),
                "comfyui": ("diffusers (blocks)", "ComfyUI"),
            },
        ),
        # No other tool has names for these: their files have the diffusers layout.
        Family("sana", ("SanaTransformer2DModel",), NameMap(()), readers={"diffusers": ("diffusers",)}),
        Family(
            "cogvideox", ("CogVideoXTransformer3DModel",), NameMap(()), readers={"diffusers": ("diffusers",)}
        ),
        Family("dit", ("DiTTransformer2DModel",), NameMap(()), readers={"diffusers": ("peft",)}),
        Family("native", ("DiT", "TokenGroupDiT")),  # this project's own, under their own names
    )
}


def family_of(model: nn.Module) -> Family | None:
    """The family of a model, by the names of its classes, or None if no table is for it."""
    classes = {cls.__name__ for cls in type(model).__mro__}
    return next((family for family in FAMILIES.values() if classes & set(family.classes)), None)


def tell_family(file: LoraFile) -> list[Family]:
    """The families that a file can be of: one if it is plain, several if the names fit several, or none."""
    if (written := file.entry.get("family")) in FAMILIES:
        return [FAMILIES[written]]
    if "base" in file.entry:  # ours, of a model that no table is for
        return []
    names = [FLAT.sub("", name, count=1) for name in file.modules]
    widths = {module.a.shape[1] for module in file.modules.values()}
    fitting = [family for family in FAMILIES.values() if family.names and family.names.knows(names)]
    return [family for family in fitting if not family.widths or widths & set(family.widths)] or fitting
