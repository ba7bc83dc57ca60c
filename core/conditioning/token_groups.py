"""Condition as groups of tokens in one sequence.

The sequence is a list of groups (a noisy picture, a garment, layers, reference frames). Each has its own place,
timestep, type embedding and adapter; a table says which group may look at which; the caller says which outputs it
wants. In-context try-on, control pictures and layer decomposition are all this one mechanism: OminiControl (arXiv
2411.15098), EasyControl (arXiv 2503.07027), Qwen-Image-Layered (arXiv 2512.15603).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..adapters.group import TokenLayout, token_layout
from ..attention.attention import KeyValueHook
from ..attention.masks import group_mask
from ..backbones.dit import DiT
from ..backbones.embedding import sincos_positions
from ..backbones.pretrained import PretrainedTransformer
from ..probing.calls import beside, call_of
from .key_value_cache import KeyValueCache, Recorder, append_hooks
from .positions import Position

__all__ = [
    "Looks",
    "TokenGroup",
    "allowed_table",
    "forward_groups",
    "label_collisions",
    "only_itself",
    "separate",
]

Looks = Mapping[str, Collection[str]]
"""Which groups a group may look at, by name. A group without an entry looks at all."""


@dataclass
class TokenGroup:
    """A run of tokens that share their origin.

    Give ``picture``, which the model's own patch embedding reads, or ``tokens`` that something else embedded.

    Attributes:
        name: How tables and outputs refer to it.
        picture: (B, C, *spatial), C the model's input channels.
        tokens: (B, N, D).
        grid: Tokens per axis where ``tokens`` lie on a grid; without it they have no place (a text).
        timestep: (B,) or one number, as the model takes it. A clean condition keeps one, so that it can be cached.
        position: Where the grid stands.
        position_ids: (N, 1 + A) instead, group coordinate first: for kept tokens of a sparse condition, for instance.
        type_embedding: (D,) or (B, D), added to the tokens.
        adapter: Name of the group LoRA that acts on these tokens.
        guidance: The scale that a guidance-distilled transformer (FLUX.1-dev) reads with these tokens; None is that of
            the call. Nothing to a model that reads none.
    """

    name: str
    picture: Tensor | None = None
    tokens: Tensor | None = None
    grid: tuple[int, ...] | None = None
    timestep: Tensor | float = 0.0
    position: Position = field(default_factory=Position)
    position_ids: Tensor | None = None
    type_embedding: Tensor | None = None
    adapter: str | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if (self.picture is None) == (self.tokens is None):
            raise ValueError(f"group {self.name!r}: give either a picture or tokens")


def only_itself(*names: str) -> dict[str, tuple[str, ...]]:
    """The table of EasyControl: each of these groups looks at itself alone, so its features stay constant.

    Everything else looks at everything, these groups included.
    """
    return {name: (name,) for name in names}


def separate(names: Sequence[str], conditions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The table OminiControl trains with: conditions look at everything but each other."""
    return {c: tuple(n for n in names if n == c or n not in conditions) for c in conditions}


def allowed_table(names: Sequence[str], looks: Looks | None = None) -> NDArray[np.bool_]:
    """(G, G): row i may look at column j.

    An array and not a tensor: its values decide what is run, also where tensors have shapes alone.
    """
    looks = looks or {}
    unknown = (set(looks) | {n for row in looks.values() for n in row}) - set(names)
    if unknown:
        raise ValueError(f"looks names {', '.join(sorted(unknown))}; the groups are {', '.join(names)}")
    table = np.array([[other in looks.get(name, names) for other in names] for name in names], bool)
    blind = [name for name, row in zip(names, table, strict=True) if not row.any()]
    if blind:
        raise ValueError(f"group {', '.join(blind)} may look at nothing: attention needs at least one group")
    return table


@dataclass
class _Embedded:
    """A group on the model's terms: tokens (B, N, D), their grid, ids (N, A) and timestep (B,)."""

    tokens: Tensor
    grid: tuple[int, ...] | None
    ids: Tensor | None
    timestep: Tensor


