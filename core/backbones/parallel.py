"""What diffusers needs to know about our blocks: caches, context and tensor parallelism.

Inheriting diffusers' mixins is not enough: its caches look every block class up in a registry, and its
parallel plans are read from the model class. Both live in private modules, so their absence only turns the feature off.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

__all__ = ["CONTEXT_PARALLEL_PLAN", "TENSOR_PARALLEL_PLAN", "register_block"]

BlockClass = TypeVar("BlockClass", bound=type[nn.Module])


def register_block(block_class: BlockClass) -> BlockClass:
    """Class decorator: tell diffusers' caches that the block returns its hidden states as the only output."""
    try:
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    except ImportError:  # another diffusers version: its block caches are then unavailable, nothing else
        return block_class
    TransformerBlockRegistry.register(
        block_class,
        TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
    )
    return block_class


def _context_parallel_plan() -> dict[str, Any] | None:
    try:
        from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
    except ImportError:
        return None
    # The sequence is split where it enters the first block and gathered behind the head.
    return {
        "rotary": {
            0: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True),
            1: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True),
        },
        "blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3, split_output=False)},
        "final_layer": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }


def _tensor_parallel_plan() -> dict[str, Any] | None:
    try:
        from diffusers.hooks.tensor_parallel import PackedColwiseParallel
    except ImportError:
        return None
    return {
        "blocks.*.attn.qkv": PackedColwiseParallel(),
        "blocks.*.attn.proj": "rowwise",
        "blocks.*.mlp.fc1": PackedColwiseParallel(),
        "blocks.*.mlp.fc2": "rowwise",
    }


CONTEXT_PARALLEL_PLAN = _context_parallel_plan()
TENSOR_PARALLEL_PLAN = _tensor_parallel_plan()
