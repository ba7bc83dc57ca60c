"""Changing what a module answers for the time of a call, also when gradient checkpointing calls it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

__all__ = ["adding", "answering", "surviving_checkpoints"]


@contextmanager
def answering(module: nn.Module, answer: Callable[[Any], Any] | None) -> Iterator[None]:
    """Let a module answer ``answer(what it would have answered)``; nothing with None."""
    if answer is None:
        yield
        return
    handle = module.register_forward_hook(lambda _module, _inputs, output: answer(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def surviving_checkpoints(
    transformer: ModelMixin, context: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Enter a context now, and again around every block that the backward pass recomputes.

    Gradient checkpointing runs blocks a second time when the context of the first time is long closed.
    """
    original = transformer._gradient_checkpointing_func
    inside = True

    def checkpoint(block: nn.Module, *args: Any) -> Any:
        def run(*values: Any) -> Any:
            if inside:
                return block(*values)
            with context():
                return block(*values)

        return original(run, *args)

    if original is not None:
        transformer._gradient_checkpointing_func = checkpoint
    try:
        with context():
            yield
    finally:
        inside = False
        transformer._gradient_checkpointing_func = original


def adding(
    transformer: ModelMixin,
    blocks: Sequence[nn.Module],
    values: Sequence[Tensor | None],
    output: int | None,
) -> AbstractContextManager[None]:
    """Add a value behind each block, to its output of that number, or to its only one.

    Raises:
        ValueError: not one value, or None, for each block.
    """
    if len(values) != len(blocks):
        raise ValueError(f"{len(values)} values to add for {len(blocks)} blocks; give one each, or None")

    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            for block, value in zip(blocks, values, strict=True):
                if value is not None:
                    stack.enter_context(answering(block, lambda out, value=value: _added(out, value, output)))
            yield

    return surviving_checkpoints(transformer, context)


def _added(out: Any, value: Tensor, output: int | None) -> Any:
    if output is None:
        return out + value.to(out.dtype)
    parts = list(out)
    parts[output] = parts[output] + value.to(parts[output].dtype)
    return tuple(parts)
