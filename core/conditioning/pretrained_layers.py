"""Roles for the layers of a pretrained layered model: an embedding per slot beside frozen weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..backbones.pretrained import adapt_transformer, load_transformer
from ..errors import PolyditError

__all__ = ["LayerRoles", "PretrainedLayerStack"]

RELEASED = {"use_layer3d_rope": True, "use_additional_t_cond": True, "zero_cond_t": False}
"""What the released layered model's configuration has beside the defaults."""


class LayerRoles(ModelMixin, ConfigMixin):
    """Layer semantic embeddings (arXiv 2603.14925): a vector per slot, added to the tokens of its picture.

    They start at zero: then nothing is added.

    Args:
        roles: Names of the layers, bottom to top; slot 0 before them is the composite.
        width: Of the tokens.
    """

    @register_to_config
    def __init__(self, roles: list[str], width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(roles) + 1, width))

    @contextmanager
    def adding(self, input_layer: nn.Module, slots: Sequence[int]) -> Iterator[None]:
        """While open, ``input_layer`` gives tokens (B, (S + 1) n, D) of S pictures and a condition with their roles.

        Raises:
            ValueError: there is no such slot.
        """
        if not all(0 <= slot < len(self.weight) for slot in slots):
            raise ValueError(f"slots {list(slots)}: there are {len(self.weight)} roles")

        def add(module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
            vectors = torch.cat([self.weight[list(slots)], torch.zeros_like(self.weight[:1])])
            parts = tokens.unflatten(1, (len(vectors), -1))
            return (parts + vectors[None, :, None].to(parts)).flatten(1, 2)

        handle = input_layer.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


class PretrainedLayerStack(nn.Module):
    """Qwen-Image-Layered (arXiv 2512.15603) with the call of ``LayerStackDiT``, and roles for its layers.

    Its positions are that model's own: pictures are numbered 0 (composite), 1..N (layers), the picture to decompose
    is the last and has -1. With fresh roles this is the pretrained model.

    Args:
        transformer: The loaded ``QwenImageTransformer2DModel``, or its adapter.
        roles: Names of the layers, bottom to top; None for none.

    Raises:
        PolyditError: the model numbers no layers.
    """

    def __init__(self, transformer: nn.Module, roles: Sequence[str] | None = None) -> None:
        super().__init__()
        self.network = transformer if hasattr(transformer, "transformer") else adapt_transformer(transformer)
        if not getattr(self.config, "use_layer3d_rope", False):
            raise PolyditError(
                "--model.backbone: this transformer numbers no layers (use_layer3d_rope); give Qwen-Image-Layered's"
            )
        self.roles = (
            LayerRoles(list(roles), self.network.transformer.inner_dim) if roles is not None else None
        )
        self.source: str | None = None

    @classmethod
    def from_folder(
        cls, source: str | None, roles: list[str] | None = None, dtype: str | None = None
    ) -> PretrainedLayerStack:
        """From the folder of the released pipeline, in diffusers format.

        While the default device is ``meta`` there are shapes without values, without a folder those of the release.

        Raises:
            PolyditError: it is not there, or is something else.
        """
        if source is None:
            if torch.get_default_device().type != "meta":
                raise PolyditError(
                    "--model.backbone.source: name the folder of Qwen-Image-Layered, in diffusers format"
                )
            return cls(QwenImageTransformer2DModel(**RELEASED), roles)
        made = cls(load_transformer(source, dtype=dtype), roles)
        made.source = source
        return made

    @property
    def config(self) -> Any:
        """That of the diffusers model."""
        return self.network.config

    @property
    def prediction_channels(self) -> int:
        """Channels of a layer's latents."""
        return int(self.network.latent_channels)  # type: ignore[arg-type]

    @property
    def autoencoder_folder(self) -> Path | None:
        """Where the pipeline that the weights are from has its autoencoder."""
        folder = Path(self.source) if self.source is not None else None
        return folder / "vae" if folder is not None and (folder / "vae").is_dir() else None

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.network.enable_gradient_checkpointing()

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        condition: Tensor,
        slots: Sequence[int] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Predict composite and layers.

        Args:
            hidden_states: Noisy latents (B, C, 1 + N, H, W): the composite, then the layers from the bottom.
            timestep: (B,), 0 .. 1000.
            condition: Latents (B, C, H, W) of the picture.
            slots: The role of each of the 1 + N; None is in order. Places in the sequence, and with them the positions,
                are not moved.
            encoder_hidden_states: Text (B, tokens, width); None is a single token of zeros.
            encoder_attention_mask: (B, tokens).

        Returns:
            An object with ``.sample`` (B, C, 1 + N, H, W).
        """
        batch, _, count = hidden_states.shape[:3]
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states.new_zeros(batch, 1, self.config.joint_attention_dim)
        pictures = torch.cat([hidden_states, condition[:, :, None]], dim=2)
        flag = None
        if getattr(self.config, "use_additional_t_cond", False):
            flag = torch.zeros(batch, dtype=torch.long, device=hidden_states.device)
        given = (pictures, timestep, encoder_hidden_states, encoder_attention_mask)
        if self.roles is None:
            sample = self.network(*given, additional_t_cond=flag).sample
        else:
            chosen = list(slots) if slots is not None else list(range(count))
            with self.roles.adding(self.network.transformer.img_in, chosen):
                sample = self.network(*given, additional_t_cond=flag).sample
        return Transformer2DModelOutput(sample=sample[:, :, :count])
