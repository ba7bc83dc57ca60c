"""Names of FLUX.1's layers: as published (double_blocks, single_blocks, fused projections) and in diffusers."""

from __future__ import annotations

from .name_map import Rule, same_in_blocks

__all__ = ["FLUX_RULES"]

DOUBLE = "transformer_blocks.*"
SINGLE = "single_transformer_blocks.*"
EMBED = "time_text_embed"

FLUX_RULES: tuple[Rule, ...] = (
    *same_in_blocks(
        "double_blocks.*",
        DOUBLE,
        Rule("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), (1, 1, 1)),
        Rule("img_attn.proj", ("attn.to_out.0",)),
        Rule("img_mlp.0", ("ff.net.0.proj",)),
        Rule("img_mlp.2", ("ff.net.2",)),
        Rule("img_mod.lin", ("norm1.linear",)),
        Rule("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), (1, 1, 1)),
        Rule("txt_attn.proj", ("attn.to_add_out",)),
        Rule("txt_mlp.0", ("ff_context.net.0.proj",)),
        Rule("txt_mlp.2", ("ff_context.net.2",)),
        Rule("txt_mod.lin", ("norm1_context.linear",)),
    ),
    *same_in_blocks(
        "single_blocks.*",
        SINGLE,
        Rule("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), (1, 1, 1, 4)),
        Rule("linear2", ("proj_out",)),
        Rule("modulation.lin", ("norm.linear",)),
    ),
    Rule("img_in", ("x_embedder",)),
    Rule("txt_in", ("context_embedder",)),
    Rule("time_in.in_layer", (f"{EMBED}.timestep_embedder.linear_1",)),
    Rule("time_in.out_layer", (f"{EMBED}.timestep_embedder.linear_2",)),
    Rule("vector_in.in_layer", (f"{EMBED}.text_embedder.linear_1",)),
    Rule("vector_in.out_layer", (f"{EMBED}.text_embedder.linear_2",)),
    Rule("guidance_in.in_layer", (f"{EMBED}.guidance_embedder.linear_1",)),
    Rule("guidance_in.out_layer", (f"{EMBED}.guidance_embedder.linear_2",)),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap=True),
    Rule("final_layer.linear", ("proj_out",)),
)
