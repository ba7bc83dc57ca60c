"""The model families whose LoRA files are exchanged with other tools, and how a file's family is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from .maps_flux import FLUX_RULES
from .maps_pixart import PIXART_RULES
from .maps_sd3 import SD3_RULES
from .maps_wan import WAN_RULES
from .name_map import NameMap

__all__ = ["FAMILIES", "Family", "family_of", "family_of_class", "tell_family"]


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
    """

    name: str
    classes: tuple[str, ...]
    names: NameMap | None = None
    widths: tuple[int, ...] = ()
    factors: tuple[str, str] = ("lora_A", "lora_B")


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "flux",
            ("FluxTransformer2DModel",),
            NameMap(FLUX_RULES),
            (3072,),
            ("lora_down", "lora_up"),  # diffusers converts no other
        ),
        Family("sd3", ("SD3Transformer2DModel",), NameMap(SD3_RULES), (1536, 2432)),
        Family("wan", ("WanTransformer3DModel",), NameMap(WAN_RULES)),
        Family("pixart", ("PixArtTransformer2DModel",), NameMap(PIXART_RULES), (1152,)),
        Family("qwen-image", ("QwenImageTransformer2DModel",)),
        Family("ltx-video", ("LTXVideoTransformer3DModel",)),
        Family("native", ("DiT", "TokenGroupDiT")),
    )
}


def family_of_class(name: str | None) -> Family | None:
    """The family that a class belongs to, by its name."""
    return next((family for family in FAMILIES.values() if name in family.classes), None)


def family_of(model: nn.Module) -> Family | None:
    """The family of a model, or None if there is no table of names for it."""
    return next(
        (found for cls in type(model).__mro__ if (found := family_of_class(cls.__name__)) is not None), None
    )


def tell_family(names: Iterable[str], widths: Mapping[str, int], trained_on: str | None) -> list[Family]:
    """The families that a file can be of: one if it is plain, several if the names fit several, or none.

    Args:
        names: Layer names in the file, dotted or flat, without prefixes.
        widths: Width of the input of each.
        trained_on: Class in our header entry.
    """
    known = family_of_class(trained_on)
    if known is not None:
        return [known]
    names = list(names)
    fitting = [
        family for family in FAMILIES.values() if family.names and family.names.count(names) == len(names)
    ]
    if len(fitting) > 1:
        published = [
            family
            for family in fitting
            if not family.widths or any(width in family.widths for width in widths.values())
        ]
        fitting = published or fitting
    return fitting
