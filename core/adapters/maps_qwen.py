"""Names of Qwen-Image's layers: published as they are in diffusers; the table tells underscores from dots."""

from __future__ import annotations

from .name_map import Rule, same_in_blocks, unchanged

__all__ = ["QWEN_RULES"]

BLOCK = "transformer_blocks.*"
EMBED = "time_text_embed.timestep_embedder"

QWEN_RULES: tuple[Rule, ...] = (
    *same_in_blocks(
        BLOCK,
        BLOCK,
        *unchanged("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *unchanged("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *unchanged("img_mlp.net.0.proj", "img_mlp.net.2", "img_mod.1"),
        *unchanged("txt_mlp.net.0.proj", "txt_mlp.net.2", "txt_mod.1"),
    ),
    *unchanged("img_in", "txt_in", f"{EMBED}.linear_1", f"{EMBED}.linear_2", "norm_out.linear", "proj_out"),
)
