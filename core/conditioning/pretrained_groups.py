"""Token groups on diffusers transformers, which are used as they are.

Groups that look only at groups before them are run one after the other, each with its own size, place, timestep and
adapter; later ones are shown the keys and values of earlier ones (EasyControl, arXiv 2503.07027). Groups that look at
each other are one sequence: their latents are laid one behind the other, as in-context methods do; of FLUX each may
have its own timestep and adapter there too, and there may be pairs that do not look at each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..adapters.group import TokenLayout, token_layout
from ..backbones.pretrained import PretrainedTransformer
from ..backbones.pretrained.hooks import answering, surviving_checkpoints
from .attention_exchange import AttentionExchange
from .channels import find_input_layer
from .key_value_cache import KeyValueCache, KeyValues
from .positions import Position
from .pretrained_joint import JointSequence, can_join
from .token_groups import Looks, TokenGroup, allowed_table

__all__ = ["forward_pretrained_groups"]

TEXT = "text"


def forward_pretrained_groups(
    model: PretrainedTransformer,
    groups: Sequence[TokenGroup],
    looks: Looks | None = None,
    outputs: Sequence[str] = ("target",),
    residuals: Mapping[str, Sequence[Tensor | None]] | None = None,
    cache: KeyValueCache | None = None,
    **condition: Any,
) -> dict[str, Tensor]:
    """What :func:`forward_groups` is for a diffusers transformer.

    Where text shares the latents' attention, ``text`` is a name in ``looks``: a group with an entry sees the text only
    if it is in it. Where text has an attention of its own, every group reads it. A group with an adapter
    (``inject_group(model.transformer, ...)``) is run with it whole, its copy of the text included; in one sequence, the
    text goes with the first of ``outputs``.

    Args:
        model: The adapter of the transformer.
        groups: In the order of the sequence; each with a picture (B, C, *spatial), latents.
        looks: Who may look at whom; None lets all look at all.
        outputs: Names of the groups whose prediction is wanted.
        residuals: By group name, what is added to its tokens behind each block.
        cache: State of one sampling run, for groups that only look at themselves.
        **condition: Of the family's ``forward``, for all groups.

    Returns:
        (B, latent channels, *spatial) by name.

    Raises:
        ValueError: groups, table and model do not fit each other; or the family cannot do what is asked.
    """
    names = [group.name for group in groups]
    _check(model, groups, outputs, residuals, cache)
    whole = allowed_table([*names, TEXT], looks)
    table = whole[: len(names)]
    between = table[:, : len(names)]
    order = _order(between)
    if order is not None:
        return _in_turn(model, groups, table, order, outputs, residuals or {}, cache, condition)
    if not (whole.all() or can_join(model)) or residuals or cache is not None:
        raise ValueError(
            f"{_name(model)}: groups that look at each other are one sequence: all must look at all, without "
            "residuals and cache; or let conditions look only at themselves (only_itself)"
        )
    if can_join(model) and not (whole.all() and _are_alike(groups)):
        samples = _jointly(model, groups, whole, names.index(outputs[0]), condition)
    else:
        samples = _together(model, groups, condition)
    return {name: samples[name] for name in outputs}


def _in_turn(
    model: PretrainedTransformer,
    groups: Sequence[TokenGroup],
    table: NDArray[np.bool_],
    order: Sequence[int],
    outputs: Sequence[str],
    residuals: Mapping[str, Sequence[Tensor | None]],
    cache: KeyValueCache | None,
    condition: dict[str, Any],
) -> dict[str, Tensor]:
    """One run per group; those that nobody needs are left out."""
    needed = _needed(table, [group.name in outputs for group in groups])
    found: dict[int, KeyValues] = {}
    samples: dict[str, Tensor] = {}
    for index in order:
        group = groups[index]
        if not needed[index]:
            continue
        sources = [i for i in range(len(groups)) if table[index, i] and i != index]
        cached = cache is not None and not sources and group.name not in outputs
        if cached:
            if group.name in residuals:
                raise ValueError(
                    f"group {group.name!r}: residuals change with the step, so it cannot be cached"
                )
            shared = [bool(table[index, -1]), *condition, *condition.values()]
            entry = cache.get(model, group, shared)  # type: ignore[union-attr]
            if entry is not None:
                found[index] = entry
                continue
        shown = cached or any(needed[i] and table[i, index] for i in range(len(groups)) if i != index)
        exchange = None
        if shown or sources or not table[index, -1]:
            others = [found[i] for i in sources]
            exchange = AttentionExchange(model, _tokens(model, group), others, bool(table[index, -1]), shown)
        sample = _run(model, group, exchange, residuals.get(group.name), condition)
        if shown:
            found[index] = exchange.entries  # type: ignore[union-attr]
        if cached:
            cache.put(model, group, shared, found[index])  # type: ignore[union-attr]
        if group.name in outputs:
            samples[group.name] = sample
    return {name: samples[name] for name in outputs}


def _run(
    model: PretrainedTransformer,
    group: TokenGroup,
    exchange: AttentionExchange | None,
    residuals: Sequence[Tensor | None] | None,
    condition: dict[str, Any],
) -> Tensor:
    picture = _picture(group)
    ids = group.position_ids
    if ids is None and (group.position.moves or group.position.group):
        ids = group.position.ids(model.grid_of(picture))
    if ids is not None and not model.takes_position_ids:
        raise ValueError(
            f"group {group.name!r}: {_name(model)} has a table of positions for one picture; leave it on the target's "
            "places, or put it beside the target and let all groups look at all"
        )
    given = condition | ({} if ids is None else {"position_ids": ids}) | _guidance(model, group)

    @contextmanager
    def context() -> Iterator[None]:
        shared = exchange.installed() if exchange is not None else nullcontext()
        with token_layout(TokenLayout((group.adapter,), None)), shared:
            yield

    with surviving_checkpoints(model.transformer, context), _typed(model, group):
        return model(picture, _timestep(group), block_controlnet_hidden_states=residuals, **given).sample


@contextmanager
def _typed(model: PretrainedTransformer, group: TokenGroup) -> Iterator[None]:
    """Add the type embedding behind the input layer."""
    kind = group.type_embedding
    if kind is None:
        yield
        return
    layer = model.transformer.get_submodule(find_input_layer(model.transformer))

    def add(tokens: Tensor) -> Tensor:
        value = kind.to(tokens.dtype)
        if value.ndim == 2:  # some layers see frames as samples
            value = value.repeat_interleave(tokens.shape[0] // value.shape[0], dim=0)
        if isinstance(layer, nn.Linear):  # (B, N, D)
            return tokens + (value if value.ndim == 1 else value[:, None])
        return tokens + value.view(*value.shape, *[1] * (tokens.ndim - 2))  # (B, D, *grid)

    with answering(layer, add):
        yield


def _are_alike(groups: Sequence[TokenGroup]) -> bool:
    """Whether nothing but their pictures and places tells the groups apart."""
    first = _timestep(groups[0])
    return all(
        group.adapter is None
        and group.type_embedding is None
        and group.guidance == groups[0].guidance
        and torch.equal(_timestep(group), first)
        for group in groups
    )


def _jointly(
    model: PretrainedTransformer,
    groups: Sequence[TokenGroup],
    table: NDArray[np.bool_],
    lead: int,
    condition: Mapping[str, Any],
) -> dict[str, Tensor]:
    """One run over groups that have their own times and adapters, with a mask."""
    axis, given = _layout(model, groups)
    rows = [len(groups), *range(len(groups))]  # the text comes first
    sequence = JointSequence(
        model,
        groups,
        [_tokens(model, group) for group in groups],
        [_timestep(group) for group in groups],
        table[np.ix_(rows, rows)],
        lead,
    )
    pictures = [_picture(group) for group in groups]
    sample = sequence.run(torch.cat(pictures, dim=axis), {**condition, **given})
    return _parts(groups, sample, axis)


def _parts(groups: Sequence[TokenGroup], sample: Tensor, axis: int) -> dict[str, Tensor]:
    sizes = [_picture(group).shape[axis] for group in groups]
    return {group.name: part for group, part in zip(groups, sample.split(sizes, dim=axis), strict=True)}


def _guidance(model: PretrainedTransformer, group: TokenGroup) -> dict[str, float]:
    """The group's scale, for a model that reads one."""
    reads = group.guidance is not None and model.config.get("guidance_embeds")
    return {"guidance_scale": group.guidance} if reads else {}  # type: ignore[dict-item]