def position_ids(dit: DiT, group: TokenGroup) -> Tensor | None:
    """(N, 1 + A) of a group, or None for tokens without a place."""
    if group.position_ids is not None:
        return group.position_ids
    grid = dit.grid_of(group.picture) if group.picture is not None else group.grid
    return group.position.ids(grid) if grid is not None else None


def label_collisions(dit: DiT, groups: Sequence[TokenGroup]) -> dict[tuple[str, str], int]:
    """How many tokens of each pair of groups stand at the same place, as far as the model can tell.

    Meant for a condition that is aligned with the target; a mistake for one that is not, unless a type embedding tells
    the two apart. Pairs that share nothing are left out.
    """
    axis = 0 if _has_group_axis(dit) else 1
    labels = {}
    for group in groups:
        ids = position_ids(dit, group)
        labels[group.name] = set() if ids is None else {tuple(row) for row in ids[:, axis:].tolist()}
    shared = {(a, b): len(labels[a] & labels[b]) for a, b in combinations(labels, 2)}
    return {pair: count for pair, count in shared.items() if count}


def forward_groups(
    dit: DiT | PretrainedTransformer,
    groups: Sequence[TokenGroup],
    looks: Looks | None = None,
    outputs: Sequence[str] = ("target",),
    class_labels: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    pooled_projections: Tensor | None = None,
    residuals: Mapping[str, Sequence[Tensor | None]] | None = None,
    cache: KeyValueCache | None = None,
    **condition: Any,
) -> dict[str, Tensor]:
    """Run a transformer over several groups of tokens.

    With one group it is ``dit(...)`` bit for bit. Groups that only look at themselves and are not asked for can be
    cached over the sampling steps: pass the same ``cache`` at every step, and they are run once, exactly.

    Args:
        dit: The native DiT, or a :class:`PretrainedTransformer` (see ``pretrained_groups`` for what each can do).
        groups: In the order of the sequence.
        looks: Who may look at whom; None lets all look at all.
        outputs: Names of the groups whose prediction is wanted.
        class_labels: As in :class:`DiT`, for all groups.
        encoder_hidden_states: Text that all groups see by cross-attention.
        encoder_attention_mask: As in :class:`DiT`.
        pooled_projections: As in :class:`DiT`.
        residuals: By group name, what is added to its tokens behind each block (:class:`SideBranch`).
        cache: State of one sampling run.
        **condition: What else the ``forward`` of a :class:`PretrainedTransformer` takes.

    Returns:
        (B, out_channels, *spatial) by name.

    Raises:
        ValueError: groups, table and model do not fit each other.
    """
    if isinstance(dit, PretrainedTransformer):
        from .pretrained_groups import forward_pretrained_groups

        named = {
            "class_labels": class_labels,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "pooled_projections": pooled_projections,
        }
        condition |= {name: value for name, value in named.items() if value is not None}
        return forward_pretrained_groups(dit, groups, looks, outputs, residuals, cache, **condition)
    if condition:
        raise TypeError(f"the native DiT takes no {', '.join(condition)}")
    names = [group.name for group in groups]
    _check(dit, groups, outputs, residuals)
    table = allowed_table(names, looks)
    context = dit.context_embed(encoder_hidden_states) if encoder_hidden_states is not None else None
    extra = (class_labels, pooled_projections)
    cached: dict[str, list[tuple[Tensor, Tensor]]] = {}
    if cache is not None:
        if dit.training or torch.is_grad_enabled():
            raise ValueError(
                "a KeyValueCache is for sampling: use torch.no_grad() and model.eval(), or cache=None"
            )
        shared = (*extra, encoder_hidden_states, encoder_attention_mask)
        for index, group in enumerate(groups):
            alone = table[index].sum() == 1 and bool(table[index, index])
            if not alone or group.name in outputs:
                continue
            if residuals and group.name in residuals:
                raise ValueError(
                    f"group {group.name!r}: residuals change with the step, so it cannot be cached"
                )
            entry = cache.get(dit, group, shared)
            if entry is None:
                recorder = Recorder(len(dit.blocks))
                with beside(dit):
                    _run(dit, [group], None, extra, context, encoder_attention_mask, recorder.hooks)
                entry = cache.put(dit, group, shared, recorder.entries)
            cached[group.name] = entry
    active = [group for group in groups if group.name not in cached]
    rows = [names.index(group.name) for group in active]
    columns = rows + [names.index(name) for name in cached]
    sizes = [entry[0][0].shape[2] for entry in cached.values()]
    hooks = append_hooks(list(cached.values())) if cached else None
    answer = next(group for group in groups if group.name in outputs)
    with call_of(
        dit,
        hidden_states=answer.picture,
        timestep=answer.timestep,
        block_controlnet_hidden_states=residuals,
    ):
        tokens, grids, conditioning = _run(
            dit,
            active,
            table[rows][:, columns],
            extra,
            context,
            encoder_attention_mask,
            hooks,
            sizes,
            residuals,
        )
    samples = {}
    for index, (group, part, grid) in enumerate(zip(active, tokens, grids, strict=True)):
        if group.name in outputs:
            if grid is None:
                raise ValueError(f"group {group.name!r} has no grid, so it cannot be an output")
            with token_layout(TokenLayout((group.adapter,), (part.shape[1],))):
                samples[group.name] = dit.head(part, conditioning[:, index], grid)
    return {name: samples[name] for name in outputs}


