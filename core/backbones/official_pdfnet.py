"""PDFNet's released checkpoints: their key names, there and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .official import load_matching
from .pdfnet import PDFNet
from .pdfnet_fusion import Fusion, Sizes

__all__ = ["pdfnet_from_official", "pdfnet_to_official"]

# (official, ours), each a whole part of a name; a part that starts the name carries "^".
NAMES = (
    ("^encoder", "^hierarchy"),
    ("^decoder.FSE_mix", "^fusions"),
    # The released lists run from fine to coarse here, ours in the order of use.
    *((f"^decoder.channel_mix.{3 - i}", f"^stream_mix.{i}") for i in range(4)),
    ("^decoder.shallow", "^detail"),
    *((f"^decoder.upsample{i + 1}.0", f"^finish.{i}") for i in range(2)),
    ("^decoder.Bside", "^sides"),
    *((f"^channel_mix{i + 1}", f"^level_mix.{i}") for i in range(4)),
    ("^channel_mix", "^overview_mix.0"),
    ("^Glob.0", "^overview_mix.1"),
    ("^depth_decoder.Decoder", "^depth_decoder.steps"),
    ("^depth_decoder.shallow.0", "^depth_decoder.detail"),
    *((f"^depth_decoder.upsample{i + 1}", f"^depth_decoder.finish.{i}") for i in range(2)),
    ("^depth_decoder.Bside", "^depth_decoder.sides"),
    ("I_channelswich", "image_in"),
    ("D_channelswich", "depth_in"),
    ("P_channelswich", "tiles_in"),
    ("IP", "image_to_tiles"),
    ("PI", "tiles_to_both"),
    ("ID", "image_to_depth"),
    ("DI", "depth_to_both"),
    ("FFN.w1", "gate"),
    ("FFN.w2", "down"),
    ("FFN.w3", "up"),
    ("Norm1", "norm1"),
    ("Norm2", "norm2"),
    ("Att.out_proj", "attn.to_out"),
)
SOBEL = ("IntegrityPriorLoss.sobel_x.weight", "IntegrityPriorLoss.sobel_y.weight")
# Constants that released files also hold.
CONSTANTS = re.compile(r"\.(relative_position_index|attn_mask)$")


def pdfnet_from_official(
    state_dict: dict[str, Tensor],
    emb: int = 128,
    back_bone_channels: Sequence[int] | None = None,
    patch_ratio: int = 8,
    encoder: str | None = None,
    **config: Any,
) -> nn.Module:
    """A released PDFNet, or one fusion block of it where its sizes (``img_dim``, ...) are given.

    Args:
        state_dict: official names.
        emb: width behind the encoder.
        back_bone_channels: of the four scales; None reads them from the weights.
        patch_ratio: tiles along a side.
        encoder: a remark; the weights tell which encoder it is.
        **config: of a fusion block: ``img_dim``, ``depth_dim``, ``patch_dim``, ``emb_dim``, ``pool_ratio``.

    Raises:
        PolyditError: the weights are of another network.
    """
    state = {name: tensor for name, tensor in state_dict.items() if not CONSTANTS.search(name)}
    if "img_dim" in config:
        sizes = Sizes(config["img_dim"], config["depth_dim"], config["patch_dim"], config["emb_dim"])
        pool = tuple(config.get("pool_ratio", (1, 1, 1)))
        block = Fusion(sizes, pool, patch_ratio, released_quirks=True)  # type: ignore[arg-type]
        return load_matching(block, _ours(state), "pdfnet")
    if config:
        raise PolyditError(
            f"pdfnet has no option {sorted(config)[0]!r}; it takes emb, back_bone_channels, patch_ratio"
        )
    settings: dict[str, Any]
    try:
        widths = [state[f"channel_mix{i}.0.weight"].shape[1] for i in (1, 2, 3, 4)]
        if "encoder.stages.0.weight" in state:
            strides = [state[f"encoder.stages.{i}.weight"].shape[-1] for i in range(4)]
            settings = {"encoder": "conv", "strides": strides, "depths": [0] * 4}
        else:
            settings = _swin_settings(state)
    except KeyError as error:
        raise PolyditError(
            f"pdfnet checkpoint does not fit: {error.args[0]} is missing; is it of PDFNet?"
        ) from error
    if back_bone_channels is not None and list(back_bone_channels) != widths:
        raise PolyditError(
            f"pdfnet: back_bone_channels is {list(back_bone_channels)}, the weights have {widths}"
        )
    model = PDFNet(
        embed_dim=emb,
        widths=widths,
        tiles=patch_ratio,
        released_quirks=True,
        refine_depth=any(name.startswith("depth_decoder.") for name in state),
        **settings,
    )
    ours = _ours(state)
    ours["sobel"] = torch.cat([state[name] for name in SOBEL]) if SOBEL[0] in state else model.sobel.detach()
    return load_matching(model, ours, "pdfnet")


def pdfnet_to_official(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a :class:`PDFNet`, or of a fusion block, under their official names."""
    state = dict(model.state_dict())
    filters = dict(zip(SOBEL, state.pop("sobel").split(1), strict=True)) if "sobel" in state else {}
    for name in [name for name in state if name.endswith("attn.to_q.weight")]:
        stem = name.removesuffix("attn.to_q.weight")
        state[f"{stem}Att.in_proj_weight"] = torch.cat(
            [state.pop(name), state.pop(f"{stem}attn.to_kv.weight")]
        )
    return {_renamed(name, back=True): tensor for name, tensor in state.items()} | filters


def _swin_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    depths, heads = [], []
    for level in range(4):
        blocks = {name.split(".")[4] for name in state if name.startswith(f"encoder.layers.{level}.blocks.")}
        depths.append(len(blocks))
        table = state[f"encoder.layers.{level}.blocks.0.attn.relative_position_bias_table"]
        heads.append(table.shape[1])
    window = (round(table.shape[0] ** 0.5) + 1) // 2
    position = state.get("encoder.absolute_pos_embed")
    return {
        "encoder": "swin",
        "depths": depths,
        "heads": heads,
        "window": window,
        "position_size": None if position is None else position.shape[-1],
    }


def _ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if name in SOBEL:
            continue
        ours = _renamed(name)
        if ours.endswith("Att.in_proj_weight"):
            width = tensor.shape[0] // 3
            renamed[ours.replace("Att.in_proj_weight", "attn.to_q.weight")] = tensor[:width]
            renamed[ours.replace("Att.in_proj_weight", "attn.to_kv.weight")] = tensor[width:]
        else:
            renamed[ours] = tensor
    return renamed


def _renamed(name: str, back: bool = False) -> str:
    name = f"^.{name}."
    for official, ours in NAMES:
        old, new = (ours, official) if back else (official, ours)
        name = name.replace(f".{old}.".replace(".^", "^."), f".{new}.".replace(".^", "^."), 1)
        if name.startswith(("^.encoder.", "^.hierarchy.")):
            break
    return name[2:-1]
