"""Reference attention: a network sees, in its own self-attention, the keys and values of other pictures.

The reference pictures go through the network first and leave the keys and values of every self-attention in a bank;
then the picture of interest goes through the same network and attends to ``[own; bank]``. Nothing is added to the
network. DiffewS ("Unleashing the Potential of the Diffusion Model in Few-shot Semantic Segmentation", NeurIPS 2024)
shows it marked pictures this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from ..attention import Attention
from ..attention.attention import KeyValueHook
from ..backbones.dit import DiT
from ..backbones.pretrained import PretrainedTransformer
from ..backbones.pretrained.hooks import surviving_checkpoints
from .attention_exchange import intercepting, self_attentions

__all__ = ["KeyValueBank", "reference_attentions", "swap_halves"]

Entry = tuple[Tensor, Tensor]
"""Keys and values of one attention, each (B, H, M, d)."""


def reference_attentions(model: nn.Module) -> list[nn.Module]:
    """The self-attentions of a network that see the whole picture: those of a bank.

    Args:
        model: the native ``DiT``, a :class:`PretrainedTransformer` whose text has an attention of its own, or any
            diffusers network of ``BasicTransformerBlock`` (``UNet2DConditionModel``).

    Raises:
        ValueError: it has none, or text shares its attention.
    """
    found: list[nn.Module]
    if isinstance(model, DiT):
        found = [block.attn for block in model.blocks if block.window_size is None]
    elif isinstance(model, PretrainedTransformer):
        if model.text_order is not None:
            raise ValueError(
                f"{type(model.transformer).__name__} has text and picture in one attention; "
                "show it other pictures with forward_groups"
            )
        found = self_attentions(model)
    else:
        found = [block.attn1 for block in model.modules() if isinstance(block, BasicTransformerBlock)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no self-attention over the whole picture, so no bank of keys and values"
        )
    return found


def swap_halves(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """A hook by which the first half of a batch looks at the second half instead of itself, and vice versa."""
    half = key.shape[0] // 2
    return key.roll(half, dims=0), value.roll(half, dims=0)


class KeyValueBank:
    """Keys and values of reference pictures, attention by attention.

    ``with bank.writing(shots): model(references)`` runs the references as they are and keeps their keys and values;
    ``with bank.reading(): model(pictures)`` lets the pictures see them. An empty bank changes nothing, bit for bit.
    Gradients flow through the bank into the references' pass, also under gradient checkpointing; the backward pass
    belongs behind the ``with``.

    Args:
        model: see :func:`reference_attentions`.
        layers: which of its attentions take part, counted from 0; None is all.

    Raises:
        ValueError: the network has no such attention.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int] | None = None) -> None:
        found = reference_attentions(model)
        unknown = [layer for layer in layers or () if not 0 <= layer < len(found)]
        if unknown:
            raise ValueError(
                f"layer {unknown[0]}: the network has {len(found)} attentions, 0 to {len(found) - 1}"
            )
        self._model = model
        self._attentions = found if layers is None else [found[layer] for layer in layers]
        self._entries: list[list[Entry]] = [[] for _ in self._attentions]

    def __len__(self) -> int:
        """References for each picture of a batch, whatever their sizes: tokens in the first attention."""
        return sum(key.shape[2] for key, _ in self._entries[0])

    def clear(self) -> None:
        """Forget everything."""
        self._entries = [[] for _ in self._attentions]

    @contextmanager
    def writing(self, shots: int = 1) -> Iterator[None]:
        """Keep the keys and values of the run inside, beside those that are there already.

        Args:
            shots: the batch holds this many references for each picture, (B * shots, ...), those of one picture next
                to each other; 1 for references of one picture each.

        Raises:
            ValueError: the batch does not divide by ``shots``.
        """
        found: dict[int, Entry] = {}

        def keep(index: int, key: Tensor, value: Tensor) -> Entry:
            if key.shape[0] % shots:
                raise ValueError(f"a batch of {key.shape[0]} references is not {shots} for each picture")
            if index not in found:  # the backward pass of checkpointing comes here again
                # Contiguous, so that what they are views of can go.
                found[index] = (_in_a_row(key, shots), _in_a_row(value, shots))
            return key, value

        with self._installed(keep):
            yield
        if len(found) != len(self._attentions):
            raise ValueError("the network was not run, or not all of its attentions took part")
        for index, entry in found.items():
            self._entries[index].append(entry)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the run inside see what is kept: for each picture of the batch its own, or for all the same.

        Raises:
            ValueError: the references are for another number of pictures.
        """
        if not len(self):
            yield
            return
        entries = [list(kept) for kept in self._entries]  # as they are now, for the backward pass too

        def show(index: int, key: Tensor, value: Tensor) -> Entry:
            keys, values = zip(*entries[index], strict=True)
            return _joined(key, keys), _joined(value, values)

        with self._installed(show):
            yield

    @contextmanager
    def swapping(self) -> Iterator[None]:
        """Let each half of the batch inside see the other half in place of itself (the interaction of DiffDIS)."""
        with self._installed(lambda index, key, value: swap_halves(key, value)):
            yield

    @contextmanager
    def _installed(self, change: Callable[[int, Tensor, Tensor], Entry]) -> Iterator[None]:
        """Send the keys and values of every attention through ``change``, also when checkpoints are recomputed."""
        active = False

        @contextmanager
        def context() -> Iterator[None]:
            nonlocal active
            if active:
                yield
                return
            active = True
            try:
                with ExitStack() as hooks:
                    for index, attention in enumerate(self._attentions):
                        hooks.enter_context(_changing(attention, _bind(change, index)))
                    yield
            finally:
                active = False

        with ExitStack() as stack:
            for module in self._model.modules():
                if getattr(module, "_gradient_checkpointing_func", None) is not None:
                    stack.enter_context(surviving_checkpoints(module, context))  # type: ignore[arg-type]
            stack.enter_context(context())
            yield


def _bind(change: Callable[[int, Tensor, Tensor], Entry], index: int) -> KeyValueHook:
    return lambda key, value: change(index, key, value)


@contextmanager
def _changing(attention: nn.Module, hook: KeyValueHook) -> Iterator[None]:
    """Send the keys and values of one attention through a hook."""
    if not isinstance(attention, Attention):

        def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return F.scaled_dot_product_attention(query, *hook(key, value), *args, **kwargs)

        with intercepting(attention, attend):
            yield
        return

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        inner = kwargs.get("key_value_hook")
        kwargs["key_value_hook"] = hook if inner is None else lambda key, value: hook(*inner(key, value))
        return args, kwargs

    handle = attention.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _in_a_row(entry: Tensor, shots: int) -> Tensor:
    """(B * shots, H, M, d) -> (B, H, shots * M, d): the references of one picture as one sequence."""
    return entry.unflatten(0, (-1, shots)).transpose(1, 2).flatten(2, 3).contiguous()


def _joined(own: Tensor, others: Sequence[Tensor]) -> Tensor:
    batch = own.shape[0]
    for other in others:
        if other.shape[0] not in (1, batch):
            raise ValueError(
                f"the bank holds references for {other.shape[0]} pictures, and the batch has {batch}"
            )
    return torch.cat([own, *(other.to(own.dtype).expand(batch, -1, -1, -1) for other in others)], dim=2)
