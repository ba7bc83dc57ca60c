"""Names of LTX-Video's layers: as published and in diffusers, which differ outside of the blocks only."""

from __future__ import annotations

from .name_map import Rule, same_in_blocks, unchanged

__all__ = ["LTX_RULES"]

BLOCK = "transformer_blocks.*"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")

LTX_RULES: tuple[Rule, ...] = (
    *same_in_blocks(
        BLOCK,
        BLOCK,
        *unchanged(*(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in PROJECTIONS)),
        *unchanged("ff.net.0.proj", "ff.net.2"),
    ),
    Rule("patchify_proj", ("proj_in",)),
    Rule("adaln_single.emb.timestep_embedder.linear_1", ("time_embed.emb.timestep_embedder.linear_1",)),
    Rule("adaln_single.emb.timestep_embedder.linear_2", ("time_embed.emb.timestep_embedder.linear_2",)),
    Rule("adaln_single.linear", ("time_embed.linear",)),
    *unchanged("caption_projection.linear_1", "caption_projection.linear_2", "proj_out"),
)
