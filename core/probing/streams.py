"""How a block takes and gives its streams: image tokens, and text tokens where it has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["argument_name", "block_metadata", "input_key"]


def block_metadata(block: nn.Module) -> Any | None:
    """What diffusers knows about the order of a block's outputs and the names of its inputs."""
    try:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        return TransformerBlockRegistry.get(type(block))
    except (ImportError, ValueError):  # the module is private; the block may be unknown
        return None


def argument_name(block: nn.Module, text: bool = False) -> str:
    """Name of the argument that carries a stream into the block."""
    metadata = block_metadata(block)
    if text:
        return "encoder_hidden_states" if metadata is None else metadata.encoder_hidden_states_argument_name
    return "hidden_states" if metadata is None else metadata.hidden_states_argument_name


def input_key(block: nn.Module, kwargs: Mapping[str, Any], text: bool = False) -> str | int:
    """Name, else position, of the argument that carries a stream into a call of the block."""
    name = argument_name(block, text)
    return name if name in kwargs else int(text)
