"""Groups that look at each other in one sequence of FLUX, each with its own time, guidance and adapter.

The blocks are diffusers' own and are called as they are. While the call lasts, their modulation answers a vector for
each token in place of one for each sample, the attentions get a mask by group, and layers with adapters are told whose
tokens they read: the scheme that OminiControl (arXiv 2411.15098) trains with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..adapters.group import TokenLayout, token_layout
from ..attention.masks import group_mask
from ..backbones.pretrained import PretrainedTransformer
from ..backbones.pretrained.flux import PretrainedFlux
from ..backbones.pretrained.hooks import answering, surviving_checkpoints
from .attention_exchange import intercepting, self_attentions
from .token_groups import TokenGroup

__all__ = ["JointSequence", "can_join"]


def can_join(model: PretrainedTransformer) -> bool:
    """Whether groups with their own times and adapters can see each other in one sequence of this model."""
    return isinstance(model, PretrainedFlux)


@dataclass
class JointSequence:
    """The text, then the groups, in one sequence.

    Attributes:
        model: FLUX.
        groups: In the order of the sequence.
        sizes: Tokens of each.
        times: (B,) of each.
        table: (1 + G, 1 + G), the text first: row i may look at column j.
        lead: Index of the group whose time, guidance and adapter the text has.
    """

    model: PretrainedTransformer
    groups: Sequence[TokenGroup]
    sizes: Sequence[int]
    times: Sequence[Tensor]
    table: NDArray[np.bool_]
    lead: int
    _vectors: list[Tensor] = field(default_factory=list)

    def run(self, latents: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The prediction for latents (B, C, H, W), which hold those of all groups.

        Args:
            latents: As the model takes them.
            condition: Of its ``forward``, position ids included.
        """
        text = int(condition["encoder_hidden_states"].shape[1])
        mask = None
        if not self.table.all():
            mask = group_mask([text, *self.sizes], torch.from_numpy(self.table)).to(latents.device)
        context = partial(self._installed, text, mask)
        with surviving_checkpoints(self.model.transformer, context):
            return self.model(latents, self.times[self.lead], **condition).sample

    @contextmanager
    def _installed(self, text: int, mask: Tensor | None) -> Iterator[None]:
        """Everything in place; also entered when gradient checkpointing calls a block again."""
        model = self.model.transformer
        adapters = [group.adapter for group in self.groups]
        spoken = self.groups[self.lead].adapter
        everything = TokenLayout((spoken, *adapters), (text, *self.sizes))
        indices = list(range(len(self.groups)))
        with ExitStack() as stack:

            def replace(module: nn.Module, forward: Callable[..., Any]) -> None:
                stack.enter_context(_answered_by(module, partial(forward, module.forward)))

            stack.enter_context(token_layout(TokenLayout(tuple(adapters), tuple(self.sizes))))
            stack.enter_context(answering(model.x_embedder, self._typed))
            replace(model.time_text_embed, self._embed)
            replace(model.norm_out, partial(self._modulate, indices, self.sizes))
            of_text = [model.context_embedder]
            for block in model.transformer_blocks:
                replace(block.norm1, partial(self._modulate, indices, self.sizes))
                attention = block.attn
                of_text += [block.norm1_context, block.ff_context, attention.to_add_out]
                of_text += [attention.add_q_proj, attention.add_k_proj, attention.add_v_proj]
            for module in of_text:
                replace(module, partial(_under, TokenLayout((spoken,), None)))
            for block in model.single_transformer_blocks:
                replace(block.norm, partial(self._modulate, [self.lead, *indices], [text, *self.sizes]))
                for module in (block.attn, block.proj_mlp, block.proj_out):
                    replace(module, partial(_under, everything))
            for attention in self_attentions(self.model) if mask is not None else ():
                stack.enter_context(intercepting(attention, partial(_masked, mask)))
            yield

    def _embed(self, original: Callable[..., Tensor], timestep: Tensor, *rest: Tensor) -> Tensor:
        """Condition vectors of all groups; the model is given that of the text."""
        self._vectors.clear()
        for group, time in zip(self.groups, self.times, strict=True):
            given = list(rest)  # [guidance,] pooled text
            if len(given) > 1 and group.guidance is not None:
                given[0] = torch.full_like(given[0], group.guidance) * 1000
            with token_layout(TokenLayout((group.adapter,), None)):
                self._vectors.append(original((time / 1000).to(timestep) * 1000, *given))
        return self._vectors[self.lead]

    def _modulate(
        self,
        indices: Sequence[int],
        sizes: Sequence[int],
        original: Callable[..., Any],
        tokens: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """A norm with modulation, part by part."""
        answers = []
        for index, part in zip(indices, tokens.split(list(sizes), dim=1), strict=True):
            vector = self._vectors[index]
            with token_layout(TokenLayout((self.groups[index].adapter,), None)):
                answers.append(original(part, emb=vector) if "emb" in kwargs else original(part, vector))
        if isinstance(answers[0], Tensor):
            return torch.cat(answers, dim=1)
        normed, *modulations = zip(*answers, strict=True)
        return torch.cat(normed, dim=1), *(_PerToken(parts, sizes) for parts in modulations)

    def _typed(self, tokens: Tensor) -> Tensor:
        """Add the groups' type embeddings behind the input layer."""
        if all(group.type_embedding is None for group in self.groups):
            return tokens
        parts = list(tokens.split(list(self.sizes), dim=1))
        for index, group in enumerate(self.groups):
            kind = group.type_embedding
            if kind is not None:
                parts[index] = parts[index] + (kind if kind.ndim == 1 else kind[:, None]).to(tokens.dtype)
        return torch.cat(parts, dim=1)


class _PerToken:
    """Modulation of each token, for a block that gives one per sample an axis for the tokens before it is used.

    Args:
        vectors: (B, D) of each part of the sequence.
        sizes: Tokens of each.
    """

    def __init__(self, vectors: Sequence[Tensor], sizes: Sequence[int]) -> None:
        parts = [vector[:, None].expand(-1, size, -1) for vector, size in zip(vectors, sizes, strict=True)]
        self._values = torch.cat(parts, dim=1)  # (B, N, D)

    def unsqueeze(self, _dim: int) -> Tensor:
        return self._values

    def __getitem__(self, _index: Any) -> Tensor:
        return self._values


def _under(layout: TokenLayout, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with token_layout(layout):
        return original(*args, **kwargs)


def _masked(mask: Tensor, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, **{**kwargs, "attn_mask": mask})


@contextmanager
def _answered_by(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another ``forward`` for one module; whatever stood there before comes back."""
    before = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before  # type: ignore[method-assign]