def _together(
    model: PretrainedTransformer, groups: Sequence[TokenGroup], condition: Mapping[str, Any]
) -> dict[str, Tensor]:
    """One run over the groups' latents laid one behind the other."""
    for group in groups:
        if group.adapter is not None or group.type_embedding is not None:
            raise ValueError(
                f"group {group.name!r}: in one sequence with others it has no adapter or type embedding of its own; "
                "let conditions look only at themselves (only_itself)"
            )
    pictures = [_picture(group) for group in groups]
    axis, given = _layout(model, groups)
    guidance = [_guidance(model, group) for group in groups]
    if any(other != guidance[0] for other in guidance):
        raise ValueError(
            f"{_name(model)} has one guidance for all tokens of a sequence: give groups that see each other the same"
        )
    times = [_timestep(group) for group in groups]
    timestep = times[0]
    if any(not torch.equal(timestep, other) for other in times):
        if not model.timestep_per_token:
            raise ValueError(
                f"{_name(model)} has one timestep for all tokens of a sequence: give groups that see each other the "
                "same, or let conditions look only at themselves (only_itself)"
            )
        per_token = [t[:, None].expand(-1, _tokens(model, g)) for t, g in zip(times, groups, strict=True)]
        timestep = torch.cat(per_token, dim=1)  # (B, tokens)
    options: dict[str, Any] = {**condition, **given, **guidance[0]}
    return _parts(groups, model(torch.cat(pictures, dim=axis), timestep, **options).sample, axis)