def _run(
    dit: DiT,
    groups: Sequence[TokenGroup],
    table: NDArray[np.bool_] | None,
    extra: tuple[Tensor | None, Tensor | None],
    context: Tensor | None,
    context_mask: Tensor | None,
    hooks: Sequence[KeyValueHook] | None,
    cached_sizes: Sequence[int] = (),
    residuals: Mapping[str, Sequence[Tensor | None]] | None = None,
) -> tuple[list[Tensor], list[tuple[int, ...] | None], Tensor]:
    """The blocks over some groups: their tokens, grids and condition vectors (B, G, D)."""
    embedded = [_embed(dit, group) for group in groups]
    sizes = [e.tokens.shape[1] for e in embedded]
    x = (
        torch.cat([e.tokens for e in embedded], dim=1) if len(embedded) > 1 else embedded[0].tokens
    )  # (B, N, D)
    layout = TokenLayout(tuple(group.adapter for group in groups), tuple(sizes))
    owner = None
    if len(groups) == 1:
        c = dit.embed_condition(embedded[0].timestep, *extra)  # (B, D)
        vectors = c[:, None]
    else:
        c = vectors = dit.embed_condition(
            torch.stack([e.timestep for e in embedded], dim=1), *extra
        )  # (B, G, D)
        owner = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(x.device)
    rope = None
    if dit.rotary is not None:
        axes = len(dit.rotary.axes_dim)
        ids = [x.new_zeros(s, axes) if e.ids is None else e.ids for s, e in zip(sizes, embedded, strict=True)]
        rope = dit.rotary(torch.cat([part[:, -axes:].to(x.device) for part in ids]))
    mask = None
    if table is not None and not table.all():
        every = [*sizes, *cached_sizes]
        square = np.ones((len(every), len(every)), bool)
        square[: len(sizes)] = table
        mask = group_mask(every, torch.from_numpy(square))[: sum(sizes)].to(x.device)  # (N, N + cached)
    _check_windows(dit, embedded, mask, cached_sizes)
    grids = [e.grid for e in embedded]
    with token_layout(layout):
        conditioning = dit.block_conditioning(c)
    for index, block in enumerate(dit.blocks):

        def call(hidden: Tensor, block: torch.nn.Module = block, index: int = index) -> Tensor:
            with token_layout(layout):  # inside, because the backward pass may call it again
                return block(
                    hidden,
                    conditioning,
                    context,
                    context_mask,
                    rope=rope,
                    attention_mask=mask,
                    grids=grids,
                    token_group=owner,
                    key_value_hook=hooks[index] if hooks is not None else None,
                )

        x = dit.run_block(call, x)
        if residuals:
            x = _add_residuals(x, groups, sizes, residuals, index)
    return list(x.split(sizes, dim=1)), grids, vectors


