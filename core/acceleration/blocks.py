"""Blocks of a transformer as a cache sees them: where they are, and how tokens go in and come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import PolyditError
from ..probing.streams import argument_name, block_metadata

__all__ = ["BlockPort", "find_blocks", "unwrap"]

LISTS = (
    "blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "layers",
    "visual_transformer_blocks",
    "temporal_transformer_blocks",
)
"""Names of block lists, in the order in which a model runs them."""


def unwrap(model: nn.Module) -> nn.Module:
    """The module that holds the blocks: without the shell of ``torch.compile``, without our adapters."""
    model = getattr(model, "_orig_mod", model)
    inner = getattr(model, "transformer", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every block in the order of the call.

    Raises:
        PolyditError: the model has no list of blocks that is known.
    """
    children = dict(model.named_children())
    lists = {name: child for name, child in children.items() if isinstance(child, nn.ModuleList)}
    found = [
        (f"{name}.{index}", block)
        for name in LISTS
        if name in lists
        for index, block in enumerate(lists[name])
    ]
    if not found:
        raise PolyditError(
            f"cache: {type(model).__name__} has no list of transformer blocks called {', '.join(LISTS)} "
            f"(only {', '.join(lists) or 'none'}), so there is nothing to cache"
        )
    return found


class BlockPort:
    """Reads and writes the streams of one block: (image tokens, text tokens), the second None where it has none."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        metadata = block_metadata(block)
        self._image = 0 if metadata is None else metadata.return_hidden_states_index
        self._text = 1 if metadata is None else metadata.return_encoder_hidden_states_index
        self._names = argument_name(block), argument_name(block, text=True)
        self._parts = 0  # of the output, 0 for a bare tensor; known once the block has run

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor | None, ...]:
        """The streams of a call."""
        if self._text is None:
            return (self._argument(0, args, kwargs),)
        return self._argument(0, args, kwargs), self._argument(1, args, kwargs)

    def replace(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], tokens: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with other image tokens."""
        if self._names[0] in kwargs:
            return tuple(args), {**kwargs, self._names[0]: tokens}
        return (tokens, *args[1:]), dict(kwargs)

    def learn(self, output: Any) -> None:
        """Remember how the block answers."""
        self._parts = len(output) if isinstance(output, tuple) else 0

    def streams(self, output: Any) -> tuple[Tensor | None, ...]:
        """The streams of an output."""
        if isinstance(output, Tensor):
            return (output,)
        return output[self._image], None if self._text is None else output[self._text]

    def pack(self, streams: Sequence[Tensor | None]) -> Any:
        """Streams as the block would answer."""
        if self._parts == 0:
            return streams[0]
        output: list[Any] = [None] * self._parts
        output[self._image] = streams[0]
        if self._text is not None and len(streams) > 1:
            output[self._text] = streams[1]
        return tuple(output)

    def _argument(self, place: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        if self._names[place] in kwargs:
            return kwargs[self._names[place]]
        value = args[place] if place < len(args) else None
        return value if isinstance(value, Tensor) else None
