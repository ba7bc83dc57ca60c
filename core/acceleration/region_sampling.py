"""Running a transformer on part of its tokens: gathered behind the positions, scattered in front of the output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import DiT
from ..backbones.dit import DiTBlock
from ..diffusion import Denoise
from ..errors import PolyditError
from .attached import ONE_STEP, Attached
from .blocks import find_blocks
from .plan import Plan
from .regions import RAS, Selection
from .report import Report
from .sites import bind

__all__ = ["RegionHandle"]

FAMILIES: dict[str, tuple[tuple[str, ...], str]] = {
    "SD3Transformer2DModel": (("attn", "attn2"), "proj_out"),
    "PixArtTransformer2DModel": (("attn1",), "proj_out"),
    "DiTTransformer2DModel": (("attn1",), "proj_out_2"),
}
"""diffusers transformers whose positions are added where tokens are made: names of their self-attention, and of the
layer from tokens to patches."""


class RegionHandle(Attached):
    """RAS on a model; made by ``accelerate(model, RAS(...))``.

    The prediction that counts is the guided one, so the sampler's network goes through :meth:`guide`; for a pipeline of
    diffusers its scheduler is bound instead.
    """

    def __init__(self, outer: nn.Module, settings: RAS, pipe: Any = None, strict: bool = False) -> None:
        super().__init__(outer, settings, pipe, strict)
        self._active: Tensor | None = None  # of this call
        self._step = 0
        self._keeps = False
        self._branch = 0
        self._values: dict[tuple[int, int], Tensor] = {}
        self._selection: Selection | None = None
        self._aside = False
        self._calls = self._asked = self._computed = self._bytes = 0
        self.tokens_run: list[int] = []
        self._count = 0
        model = self.model
        patch = model.patch_size if isinstance(model, DiT) else model.config.patch_size
        self._patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        self._pipe = pipe
        self._bind()

    def guide(self, denoise: Denoise) -> Denoise:
        """The guided network, whose answers keep the last prediction where tokens were left out.

        Args:
            denoise: calls the model, with conditions and guidance filled in.
        """

        def merged(x_t: Tensor, timestep: Tensor, /) -> Tensor:
            return self._merge(denoise(x_t, timestep))

        return merged

    def report(self) -> Report:
        """What the present or last run computed; the plan has one site: whether a step ran all tokens."""
        rows = tuple((count == self._count,) for count in self.tokens_run)
        plan = Plan(("all tokens",), rows)
        return Report(str(self.policy), plan, self._calls, self._asked, self._computed, self._bytes)

    def call(self, arguments: dict[str, Any]) -> AbstractContextManager[None]:
        """Refuse groups of tokens, which say where their calls begin.

        Raises:
            PolyditError: always.
        """
        raise PolyditError(
            f"{self.policy}: leaves tokens of one picture out, and this network runs several groups of them; take "
            "TaylorSeer or FORA"
        )

    def paused(self) -> AbstractContextManager[None]:
        """As :meth:`call`."""
        return self.call({})

    def _forget(self) -> None:
        self._values.clear()

    # -- steps ----------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._aside = self._steps_aside()
        if self._aside:
            self._active, self._keeps, self._selection = None, False, None
            self._values.clear()
            return
        call = self._signature.bind_partial(*args, **kwargs).arguments
        moment = self.clock.tick(call["timestep"])
        if moment.total is None:
            raise PolyditError(
                f"{self.policy}: must know the number of steps; use a sampler of the project, or "
                "`with handle.run(steps):`"
            )
        if moment.new_run:
            if self.strict and moment.total == 1:
                raise PolyditError(f"{self.policy}: {ONE_STEP}")
            channels = getattr(self.model.config, "in_channels", None)
            self._selection = Selection(self.policy, self._patch, moment.total, channels)
            self._values.clear()
            self.tokens_run = []
            self._calls = self._asked = self._computed = self._bytes = 0
        assert self._selection is not None
        if moment.step and self._selection.kept is None:
            raise PolyditError(
                f"{self.policy}: never sees the guided prediction; send the sampler's network through handle.guide"
            )
        self._step, self._branch = moment.step, moment.branch
        self._active = self._selection.active_in(moment.step)
        if self._active is not None:
            copies = call["hidden_states"].shape[0] // self._active.shape[0]
            self._active = self._active.repeat(copies, 1)  # conditional and unconditional in one batch
        self._keeps = self._active is None and moment.step >= self.policy.start - 1

    def _merge(self, prediction: Tensor) -> Tensor:
        if self._aside:
            return prediction
        if self._selection is None:
            raise PolyditError(f"{self.policy}: the sampler did not call the model that was accelerated")
        return self._selection.merge(self._step, prediction)

    # -- what is bound --------------------------------------------------------------------------------------

    def _bind(self) -> None:
        self._bind_tokens()
        self._undo.append(self.model.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        if self._pipe is not None:
            self._bind_scheduler(self._pipe)
        self._keep_apart()

    def _bind_tokens(self) -> None:
        model = self.model
        if isinstance(model, DiT):
            plain = all(type(block) is DiTBlock for block in model.blocks)
            config = model.config
            if not plain or config.window_size or config.conv_kernel or len(model.patch_size) != 2:
                raise PolyditError(
                    f"{self.policy}: windows, convolutions and streams of {type(model).__name__} need all tokens of a "
                    "picture; take another method"
                )
            self._undo.append(bind(model, "embed_tokens", self._gathered(model.embed_tokens)))
            if model.rotary is not None:
                self._undo.append(bind(model.rotary, "forward", self._gathered_tables(model.rotary.forward)))
            for index, block in enumerate(model.blocks):
                self._undo.append(bind(block.attn, "forward", self._seeing_all(block.attn.forward, index)))
            self._undo.append(bind(model.final_layer, "forward", self._scattered(model.final_layer.forward)))
            return
        if type(model).__name__ not in FAMILIES:
            raise PolyditError(
                f"{self.policy}: nobody has said where {type(model).__name__} gathers its tokens; known are the native "
                f"DiT, {', '.join(FAMILIES)}"
            )
        attentions, head = FAMILIES[type(model).__name__]
        self._undo.append(bind(model.pos_embed, "forward", self._gathered(model.pos_embed.forward)))
        index = 0
        for _, block in find_blocks(model):
            for name in attentions:
                attention = getattr(block, name, None)
                for part in ("to_k", "to_v") if attention is not None else ():
                    layer = getattr(attention, part)
                    self._undo.append(bind(layer, "forward", self._completed(layer.forward, index)))
                    index += 1
        layer = getattr(model, head)
        self._undo.append(bind(layer, "forward", self._scattered(layer.forward)))

    def _bind_scheduler(self, pipe: Any) -> None:
        if not type(pipe).__module__.startswith("diffusers."):
            raise PolyditError(
                f"{self.policy}: {type(pipe).__name__} has a sampler of its own; accelerate its transformer, and send "
                "its network through handle.guide"
            )
        step = pipe.scheduler.step

        def merged(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
            return step(self._merge(model_output), *args, **kwargs)

        self._undo.append(bind(pipe.scheduler, "step", merged))

    def _gathered(self, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            tokens = inner(*args, **kwargs)
            self._count = tokens.shape[1]
            if self._active is not None:
                tokens = tokens.gather(1, self._active[..., None].expand(-1, -1, tokens.shape[2]))
            if not self._aside:
                self._calls += 1
                self._asked += self._count
                self._computed += tokens.shape[1]
                if self._branch == 0:
                    self.tokens_run.append(tokens.shape[1])
            return tokens

        return forward

    def _gathered_tables(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            tables = inner(*args, **kwargs)
            if self._active is None:
                return tables
            return tuple(table[self._active][:, None] for table in tables)  # (N, d) -> (B, 1, n, d)

        return forward

    def _scattered(self, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            patches = inner(*args, **kwargs)
            if self._active is None:
                return patches
            whole = patches.new_zeros(patches.shape[0], self._count, patches.shape[2])
            return whole.scatter(1, self._active[..., None].expand(-1, -1, patches.shape[2]), patches)

        return forward

    def _completed(self, inner: Callable[..., Tensor], index: int) -> Callable[..., Tensor]:
        """Keys or values (B, N, D) of all tokens, the fresh ones in their places."""

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return self._complete(inner(*args, **kwargs), index, 1)

        return forward

    def _seeing_all(self, inner: Callable[..., Tensor], index: int) -> Callable[..., Tensor]:
        """The native attention, whose keys and values (B, H, N, d) go through a hook."""

        def hook(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return self._complete(key, 2 * index, 2), self._complete(value, 2 * index + 1, 2)

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if kwargs.get("key_value_hook") is not None:
                raise PolyditError(f"{self.policy}: keys and values are cached already; use one of the two")
            return inner(*args, **{**kwargs, "key_value_hook": hook})

        return forward

    def _complete(self, fresh: Tensor, index: int, axis: int) -> Tensor:
        place = (self._branch, index)
        if self._active is None:
            if self._keeps:
                self._values[place] = fresh.clone()
                held = sum(value.numel() * value.element_size() for value in self._values.values())
                self._bytes = max(self._bytes, held)
            return fresh
        shape = [1] * fresh.ndim
        shape[0], shape[axis] = self._active.shape
        self._values[place] = torch.scatter(
            self._values[place], axis, self._active.view(shape).expand_as(fresh), fresh
        )
        return self._values[place]