def _layout(model: PretrainedTransformer, groups: Sequence[TokenGroup]) -> tuple[int, dict[str, Tensor]]:
    """Axis of the latents along which groups are laid, and the position ids, where the family has them."""
    grids = [model.grid_of(_picture(group)) for group in groups]
    if model.takes_position_ids:
        axis = 2
        ids = [
            group.position.ids(grid) if group.position_ids is None else group.position_ids
            for group, grid in zip(groups, grids, strict=True)
        ]
        given = {"position_ids": torch.cat(ids)}
    else:
        axes = [a for a in (-1, -2) if _is_row(groups, grids, a)]
        if not axes:
            raise ValueError(
                f"{_name(model)} has a table of positions for one picture: place each group beside the one before "
                "(Position.beside), or let conditions look only at themselves (only_itself)"
            )
        axis, given = axes[0], {}
    shapes = [list(_picture(group).shape) for group in groups]
    rest = [[size for i, size in enumerate(shape) if i != axis % len(shape)] for shape in shapes]
    if any(other != rest[0] for other in rest) or (model.video and len(shapes[0]) == 4):
        named = "frames" if model.video else "height" if axis in (2, -2) else "width"
        raise ValueError(
            f"{_name(model)} lays groups that see each other end to end along {named}, all else "
            f"the same; these are {shapes}"
        )
    return axis, given


def _is_row(groups: Sequence[TokenGroup], grids: Sequence[tuple[int, ...]], axis: int) -> bool:
    """Whether each group stands where the one before it ends."""
    end = 0
    for group, grid in zip(groups, grids, strict=True):
        offset = [0.0] * len(grid)
        offset[axis] = float(end)
        if group.position_ids is not None or not torch.equal(
            group.position.ids(grid), Position(offset=tuple(offset)).ids(grid)
        ):
            return False
        end += grid[axis]
    return True


def _order(between: NDArray[np.bool_]) -> list[int] | None:
    """An order in which every group looks only at itself and at groups before it; None if there is none."""
    left, order = list(range(len(between))), []
    while left:
        ready = [i for i in left if not any(between[i, j] for j in left if j != i)]
        if not ready:
            return None
        order += ready
        left = [i for i in left if i not in ready]
    return order


def _needed(table: NDArray[np.bool_], wanted: Sequence[bool]) -> list[bool]:
    """Groups that are wanted, or looked at by one that is needed."""
    needed = list(wanted)
    for _ in needed:
        needed = [
            own or any(other and bool(table[i, j]) for i, other in enumerate(needed))
            for j, own in enumerate(needed)
        ]
    return needed


def _tokens(model: PretrainedTransformer, group: TokenGroup) -> int:
    return math.prod(model.grid_of(_picture(group)))


def _picture(group: TokenGroup) -> Tensor:
    assert group.picture is not None  # _check has seen to it
    return group.picture


def _timestep(group: TokenGroup) -> Tensor:
    """One time for each sample, (B,)."""
    picture = _picture(group)
    return torch.as_tensor(group.timestep, device=picture.device).expand(picture.shape[0])


def _name(model: PretrainedTransformer) -> str:
    return type(model.transformer).__name__


def _check(
    model: PretrainedTransformer,
    groups: Sequence[TokenGroup],
    outputs: Sequence[str],
    residuals: Mapping[str, Any] | None,
    cache: KeyValueCache | None,
) -> None:
    names = [group.name for group in groups]
    if len(set(names)) != len(names) or TEXT in names:
        raise ValueError(f"two groups have the same name, or one is called {TEXT!r}: {', '.join(names)}")
    for what, wanted in (("outputs", outputs), ("residuals", residuals or {})):
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"{what} names {', '.join(unknown)}; the groups are {', '.join(names)}")
    if cache is not None and (model.training or torch.is_grad_enabled()):
        raise ValueError(
            "a KeyValueCache is for sampling: use torch.no_grad() and model.eval(), or cache=None"
        )
    for group in groups:
        if group.position.group and not model.group_axis:
            raise ValueError(f"group {group.name!r}: {_name(model)} has no group axis; use an offset")
        if group.picture is None:
            raise ValueError(f"group {group.name!r}: {_name(model)} embeds its tokens itself; give a picture")
