"""Names of Wan's layers: as published (self_attn.q, ffn.0, head.head) and in diffusers."""

from __future__ import annotations

from .name_map import Rule, same_in_blocks

__all__ = ["WAN_RULES"]

EMBED = "condition_embedder"

WAN_RULES: tuple[Rule, ...] = (
    *same_in_blocks(
        "blocks.*",
        "blocks.*",
        *(
            Rule(f"{theirs}.{short}", (f"{ours}.{name}",))
            for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
            for short, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
        ),
        Rule("cross_attn.k_img", ("attn2.add_k_proj",)),
        Rule("cross_attn.v_img", ("attn2.add_v_proj",)),
        Rule("ffn.0", ("ffn.net.0.proj",)),
        Rule("ffn.2", ("ffn.net.2",)),
    ),
    Rule("patch_embedding", ("patch_embedding",)),
    Rule("text_embedding.0", (f"{EMBED}.text_embedder.linear_1",)),
    Rule("text_embedding.2", (f"{EMBED}.text_embedder.linear_2",)),
    Rule("time_embedding.0", (f"{EMBED}.time_embedder.linear_1",)),
    Rule("time_embedding.2", (f"{EMBED}.time_embedder.linear_2",)),
    Rule("time_projection.1", (f"{EMBED}.time_proj",)),
    Rule("img_emb.proj.1", (f"{EMBED}.image_embedder.ff.net.0.proj",)),
    Rule("img_emb.proj.3", (f"{EMBED}.image_embedder.ff.net.2",)),
    Rule("head.head", ("proj_out",)),
)
