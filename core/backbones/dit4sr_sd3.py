"""DiT4SR on Stable Diffusion 3: a low-resolution token stream in every joint block of a frozen transformer.

"DiT4SR: Taming Diffusion Transformer for Real-World Image Super-Resolution" (ICCV 2025). The model is
diffusers' ``SD3Transformer2DModel``; what is added are modules whose names contain ``control``, and only
those are trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import CacheMixin, SD3Transformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import nn

from ..errors import PolyditError
from .dit4sr_block import DiT4SRBlock

__all__ = ["DiT4SR", "dit4sr_from_official", "dit4sr_to_official"]

COMPAT = ("published", "intended")

SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
"""Stable Diffusion 3.5 Medium, on which DiT4SR was published."""


class DiT4SR(SD3Transformer2DModel, CacheMixin):
    """SD3's transformer with a low-resolution stream (ICCV 2025, "DiT4SR").

    The arguments are those of ``SD3Transformer2DModel`` and two more, whose defaults are what the released
    weights need (their ``config.json`` does not name them):

    Args:
        compat: ``"published"`` reproduces the key bug of ``dit4sr_q`` and ``dit4sr_f``; ``"intended"`` is the
            corrected model (``dit4sr_r1``, and the choice for new training).
        control_conv_factor: factor on the convolution of the LR hidden map; 1.2 in the released code.

    Without ``controlnet_image`` the model is the plain SD3 transformer, bit for bit.
    """

    _no_split_modules: ClassVar[list[str]] = ["DiT4SRBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["DiT4SRBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 18,
        attention_head_dim: int = 64,
        num_attention_heads: int = 18,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1152,
        pooled_projection_dim: int = 2048,
        out_channels: int = 16,
        pos_embed_max_size: int = 96,
        dual_attention_layers: tuple[int, ...] = (),
        qk_norm: str | None = None,
        compat: str = "published",
        control_conv_factor: float = 1.2,
    ) -> None:
        if compat not in COMPAT:
            raise PolyditError(f"compat: {compat!r} is not known; use one of {', '.join(COMPAT)}.")
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=0,  # our blocks are built below, once
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            caption_projection_dim=caption_projection_dim,
            pooled_projection_dim=pooled_projection_dim,
            out_channels=out_channels,
            pos_embed_max_size=pos_embed_max_size,
            dual_attention_layers=dual_attention_layers,
            qk_norm=qk_norm,
        )
        self.register_to_config(num_layers=num_layers)
        self.transformer_blocks = nn.ModuleList(
            DiT4SRBlock(
                self.inner_dim,
                num_attention_heads,
                attention_head_dim,
                context_pre_only=i == num_layers - 1,
                qk_norm=qk_norm,
                use_dual_attention=i in dual_attention_layers,
                compat=compat,
                control_conv_factor=control_conv_factor,
            )
            for i in range(num_layers)
        )

    @apply_lora_scale("joint_attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        controlnet_image: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        pooled_projections: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: list[int] | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity of the noisy latents.

        Args:
            hidden_states: noisy latents (B, C, H, W), any H and W that the patch size divides.
            controlnet_image: latents of the enlarged low-resolution picture, same shape, or None.
            encoder_hidden_states: text tokens (B, M, joint_attention_dim).
            pooled_projections: pooled text (B, pooled_projection_dim).
            timestep: (B,) in 0..1000, 1000 is noise.
            joint_attention_kwargs: ``{"scale": s}`` sets the strength of loaded LoRA.
            return_dict: give an object with ``.sample`` rather than a tuple.
            skip_layers: indices of blocks to leave out (skip-layer guidance).

        Returns:
            The velocity (B, C, H, W) as ``.sample``.

        Raises:
            ValueError: the two latents differ in shape.
        """
        if controlnet_image is None:
            return super().forward(
                hidden_states=hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                pooled_projections=pooled_projections,
                timestep=timestep,
                joint_attention_kwargs=joint_attention_kwargs,
                return_dict=return_dict,
                skip_layers=skip_layers,
            )
        if controlnet_image.shape != hidden_states.shape:
            raise ValueError(
                f"controlnet_image has the shape {tuple(controlnet_image.shape)}, hidden_states "
                f"{tuple(hidden_states.shape)}: give the low-resolution latents of the enlarged picture."
            )
        patch = self.config.patch_size
        grid = (hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch)

        # Both latents go through the same patch embedding and the same position table.
        streams = [self.pos_embed(latents) for latents in (hidden_states, controlnet_image)]
        tokens = torch.cat(streams, dim=1)  # (B, 2K, D)
        temb = self.time_text_embed(timestep, pooled_projections)  # (B, D)
        text = self.context_embedder(encoder_hidden_states)  # (B, M, D)

        for index, block in enumerate(self.transformer_blocks):
            if skip_layers is not None and index in skip_layers:
                continue
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                text, tokens = self._gradient_checkpointing_func(
                    block, tokens, text, temb, joint_attention_kwargs, grid
                )
            else:
                text, tokens = block(
                    hidden_states=tokens,
                    encoder_hidden_states=text,
                    temb=temb,
                    joint_attention_kwargs=joint_attention_kwargs,
                    grid=grid,
                )

        image = tokens[:, : grid[0] * grid[1]]
        image = self.proj_out(self.norm_out(image, temb))  # (B, K, patch * patch * C)
        image = image.unflatten(2, (patch, patch, -1)).unflatten(1, grid)  # (B, h, w, patch, patch, C)
        sample = image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C, H, W)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def control_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that DiT4SR trains, by name: those whose name contains ``control``."""
        return {name: parameter for name, parameter in self.named_parameters() if "control" in name}

    def freeze_base(self) -> dict[str, nn.Parameter]:
        """Require gradients of :meth:`control_parameters` only, and return them."""
        control = self.control_parameters()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in control)
        return control

    def fuse_qkv_projections(self) -> None:
        """Refused: diffusers' fused attention does not know the low-resolution stream and would drop it."""
        raise PolyditError(
            "fuse_qkv_projections: DiT4SR cannot fuse its low-resolution stream; leave the call out."
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a folder that :meth:`save_pretrained` wrote, or a released ``transformer/`` folder.

        Raises:
            PolyditError: the folder holds a transformer without the low-resolution stream.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        folder = pretrained_model_name_or_path
        model, info = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        if missing := info["missing_keys"]:
            raise PolyditError(
                f"{folder}: {len(missing)} weights of DiT4SR are missing, {missing[0]} first; to start "
                "from a plain SD3 transformer use DiT4SR.from_sd3."
            )
        return (model, info) if wants_info else model

    @classmethod
    def from_folder(
        cls, source: str | None = None, compat: str = "intended", control_conv_factor: float = 1.0
    ) -> DiT4SR:
        """:meth:`from_sd3` for configs.

        While the default device is ``meta`` only the configuration is read, or Stable Diffusion 3.5 Medium's is taken
        if there is no folder, and the model has shapes without values.

        Args:
            source: Folder of Stable Diffusion 3 or 3.5 in diffusers format, or of its transformer.
            compat: See the class.
            control_conv_factor: See the class; 1.0 for training.

        Raises:
            PolyditError: there is no SD3 transformer.
        """
        if torch.get_default_device().type == "meta":
            config = SD35_MEDIUM if source is None else cls._sd3_config(source)
            model = cls.from_config(config, compat=compat, control_conv_factor=control_conv_factor)
            model.freeze_base()
        elif source is None:
            raise PolyditError(
                "--model.backbone.source: the folder of Stable Diffusion 3.5 in diffusers format is missing; name it"
            )
        else:
            model = cls.from_sd3(source, compat=compat, control_conv_factor=control_conv_factor)
        if source is not None:
            model.register_to_config(_name_or_path=str(source))
        return model

    @classmethod
    def _sd3_config(cls, source: str) -> dict[str, Any]:
        where = {"subfolder": "transformer"} if (Path(source) / "model_index.json").is_file() else {}
        try:
            config = SD3Transformer2DModel.load_config(source, local_files_only=True, **where)
        except (OSError, ValueError) as error:
            raise _no_sd3(source, error) from error
        return {k: v for k, v in config.items() if not k.startswith("_")}

    @classmethod
    def from_sd3(
        cls,
        source: SD3Transformer2DModel | str | Path,
        compat: str = "intended",
        control_conv_factor: float = 1.0,
        **kwargs: Any,
    ) -> DiT4SR:
        """Start training from Stable Diffusion 3 or 3.5.

        The query, key, value and convolution of the LR stream start at zero, its output projection as a copy
        of the pretrained one, the unused text projections of ``attn2`` at zero. This start is not a no-op:
        the zero keys of the LR tokens still take a share of the softmax.

        Args:
            source: the SD3 transformer, its folder, or a pipeline folder that has it under ``transformer``.
            compat: see the class.
            control_conv_factor: see the class; 1.0 for training.
            kwargs: handed to ``SD3Transformer2DModel.from_pretrained`` (``torch_dtype``, ``subfolder``, ...).

        Returns:
            The model in training mode, its base frozen.

        Raises:
            PolyditError: there is no SD3 transformer.
        """
        if not isinstance(source, SD3Transformer2DModel):
            if (Path(source) / "model_index.json").is_file():
                kwargs.setdefault("subfolder", "transformer")
            try:
                source = SD3Transformer2DModel.from_pretrained(source, **kwargs)
            except OSError as error:
                raise _no_sd3(source, error) from error
        config = {k: v for k, v in source.config.items() if not k.startswith("_")}
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            model = cls.from_config(config, compat=compat, control_conv_factor=control_conv_factor)
        model.load_state_dict(source.state_dict(), strict=False, assign=True)
        reference = source.proj_out.weight
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    zeros = torch.zeros(parameter.shape, dtype=reference.dtype, device=reference.device)
                    module.register_parameter(name, nn.Parameter(zeros))
        for block in model.transformer_blocks:
            block.reset_control()
        model.freeze_base()
        return model.train()


def _no_sd3(source: Any, error: Exception) -> PolyditError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return PolyditError(f"{source}: no SD3 transformer in diffusers format ({line}).")


def dit4sr_from_official(state_dict: Mapping[str, torch.Tensor], **config: Any) -> DiT4SR:
    """The model of an official DiT4SR state dict, whose names are already ours.

    Args:
        state_dict: the tensors of a released ``transformer/`` folder, any floating dtype.
        config: arguments of :class:`DiT4SR`; ``compat`` defaults to ``"published"`` (``dit4sr_q`` and
            ``dit4sr_f``), ``dit4sr_r1`` needs ``"intended"``.

    Returns:
        The model in float32, in eval mode, on its own copy of the weights.

    Raises:
        PolyditError: an argument is unknown; names or shapes do not match the configuration.
    """
    arguments = inspect.signature(DiT4SR.__init__).parameters
    if unknown := [name for name in config if name not in arguments]:
        raise PolyditError(
            f"dit4sr configuration: {unknown[0]!r} is unknown; use {', '.join([*arguments][1:])}."
        )
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = DiT4SR(**config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    wrong = [name for name in {**expected, **given} if expected.get(name) != given.get(name)]
    if wrong:
        raise PolyditError(
            f"dit4sr weights: {len(wrong)} of {len(expected)} tensors are missing, unknown or of another "
            f"shape (first {', '.join(wrong[:3])}); check that the configuration belongs to this checkpoint."
        )
    own = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in state_dict.items()}
    model.load_state_dict(own, assign=True)
    return model.eval()


def dit4sr_to_official(model: DiT4SR) -> dict[str, torch.Tensor]:
    """The state dict under the official names, as the authors' ``transformer/`` folder stores it."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}