def _embed(dit: DiT, group: TokenGroup) -> _Embedded:
    """Tokens with additive positions and type embedding."""
    ids = position_ids(dit, group)
    if group.picture is not None:
        grid: tuple[int, ...] | None = dit.grid_of(group.picture)
        at_home = not group.position.moves and group.position_ids is None
        tokens = dit.embed_tokens(group.picture) if at_home else dit.patch_embed(group.picture)
    else:
        assert group.tokens is not None
        tokens, grid, at_home = group.tokens, group.grid, False
    if ids is not None and len(ids) != tokens.shape[1]:
        raise ValueError(f"group {group.name!r}: {len(ids)} position ids for {tokens.shape[1]} tokens")
    if dit.pos_embed is not None and ids is not None and not at_home:
        tokens = tokens + sincos_positions(ids[:, 1:], tokens.shape[-1]).to(tokens)
    if group.type_embedding is not None:
        kind = group.type_embedding
        tokens = tokens + (kind if kind.ndim == 1 else kind[:, None]).to(tokens.dtype)
    timestep = torch.as_tensor(group.timestep, device=tokens.device)
    return _Embedded(tokens, grid, ids, timestep.expand(tokens.shape[0]))


def _add_residuals(
    x: Tensor,
    groups: Sequence[TokenGroup],
    sizes: Sequence[int],
    residuals: Mapping[str, Sequence[Tensor | None]],
    index: int,
) -> Tensor:
    parts = list(x.split(list(sizes), dim=1))
    for place, group in enumerate(groups):
        residual = residuals[group.name][index] if group.name in residuals else None
        if residual is not None:
            parts[place] = parts[place] + residual
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _has_group_axis(dit: DiT) -> bool:
    return dit.rotary is not None and len(dit.rotary.axes_dim) == len(dit.patch_size) + 1


def _check(
    dit: DiT,
    groups: Sequence[TokenGroup],
    outputs: Sequence[str],
    residuals: Mapping[str, Sequence[Tensor | None]] | None,
) -> None:
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise ValueError(f"two groups have the same name: {', '.join(names)}")
    for what, wanted in (("outputs", outputs), ("residuals", residuals or {})):
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(f"{what} names {', '.join(unknown)}; the groups are {', '.join(names)}")
    for name, given in (residuals or {}).items():
        if len(given) != len(dit.blocks):
            raise ValueError(
                f"residuals of {name!r}: {len(given)} for {len(dit.blocks)} blocks; give one each, or None"
            )
    for group in groups:
        if group.position.group and not _has_group_axis(dit):
            raise ValueError(
                f"group {group.name!r}: this model has no group axis; give it one with rope_axes_dim, or use an offset"
            )
        if (
            (group.position.moves or group.position_ids is not None)
            and dit.rotary is None
            and dit.pos_embed is None
        ):
            raise ValueError(f"group {group.name!r}: this model has no positions to move")
    if sum(group.picture is None and group.grid is None for group in groups) > 1 and dit.config.conv_kernel:
        raise ValueError("convolutions in the MLP leave at most one group without a grid")


def _check_windows(
    dit: DiT, embedded: Sequence[_Embedded], mask: Tensor | None, cached_sizes: Sequence[int]
) -> None:
    if all(getattr(block, "window_size", None) is None for block in dit.blocks):
        return
    if mask is not None or cached_sizes or len({e.grid for e in embedded}) > 1 or embedded[0].grid is None:
        raise ValueError(
            "window attention takes groups on one grid that all look at each other, without a cache; "
            "use a model with global attention"
        )
