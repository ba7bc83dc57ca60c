"""How much memory a training step takes, for a config as it is and with each option that saves some.

Weights, gradients, moments and average follow from the parameters; what is held between forward and backward pass is
counted in a step without values (:mod:`.rehearsal`). Nothing is allocated, so a model of any size can be asked about.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import PolyditError
from .optim import OptimizerOptions
from .rehearsal import PRECISIONS, Rehearsal, rehearse

if TYPE_CHECKING:
    from .module import DiffusionModule

__all__ = ["Footprint", "Variant", "footprint", "optimizer_bytes", "variants", "weight_bytes"]

LEAST_8BIT = 4096
"""bitsandbytes keeps the moments of smaller tensors in 32 bits."""
BLOCK_8BIT = 256
"""Values that share one scale there."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device during a training step, and what the step computes.

    Attributes:
        weights: Of everything in the module, autoencoder included.
        gradients: Of what is trained.
        optimizer: Moments of AdamW.
        average: Float32 copy of what is trained, if an average is kept.
        activations: What forward and backward pass hold besides, at the worst moment.
        flops: Of one batch, multiplications and additions counted apart.
        offloaded: Bytes of weights in host memory instead of on the device.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    flops: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        """All of it; the allocator's rounding and the device's own context come on top."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Variant:
    """A way to train the same model.

    Attributes:
        name: What it is, in a few words.
        options: The words that ask for it on the command line.
        footprint: What it takes.
    """

    name: str
    options: str
    footprint: Footprint


def footprint(
    module: DiffusionModule, batch: Any, precision: str = "32-true", accumulate: int = 1
) -> Footprint:
    """Memory of a step of a prepared module, which may be on the meta device.

    Args:
        module: After :meth:`DiffusionModule.prepare`.
        batch: What its data module gives.
        precision: The Trainer's.
        accumulate: Batches to an optimiser step; the gradients of all but the first are there from the start.

    Raises:
        ValueError, RuntimeError and others: what the step itself raises, such as shapes that do not fit.
    """
    return _combine(module, rehearse(module, batch, precision, keeps_gradients=accumulate > 1), precision)


def variants(
    module: DiffusionModule, batch: Any, precision: str = "32-true", accumulate: int = 1
) -> Iterator[Variant]:
    """The same model with each option that saves memory, from dear to cheap; those that it refuses are left out.

    Args:
        module: Before :meth:`DiffusionModule.prepare`, on the meta device; left as it is.
        batch: What its data module gives.
        precision: The Trainer's.
        accumulate: Batches to an optimiser step.
    """
    checkpointing = ("checkpointing", "--model.gradient_checkpointing true")
    for lora, name in ((False, "full fine-tuning"), (True, "LoRA")):
        option = copy.deepcopy(module).switch_adapters(lora)
        if option is None:
            continue
        names, options = [name], [option] if option else []
        plain = _variant(module, lora)
        needs = footprint(plain, batch, precision, accumulate)
        yield Variant(", ".join(names), " ".join(options), needs)
        if hasattr(module.backbone, "enable_gradient_checkpointing"):
            names, options = [*names, checkpointing[0]], [*options, checkpointing[1]]
            plain = _variant(module, lora, gradient_checkpointing=True)
            needs = footprint(plain, batch, precision, accumulate)
            yield Variant(", ".join(names), " ".join(options), needs)
        if not lora:
            moments = replace(plain.optimizer_options, kind="adamw_8bit")
            trained = [p for p in plain.parameters() if p.requires_grad]
            yield Variant(
                ", ".join([*names, "8-bit optimiser"]),
                " ".join([*options, "--model.optimizer.kind adamw_8bit"]),
                replace(needs, optimizer=optimizer_bytes(trained, moments, precision)),
            )
            continue
        if plain.adapter_options is None:
            continue  # LoRAs of its own: nothing is quantised or offloaded under those
        shrunk: Rehearsal | None = None
        for name, option, settings in (
            ("base in int8", "--model.quantize int8", {"quantize": "int8"}),
            ("base in nf4", "--model.quantize nf4", {"quantize": "nf4"}),
            ("base offloaded", "--model.offload true", {"offload": True}),
        ):
            changed = _variant(module, lora, gradient_checkpointing=plain.gradient_checkpointing, **settings)
            # However a frozen weight is kept, the same full one comes into being for its product.
            shrunk = shrunk or rehearse(changed, batch, precision, keeps_gradients=accumulate > 1)
            yield Variant(
                ", ".join([*names, name]), " ".join([*options, option]), _combine(changed, shrunk, precision)
            )


def _variant(module: DiffusionModule, lora: bool, **settings: Any) -> DiffusionModule:
    """A prepared copy with these attributes; other options that save memory are off."""
    changed: DiffusionModule = copy.deepcopy(module)
    changed.switch_adapters(lora)
    changed.gradient_checkpointing = changed.offload = changed.compile_blocks = False
    changed.quantize = None
    changed.optimizer_options = replace(module.optimizer_options, kind="adamw")
    for name, value in settings.items():
        setattr(changed, name, value)
    with torch.device("meta"):
        changed.prepare()
    return changed


def _combine(module: DiffusionModule, rehearsal: Rehearsal, precision: str) -> Footprint:
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise PolyditError("--model: nothing is trained; unfreeze something or add --model.adapter.rank 16")
    weights, offloaded = weight_bytes(module, precision)
    return Footprint(
        weights=weights,
        gradients=rehearsal.gradients,
        optimizer=optimizer_bytes(trained, module.optimizer_options, precision),
        average=4 * sum(p.numel() for p in trained) if module.ema_options is not None else 0,
        activations=rehearsal.activations,
        flops=rehearsal.flops,
        offloaded=offloaded,
    )


def weight_bytes(module: nn.Module, precision: str = "32-true") -> tuple[int, int]:
    """Bytes of parameters and buffers on the device, and of those that stay in host memory."""
    dtype = PRECISIONS[precision][0]

    def size(tensor: torch.Tensor) -> int:
        converted = dtype is not None and tensor.is_floating_point()
        return tensor.numel() * (dtype.itemsize if converted and dtype else tensor.element_size())

    hosts = [tensor for part in module.modules() for tensor in getattr(part, "_host", ())]
    return sum(map(size, [*module.parameters(), *module.buffers()])), sum(map(size, hosts))


def optimizer_bytes(
    trained: list[nn.Parameter], options: OptimizerOptions, precision: str = "32-true"
) -> int:
    """Bytes of the two moments of AdamW; they have the dtype of the weights, or 8 bits and a scale per block."""
    dtype = PRECISIONS[precision][0]
    total = 0
    for parameter in trained:
        count = parameter.numel()
        if options.kind == "adamw_8bit":
            small = count < LEAST_8BIT
            total += 2 * 4 * count if small else 2 * (count + 4 * -(-count // BLOCK_8BIT))
        else:
            total += 2 * count * (dtype.itemsize if dtype else parameter.element_size())
    return total
