"""Exponential moving average of the trained weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from .sharding import gathered, local, placed_like

__all__ = ["EMA", "EmaOptions", "power_exponent"]


@dataclass
class EmaOptions:
    """How the average forgets.

    Attributes:
        decay: Asymptotic decay of the exponential average. Its half-life is ``ln 2 / (1 - decay)`` updates.
        warmup: Let the decay grow as ``min(decay, (1 + n) / (10 + n))``, so that the random start is forgotten.
        sigma_rel: If given, the power-function average of EDM2 (arXiv 2312.02696) instead: its profile always
            covers the same relative part of the run (0.05, 0.10 and 0.15 are usual), whatever its length.
        every: Optimiser steps between two updates.
    """

    decay: float = 0.9999
    warmup: bool = True
    sigma_rel: float | None = None
    every: int = 1

    def decay_at(self, step: int) -> float:
        """Decay of the update after optimiser step ``step`` (1, 2, ...)."""
        if self.sigma_rel is not None:
            exponent = power_exponent(self.sigma_rel) + 1
            return max(0.0, 1 - self.every / step) ** exponent
        updates = step // self.every
        # `every` updates at once forget as much as `every` single ones.
        decay = self.decay**self.every
        return min(decay, (1 + updates) / (10 + updates)) if self.warmup else decay


def power_exponent(sigma_rel: float) -> float:
    """The exponent gamma whose power-function profile has this relative width (EDM2, equation 123).

    ``sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))``; 0.05 gives 16.97, 0.10 gives 6.94.

    Raises:
        ValueError: no profile is that wide (above about 0.28) or this narrow.
    """
    if not 0 < sigma_rel < 0.28:
        raise ValueError(f"sigma_rel must lie between 0 and 0.28, not {sigma_rel}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class EMA(Callback):
    """Keeps the average, validates with it, and writes it to the checkpoint.

    Only what is trained is averaged, so a LoRA run keeps no second copy of its base. A checkpoint holds the average in
    ``state_dict`` (what validation and export should use), the raw weights in ``current_model_state`` and the
    counter in ``averaging_state``, which are Lightning's own names for them.
    """

    def __init__(self, options: EmaOptions | None = None) -> None:
        self.options = options or EmaOptions()
        self.average: dict[str, Tensor] = {}
        self.step = 0
        self._module: LightningModule | None = None
        self._parameters: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None  # the module's own weights while it holds the average

    def _trained(self, module: LightningModule) -> dict[str, Tensor]:
        if (
            self._module is not module
        ):  # walking through the modules in every step would cost as much as the update
            self._module = module
            self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        return {name: p.data for name, p in self._parameters.items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights as they are, or from the average that a checkpoint brought."""
        self._module = None
        trained = self._trained(pl_module)
        # float32 whatever the weights are: steps of 1e-4 vanish in bfloat16
        self.average = {
            name: placed_like(self.average.get(name, value).detach(), value).to(
                value.device, torch.float32, copy=True
            )
            for name, value in trained.items()
        }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after an optimiser step (not after each accumulated batch)."""
        step = trainer.global_step
        if step == self.step or step % self.options.every:
            return
        self.step = step
        trained = self._trained(pl_module)
        torch._foreach_lerp_(
            [local(self.average[name]) for name in trained],
            [local(value).float() for value in trained.values()],
            1 - self.options.decay_at(step),
        )

    @torch.no_grad()
    def put_average(self, module: LightningModule) -> None:
        """Give the module the average; its own weights are kept until :meth:`put_raw`."""
        if self.average and self._raw is None:
            trained = self._trained(module)
            self._raw = {name: value.clone() for name, value in trained.items()}
            for name, value in trained.items():
                value.copy_(self.average[name])

    @torch.no_grad()
    def put_raw(self, module: LightningModule) -> None:
        """Give the module its own weights back."""
        if self._raw is not None:
            for name, value in self._trained(module).items():
                value.copy_(self._raw[name])
            self._raw = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self.put_average(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train the raw weights."""
        self.put_raw(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the raw weights in the module when validation was cut short."""
        self.put_raw(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average in ``state_dict`` and the raw weights beside it."""
        if self.average:
            state, keep = checkpoint["state_dict"], trainer.is_global_zero
            # a process that only helps the first one to gather the weights has an empty state
            checkpoint["current_model_state"] = (
                {name: state[name] for name in self.average if name in state}
                if self._raw is None
                else gathered(self._raw, keep)
            )
            checkpoint["state_dict"] = {**state, **gathered(self.average, keep)}
            checkpoint["averaging_state"] = {"step": self.step}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average; the module loads its raw weights itself."""
        if trainer.state.fn == TrainerFn.FITTING:
            source = checkpoint.get("average_state", checkpoint["state_dict"])
            self.average = {name: source[name].detach() for name in self._trained(pl_module)}
            self.step = int(checkpoint.get("averaging_state", {}).get("step", checkpoint["global_step"]))
