"""Frozen layers under an adapter that take less memory: quantised, or kept in host memory.

Gradients flow through a frozen linear layer to what lies before it, so its weight is needed twice. Here it is brought
to full precision on the device for the time of one product, forward and again backward; autograd keeps the small or
distant form only. (diffusers' own group offloading moves weights away after the forward pass, where the backward pass
does not find them; torchao's own linear layer lets autograd keep the full weight.)
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.targets import block_linears
from ..errors import PolyditError
from .extras import require

__all__ = ["FrozenLinear", "Quantization", "replace_frozen_linears"]

Quantization = Literal["int8", "nf4"]
"""``int8``: torchao, one scale per row, half of bfloat16. ``nf4``: bitsandbytes, QLoRA's format (arXiv 2305.14314) with
quantised scales, a quarter of bfloat16."""

NEEDS: dict[str, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256


class FrozenLinear(nn.Module):
    """A linear layer that is not trained.

    Args:
        linear: The layer that it replaces; its weight is quantised or taken over.
        quantize: How the weight is stored; None keeps its numbers.
        offload: Keep the weight where it is now when the module is moved.

    A layer on the meta device becomes one of the same sizes and dtypes, for counting memory.
    """

    def __init__(
        self, linear: nn.Linear, quantize: Quantization | None = None, offload: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.quantize, self.offload = quantize, offload
        if quantize is None:
            stored = nn.Parameter(linear.weight.detach(), requires_grad=False)
        elif linear.weight.is_meta:
            stored = _shape_of(quantize, linear.weight)
        else:
            stored = _quantized(quantize, linear.weight.detach())
        if offload and torch.cuda.is_available() and quantize is None:
            stored = nn.Parameter(stored.pin_memory(), requires_grad=False)  # twice as fast over the bus
        # Inside a list a parameter is not one of the module's own: `to` leaves it where it is.
        self._host = [stored] if offload else []
        self.weight: Tensor | None = None if offload else stored
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def dense(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in full, a copy."""
        stored = self._host[0] if self.offload else self.weight
        assert stored is not None
        if self.offload:
            stored = stored.to(device, non_blocking=True, copy=True)
        if self.quantize is None:
            return stored.to(dtype)
        if (state := getattr(stored, "quant_state", None)) is not None:
            import bitsandbytes

            return bitsandbytes.functional.dequantize_4bit(stored.data, state).to(dtype)
        if stored.ndim == 1:  # stands for a quantised weight where there are no values
            return stored.new_empty(self.out_features, self.in_features, dtype=dtype)
        return stored.dequantize().to(dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = _Product.apply(x.to(dtype), self)
        return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """As ``nn.Linear`` shows itself, and how the weight is kept."""
        how = ", ".join(filter(None, (self.quantize, "offloaded" if self.offload else "")))
        return f"in_features={self.in_features}, out_features={self.out_features}, {how}"


class _Product(torch.autograd.Function):
    """``x W^T`` that keeps the layer, not the full weight, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense(x.device, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return gradient @ ctx.layer.dense(gradient.device, gradient.dtype), None


def replace_frozen_linears(model: nn.Module, quantize: Quantization | None, offload: bool) -> int:
    """Replace the frozen linear layers in the repeated blocks of a model, under their adapters, in place.

    Args:
        model: A backbone with its adapter injected.
        quantize: See :class:`FrozenLinear`.
        offload: See :class:`FrozenLinear`.

    Returns:
        How many.

    Raises:
        PolyditError: the library that quantises is missing, or the adapter needs the plain weights.
    """
    if quantize is not None:
        if quantize not in get_args(Quantization):
            raise PolyditError(
                f"--model.quantize {quantize}: is unknown; choose from {', '.join(get_args(Quantization))}"
            )
        if offload and quantize == "nf4":
            raise PolyditError(
                "--model.offload does not go with --model.quantize nf4; take int8 or leave one out"
            )
        if not any(p.is_meta for p in model.parameters()):
            require(NEEDS[quantize], f"--model.quantize {quantize}")
    count = 0
    for name in block_linears(model):
        holder, key = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        layer = getattr(holder, key)
        if hasattr(layer, "base_layer"):
            if getattr(layer, "lora_magnitude_vector", None):
                raise PolyditError(
                    "--model.adapter.use_dora: needs the norms of the plain weights in every step; leave out "
                    "--model.quantize and --model.offload, or DoRA"
                )
            holder, key, layer = layer, "base_layer", layer.base_layer
        if any(p.requires_grad for p in layer.parameters()):
            continue
        setattr(holder, key, FrozenLinear(layer, quantize, offload))
        count += 1
    return count


def _quantized(kind: Quantization, weight: Tensor) -> nn.Parameter:
    """A weight (out, in) as diffusers' quantiser of this kind stores it."""
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    holder: Any = nn.Module()
    if kind == "int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        quantizer = DiffusersAutoQuantizer.from_config(
            TorchAoConfig(Int8WeightOnlyConfig()), pre_quantized=False
        )
        holder.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    else:
        import bitsandbytes
        from diffusers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        quantizer = DiffusersAutoQuantizer.from_config(config, pre_quantized=False)
        holder.layer = bitsandbytes.nn.Linear4bit(
            weight.shape[1],
            weight.shape[0],
            bias=False,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
    quantizer.create_quantized_param(holder, weight, "layer.weight", weight.device, {}, [])
    return holder.layer.weight.requires_grad_(False)


def _shape_of(kind: Quantization, weight: Tensor) -> nn.Parameter:
    """As many bytes as a quantised weight and its scales have, on the meta device."""
    if kind == "int8":
        size = weight.numel() + 4 * weight.shape[0]
    else:
        scales = -(-weight.numel() // NF4_BLOCK)
        size = weight.numel() // 2 + scales + 4 * -(-scales // NF4_NESTED_BLOCK)
    return nn.Parameter(weight.new_empty(size, dtype=torch.uint8), requires_grad=False)
