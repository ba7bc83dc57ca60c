"""DiffFit: fine-tuning by biases and scales, a thousandth of the weights (ICCV 2023)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DiffFit"]


class DiffFit(nn.Module):
    """What DiffFit trains of a DiT, "Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient
    Fine-Tuning" (ICCV 2023).

    The model is frozen but for its biases, the gains of its norms and its label table. A scale per channel, 1 at the
    start, multiplies what the attention and the MLP of each block add. Parameters are chosen by what they are, not by
    parts of their names, which differ between code bases.

    Args:
        model: with ``blocks`` that have ``attn`` (with ``proj``) and ``mlp`` (with ``fc2``), as
            :class:`~polydit.core.backbones.DiT`. It is changed in place, until :meth:`remove`.
    """  # noqa: D205 - the title is long

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        model.requires_grad_(False)
        for parameter in self._trained(model):
            parameter.requires_grad_(True)
        self.scales = nn.ParameterDict()
        self._hooks: list[Any] = []
        for index, block in enumerate(_blocks(model)):
            for name, part, last in (
                ("attn", block.attn, block.attn.proj),
                ("mlp", block.mlp, block.mlp.fc2),
            ):
                key = f"{index}_{name}"
                self.scales[key] = nn.Parameter(torch.ones_like(last.weight[:, 0]))
                self._hooks.append(part.register_forward_hook(self._scale(key)))

    def _scale(self, key: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            return output * self.scales[key].to(output.dtype)

        return hook

    @staticmethod
    def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
                yield from module.parameters(recurse=False)
            elif isinstance(module, nn.Embedding):
                yield module.weight
            elif isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                yield bias

    def count(self, model: nn.Module) -> int:
        """How many numbers are trained."""
        own = sum(p.numel() for p in self.parameters())
        return own + sum(p.numel() for p in model.parameters() if p.requires_grad)

    def remove(self) -> None:
        """Take the scales off the model; what was trained of it stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def merged(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the scales inside its weights: the same function, with nothing to add to it."""
        plain = copy.deepcopy(model)
        with torch.no_grad():
            for index, block in enumerate(_blocks(plain)):
                for name, part, last in (
                    ("attn", block.attn, block.attn.proj),
                    ("mlp", block.mlp, block.mlp.fc2),
                ):
                    part._forward_hooks.clear()
                    scale = self.scales[f"{index}_{name}"].to(last.weight.dtype)
                    last.weight.mul_(scale[:, None])
                    last.bias.mul_(scale)
        return plain.requires_grad_(True)


def _blocks(model: nn.Module) -> Any:
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise ValueError(f"{type(model).__name__} has no blocks to scale; DiffFit is for a DiT")
    return blocks
