"""Keys and values passed between separate runs of one diffusers transformer.

Two runs over two groups of tokens are one run over both, if the second sees in each attention the first's keys and
values besides its own: everything else in these transformers works on each token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..backbones.pretrained import PretrainedTransformer
from .key_value_cache import KeyValues

__all__ = ["AttentionExchange", "intercepting", "self_attentions"]


def self_attentions(model: PretrainedTransformer) -> list[nn.Module]:
    """The attentions among the latents' tokens, in the order they run."""
    found = [getattr(block, name, None) for block in model.blocks for name in model.self_attention]
    return [attention for attention in found if attention is not None]


class AttentionExchange:
    """Writes down the keys and values of one run, and shows it those of others.

    Args:
        model: The transformer.
        tokens: Of the latents, as many as the run has; what else stands in an attention is text.
        others: Keys and values that the latents and the text see besides their own.
        sees_text: False hides the text from the latents, where it shares their attention.
        record: Whether to write down.

    Raises:
        ValueError: the transformer has no such attention.
    """

    def __init__(
        self,
        model: PretrainedTransformer,
        tokens: int,
        others: Sequence[KeyValues] = (),
        sees_text: bool = True,
        record: bool = True,
    ) -> None:
        self.model, self.tokens, self.others = model, tokens, others
        self.sees_text, self.record = sees_text, record
        self._attentions = self_attentions(model)
        if not self._attentions:
            raise ValueError(
                f"{type(model.transformer).__name__} has no attention whose keys and values another group could see; "
                "place the groups beside each other and let all look at all"
            )
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def entries(self) -> KeyValues:
        """What was written down, attention by attention."""
        return [self._found[index] for index in range(len(self._attentions))]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take part in every call of the model's attentions."""
        with ExitStack() as stack:
            for index, attention in enumerate(self._attentions):
                stack.enter_context(intercepting(attention, partial(self.attend, index)))
            yield

    def attend(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Torch's attention over (B, heads, tokens, width) with what the others left here."""
        own = key.shape[2]
        text = own - self.tokens
        latents = slice(text, own) if self.model.text_order == "before" else slice(0, self.tokens)
        if self.record:  # a copy, so that the text's memory goes
            self._found[index] = (key[:, :, latents].contiguous(), value[:, :, latents].contiguous())
        if self.others:
            keys, values = zip(*(entries[index] for entries in self.others), strict=True)
            key, value = torch.cat([key, *keys], dim=2), torch.cat([value, *values], dim=2)
        more = key.shape[2] - own
        if attn_mask is not None and more:
            attn_mask = F.pad(attn_mask, (0, more), value=True if attn_mask.dtype == torch.bool else 0.0)
        if text and not self.sees_text:
            seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            hidden = slice(0, text) if latents.start else slice(self.tokens, own)
            seen[latents, hidden] = False
            if attn_mask is None:
                attn_mask = seen
            elif attn_mask.dtype == torch.bool:
                attn_mask = attn_mask & seen
            else:
                attn_mask = attn_mask.masked_fill(~seen, float("-inf"))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **kwargs)


@contextmanager
def intercepting(attention: nn.Module, attend: Callable[..., Tensor]) -> Iterator[None]:
    """Let a diffusers attention call ``attend`` in place of torch's own attention function.

    Args:
        attention: the module; its processor must be one that calls torch's function.
        attend: takes what ``torch.nn.functional.scaled_dot_product_attention`` takes, (B, heads, tokens, width).

    Raises:
        ValueError: on the call, if the attention is computed by something else.
    """
    running: list[_Intercept] = []

    def before(_module: nn.Module, _inputs: Any) -> None:
        running.append(_Intercept(attend))
        running[-1].__enter__()

    def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
        intercept = running.pop()
        intercept.__exit__(None, None, None)
        if output is not None and not intercept.called:
            raise ValueError(
                f"{type(attention).__name__} is computed by a backend that other tokens cannot be shown to; "
                'use set_attention_backend("native")'
            )

    handles = (
        attention.register_forward_pre_hook(before),
        attention.register_forward_hook(after, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Intercept(TorchFunctionMode):
    """Sends torch's attention function elsewhere."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend, self.called = attend, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.called = True
        return self.attend(*args, **(kwargs or {}))
