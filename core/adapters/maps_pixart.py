"""Names of PixArt's layers: as published (blocks, fused projections) and in diffusers."""

from __future__ import annotations

from .name_map import Rule, same_in_blocks

__all__ = ["PIXART_RULES"]

PIXART_RULES: tuple[Rule, ...] = (
    *same_in_blocks(
        "blocks.*",
        "transformer_blocks.*",
        Rule("attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), (1, 1, 1)),
        Rule("attn.proj", ("attn1.to_out.0",)),
        Rule("cross_attn.q_linear", ("attn2.to_q",)),
        Rule("cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v"), (1, 1)),
        Rule("cross_attn.proj", ("attn2.to_out.0",)),
        Rule("mlp.fc1", ("ff.net.0.proj",)),
        Rule("mlp.fc2", ("ff.net.2",)),
    ),
    Rule("x_embedder.proj", ("pos_embed.proj",)),
    Rule("t_embedder.mlp.0", ("adaln_single.emb.timestep_embedder.linear_1",)),
    Rule("t_embedder.mlp.2", ("adaln_single.emb.timestep_embedder.linear_2",)),
    Rule("t_block.1", ("adaln_single.linear",)),
    Rule("y_embedder.y_proj.fc1", ("caption_projection.linear_1",)),
    Rule("y_embedder.y_proj.fc2", ("caption_projection.linear_2",)),
    Rule("final_layer.linear", ("proj_out",)),
)
