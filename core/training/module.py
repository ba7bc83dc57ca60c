"""The LightningModule that every task subclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ..adapters import LoraOptions, continue_from, inject
from ..diffusion.objective import Objective, ObjectiveOutput
from ..errors import PolyditError
from .checkpoint_file import signature
from .draws import training_draws, validation_draws
from .ema import EmaOptions
from .frozen import Quantization, replace_frozen_linears
from .guard import FiniteGuard, describe_batch
from .optim import OptimizerOptions, build_optimizer, learning_rate_factor
from .resume import collect, restore
from .sharding import shard_trained, whole
from .weights import difference, is_on_meta, read_weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["DiffusionModule"]


class DiffusionModule(LightningModule):
    """Trains a denoiser.

    A task answers four questions by overriding :meth:`target`, :meth:`condition`, :meth:`extra_losses` and
    :meth:`build_pipeline` (and, if it wants pictures during training, :meth:`pictures`). Optimiser, schedule, average
    of the weights, adapters, checkpoints and validation are inherited.

    Args:
        backbone: What denoises, called as ``backbone(x_t, timestep, **condition)``; its answer is a tensor or has
            ``.sample``.
        objective: Loss of the denoiser; None is flow matching with velocity prediction and uniform times.
        autoencoder: Where diffusion happens, for :meth:`target` and the pipeline; it is frozen. None is pixels.
        optimizer: AdamW and its schedule.
        ema: Average of the weights; None keeps none.
        adapter: Train a LoRA on the backbone instead of the backbone.
        gradient_checkpointing: Recompute activations in the backward pass.
        quantize: Keep the frozen weights under an adapter quantised: ``int8`` or ``nf4``, see :mod:`.frozen`.
        offload: Keep the frozen weights under an adapter in host memory; each comes to the device for its own product.
        compile: Compile the repeated blocks of the backbone.
        init_weights: Folder or safetensors file that the backbone starts from (fine-tuning, LoRA): a saved backbone,
            a pipeline folder with a ``transformer``, or a plain state dict.
    """

    predict_words: ClassVar[tuple[str, ...]] = ()
    """What ``predict`` cannot do without beside an input and an output, as words of its command line."""

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008 - read only; the parser shows its fields
        ema: EmaOptions | None = EmaOptions(),  # noqa: B008
        adapter: LoraOptions | None = None,
        gradient_checkpointing: bool = False,
        quantize: Quantization | None = None,
        offload: bool = False,
        compile: bool = False,
        init_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.autoencoder = autoencoder
        self.objective = Objective() if objective is None else objective
        self.optimizer_options = optimizer
        self.ema_options = ema
        self.adapter_options = adapter
        self.gradient_checkpointing = gradient_checkpointing
        self.quantize, self.offload = quantize, offload
        self.compile_blocks = compile
        self.init_weights = init_weights
        self.backbone_name = type(backbone).__name__  # before a strategy wraps it
        self.run_record: dict[str, Any] = {}  # task and config of this run, written into its checkpoints
        self.batch_samples = 0
        self.samples_seen = 0  # by all processes since the run began
        self.resumed_batch: int | None = (
            None  # samples of a batch of all processes, in the run that is resumed
        )
        self._noise_seed: int | None = None
        self._batch = 0
        self._held_out = 0
        self._total_steps: float | None = None
        self._random_states: dict[str, Any] | None = None
        self._prepared = False
        self._guard = FiniteGuard()
        if autoencoder is not None:
            autoencoder.requires_grad_(False)
        if init_weights is not None and not is_on_meta(backbone):
            backbone.load_state_dict(read_weights(init_weights, backbone))

    # -- what a task answers -------------------------------------------------------------------------------

    def target(self, batch: Any) -> Tensor:
        """What is generated: clean data or latents (B, C, ...)."""
        raise NotImplementedError

    def condition(self, batch: Any) -> dict[str, Any]:
        """What the backbone is told besides the noisy input: keyword arguments of its forward."""
        return {}

    def element_weight(self, batch: Any) -> Tensor | None:
        """What multiplies the objective's error of each element, broadcastable to the target; None is 1."""
        return None

    def extra_losses(self, batch: Any, output: ObjectiveOutput) -> dict[str, Tensor]:
        """What this task adds to the objective: scalars by name, already weighted."""
        return {}

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline that runs this model; it shares the backbone, it does not copy it."""
        raise NotImplementedError

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Any, generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """What validation shows: for each picture its panels by label, uint8 (H, W, 3). None by default."""
        return []

    # -- set-up --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Inject the adapter and switch on what saves memory and time. Done once, before the optimiser exists."""
        if self._prepared:
            return
        self._prepared = True
        if self.adapter_options is not None:
            if not is_on_meta(self.backbone):
                self.refuse_untrained_base()
            self.backbone.requires_grad_(False)
            inject(self.backbone, self.adapter_options)
            if self.adapter_options.init_from and not is_on_meta(self.backbone):
                continue_from(self.backbone, self.adapter_options.init_from)
        if self.quantize or self.offload:
            self._shrink_frozen()
        if self.gradient_checkpointing:
            enable = getattr(self.backbone, "enable_gradient_checkpointing", None)
            if enable is None:
                raise PolyditError(
                    f"--model.gradient_checkpointing: {type(self.backbone).__name__} does not offer it; leave it out"
                )
            enable()
        if self.compile_blocks:
            # In place: the names in the state dict stay what they are.
            if getattr(self.backbone, "_repeated_blocks", None):
                self.backbone.compile_repeated_blocks()  # type: ignore[operator]
            else:
                self.backbone.compile()

    def refuse_untrained_base(self) -> None:
        """Refuse an adapter on weights that are random.

        Raises:
            PolyditError: nothing says where the backbone's weights come from.
        """
        loaded = getattr(getattr(self.backbone, "config", None), "_name_or_path", None)
        if self.adapter_options is not None and not (self.init_weights or loaded):
            raise PolyditError(
                "--model.adapter: an adapter needs trained weights under it; name them with --model.init_weights"
            )

    def switch_adapters(self, on: bool) -> str | None:
        """Train by adapters, its own or else a LoRA of rank 16, or without any; before :meth:`prepare`.

        Returns:
            The options that ask for it; None where this module cannot be trained so.
        """
        lora = (self.adapter_options or LoraOptions()) if on else None
        self.adapter_options = lora
        return f"--model.adapter.rank {lora.rank}" if lora is not None else ""

    def _shrink_frozen(self) -> None:
        option = f"--model.quantize {self.quantize}" if self.quantize else "--model.offload"
        if self.adapter_options is None:
            raise PolyditError(
                f"{option}: is for frozen weights, and all of them are trained; add --model.adapter.rank 16"
            )
        if self.compile_blocks:
            raise PolyditError(f"{option}: does not go with --model.compile; leave one of them out")
        replace_frozen_linears(self.backbone, self.quantize, self.offload)

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        if self.offload and self._trainer is not None and self.trainer.strategy.root_device.type == "cpu":
            raise PolyditError("--model.offload: the CPU has no memory but the host's; leave it out")
        self.prepare()
        if stage == "fit":
            # a checkpoint may bring others
            self.samples_seen, self.resumed_batch, self._noise_seed = 0, None, None

    def configure_model(self) -> None:
        """Lightning's hook: spread the weights, if the strategy has made a mesh of the processes."""
        if self.device_mesh is not None:
            shard_trained(self, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Settle what the noise of this run depends on: one number for all processes."""
        if self._noise_seed is None:
            self._noise_seed = self.trainer.strategy.broadcast(torch.initial_seed()) & (2**63 - 1)

    def train(self, mode: bool = True) -> DiffusionModule:
        """Frozen autoencoders stay in eval mode."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    # -- training ------------------------------------------------------------------------------------------

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """Raw answer of the backbone for (B, C, ...) at the timestep it expects, (B,)."""
        answer = self.backbone(x_t, timestep, **condition)
        return answer if isinstance(answer, Tensor) else answer.sample

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """All terms of the loss by name (``objective`` first) and what the objective computed.

        Args:
            batch: From the data module.
            first: How many held-out samples this process saw before; None is training.
        """
        x0 = self.target(batch)
        condition = self.condition(batch)
        self.batch_samples = x0.shape[0]
        noise, t = self.draw(x0, first)
        output = self.objective(
            lambda x_t, timestep: self.denoise(x_t, timestep, condition),
            x0,
            noise=noise,
            t=t,
            element_weight=self.element_weight(batch),
        )
        return {"objective": output.loss, **self.extra_losses(batch, output)}, output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One loss.

        Raises:
            PolyditError: it is not finite.
        """
        terms, _ = self.losses(batch)
        self._batch = self.batch_samples * self.trainer.world_size
        self.samples_seen += self._batch
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        names = describe_batch(batch)
        self._guard.watch(
            loss,
            f"step {self.trainer.global_step}, batch {batch_idx} of epoch {self.trainer.current_epoch}"
            + (f" ({names})" if names else ""),
        )
        if self._logs_this_step():
            shown = {"loss": loss, **terms} if len(terms) > 1 else {"loss": loss}
            self.log_dict(
                {f"train/{k}": v.detach() for k, v in shown.items()},
                batch_size=self.batch_samples,
                sync_dist=self.trainer.world_size > 1,
            )
        return loss

    def _logs_this_step(self) -> bool:
        """Whether the loggers will look; Lightning's own log call costs half a millisecond in every step."""
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0

    def draw(self, x0: Tensor, first: int | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Noise and times that belong to the sample, whichever process and batch it came in.

        Args:
            x0: Clean data (B, C, ...).
            first: How many held-out samples this process saw before; None is training.

        Returns:
            Noise like x0 and times (B,); None for both outside of a run, where the objective draws them.
        """
        if first is None and self._noise_seed is None:
            return None, None
        world, rank = (1, 0) if self._trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        # DistributedSampler deals the samples out in turn
        numbers = [i * world + rank for i in range(first or 0, (first or 0) + x0.shape[0])]
        if first is not None:
            return validation_draws(self.objective, x0, numbers)
        assert self._noise_seed is not None
        return training_draws(
            self.objective, x0, self._noise_seed, [self.samples_seen + number for number in numbers]
        )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Held-out loss on fixed noise and times."""
        if batch_idx == 0:
            self._held_out = 0
        terms, _ = self.losses(batch, first=self._held_out)
        self._held_out += self.batch_samples
        named = {f"val/{name}": term for name, term in terms.items()} if len(terms) > 1 else {}
        self.log_dict(
            {"val/loss": sum(terms.values()), **named}, batch_size=self.batch_samples, sync_dist=True
        )

    test_step = validation_step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient, before it is clipped."""
        if self._logs_this_step():
            gradients = [
                p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            self.log("train/gradient_norm", whole(torch.nn.utils.get_total_norm(gradients)))
            self.log("train/lr", optimizer.param_groups[0]["lr"])

    def on_validation_model_zero_grad(self) -> None:
        """The first hook of a validation: from here to its end nothing may move the random states of training."""
        super().on_validation_model_zero_grad()
        self._random_states = collect()

    def on_validation_end(self) -> None:
        """Counterpart of :meth:`on_validation_model_zero_grad`."""
        self.restore_random_states()

    def restore_random_states(self) -> None:
        """Forget what a validation drew; calling it again changes nothing."""
        if self._random_states is not None:
            restore(self._random_states)
            self._random_states = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, also under bfloat16 with a fused optimiser, which Lightning refuses for the sake of float16."""
        plugin = self.trainer.precision_plugin
        if not gradient_clip_val or not isinstance(plugin, MixedPrecision) or plugin.scaler is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            plugin.clip_grad_by_value(optimizer, gradient_clip_val)
        else:
            plugin.clip_grad_by_norm(optimizer, gradient_clip_val)

    # -- optimiser -----------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and the schedule, by optimiser step."""
        options = self.optimizer_options
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            options = replace(options, fused=False)  # the fused one unscales by itself, too late for clipping
        optimizer = build_optimizer(self, options)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.optimizer_options, step, self.progress(step))
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def progress(self, step: int) -> float:
        """Share of the run that is over after ``step`` optimiser steps: by steps, or by the clock under max_time."""
        if step == 0:
            return 0.0  # asked for when the optimiser is built: too early to look at the data
        if self._total_steps is None:
            self._total_steps = self.trainer.estimated_stepping_batches
        share = step / self._total_steps if self._total_steps else 0.0
        for callback in self.trainer.callbacks:
            if isinstance(callback, Timer) and callback._duration:
                share = max(share, callback.time_elapsed() / callback._duration)
        return share

    # -- checkpoints ---------------------------------------------------------------------------------------

    @property
    def strict_loading(self) -> bool:
        """Frozen weights are not in our checkpoints; :meth:`on_load_checkpoint` does the checking."""
        return False

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        raise AttributeError("a DiffusionModule checks its checkpoints itself")

    def saved_names(self) -> set[str]:
        """Names of the state dict that a checkpoint keeps.

        With an adapter: what is trained. Otherwise every child that has something to train, whole; but of a backbone
        from a folder not what is frozen, which is there to be had again.
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        if self.adapter_options is not None:
            return trained
        children = {name.split(".", 1)[0] for name in trained}
        names = {name for name in self.state_dict() if name.split(".", 1)[0] in children}
        if getattr(getattr(self.backbone, "config", None), "_name_or_path", None):
            names -= {name for name, p in self.named_parameters() if not p.requires_grad}
        return names

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop what is frozen, add what identifies the run, and refuse to write weights that are not finite."""
        self._guard.flush()
        keep = self.saved_names()
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in keep}
        for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
            for name, value in state.items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise PolyditError(
                        f"training: weight {name} is not finite at step {checkpoint['global_step']}; the last "
                        "checkpoint is kept. Lower --model.optimizer.lr or set --trainer.gradient_clip_val 1.0"
                    )
        checkpoint["polydit"] = {
            **signature(),
            **self.run_record,
            "module": f"{type(self).__module__}.{type(self).__qualname__}",
            "backbone": self.backbone_name,
            "samples_seen": self.samples_seen,
            "batch": self._batch,
            "noise_seed": self._noise_seed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model; continue training from its raw weights.

        Raises:
            PolyditError: it is of another task, backbone or shape.
        """
        record = checkpoint.get("polydit", {})
        for what, mine in (("task", self.run_record.get("task")), ("backbone", self.backbone_name)):
            theirs = record.get(what)
            if theirs and mine and theirs != mine:
                raise PolyditError(
                    f"--ckpt_path: this checkpoint was trained for {what} {theirs}, not {mine}; "
                    f"use the config it was trained with"
                )
        given = checkpoint["state_dict"]
        problem = difference(self.state_dict(), given, self.saved_names())
        if problem:
            theirs, mine = record.get("version", "an earlier version"), signature()["version"]
            raise PolyditError(
                f"--ckpt_path: the checkpoint {problem} of this {self.backbone_name}; "
                "use the config it was trained with"
                + (f" (it was written by PolyDiT {theirs}, this is {mine})" if theirs != mine else "")
            )
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.samples_seen, self._noise_seed = record.get("samples_seen", 0), record.get("noise_seed")
            self.resumed_batch = record.get("batch")
            checkpoint["average_state"] = given
            checkpoint["state_dict"] = {**given, **checkpoint.get("current_model_state", {})}
