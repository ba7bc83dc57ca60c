"""Names of Stable Diffusion 3's layers: as published (joint_blocks, fused projections) and in diffusers."""

from __future__ import annotations

from .name_map import Rule, same_in_blocks

__all__ = ["SD3_RULES"]

EMBED = "time_text_embed"

SD3_RULES: tuple[Rule, ...] = (
    *same_in_blocks(
        "joint_blocks.*",
        "transformer_blocks.*",
        Rule("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), (1, 1, 1)),
        Rule("x_block.attn.proj", ("attn.to_out.0",)),
        Rule("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v"), (1, 1, 1)),
        Rule("x_block.attn2.proj", ("attn2.to_out.0",)),
        Rule("x_block.mlp.fc1", ("ff.net.0.proj",)),
        Rule("x_block.mlp.fc2", ("ff.net.2",)),
        Rule("x_block.adaLN_modulation.1", ("norm1.linear",)),
        Rule("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), (1, 1, 1)),
        Rule("context_block.attn.proj", ("attn.to_add_out",)),
        Rule("context_block.mlp.fc1", ("ff_context.net.0.proj",)),
        Rule("context_block.mlp.fc2", ("ff_context.net.2",)),
        # Only the last block's has two parts, shift and scale, whose order differs.
        Rule("context_block.adaLN_modulation.1", ("norm1_context.linear",), swap=True),
    ),
    Rule("x_embedder.proj", ("pos_embed.proj",)),
    Rule("context_embedder", ("context_embedder",)),
    Rule("t_embedder.mlp.0", (f"{EMBED}.timestep_embedder.linear_1",)),
    Rule("t_embedder.mlp.2", (f"{EMBED}.timestep_embedder.linear_2",)),
    Rule("y_embedder.mlp.0", (f"{EMBED}.text_embedder.linear_1",)),
    Rule("y_embedder.mlp.2", (f"{EMBED}.text_embedder.linear_2",)),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap=True),
    Rule("final_layer.linear", ("proj_out",)),
)
