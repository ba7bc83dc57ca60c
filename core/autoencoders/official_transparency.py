"""Released weights of latent transparency: two files of the SDXL release, or the one file of the port to FLUX."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbones.official import load_matching
from ..errors import PolyditError
from .transparency_nets import OffsetEncoder, TransparencyDecoder

__all__ = ["TransparencyNets", "layerdiffuse_from_official", "layerdiffuse_to_official"]


class TransparencyNets(nn.Module):
    """Encoder and decoder under the names of the combined file: ``encoder.``, ``decoder.``."""

    def __init__(self, encoder: OffsetEncoder | None, decoder: TransparencyDecoder | None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def layerdiffuse_from_official(state_dict: dict[str, Tensor], **config: Any) -> TransparencyNets:
    """Both networks, or the one that the file holds.

    The files: ``ld_diffusers_sdxl_vae_transparent_encoder.safetensors`` (``blocks.N``), ``..._decoder.safetensors``
    (``conv_in``, ``latent_conv_in``, diffusers' blocks), or ``TransparentVAE.pth`` with both under ``encoder.`` and
    ``decoder.`` and the autoencoder's own weights under ``sd_vae.``, which are left out. The sizes follow from the
    weights; the order of the channels does not, see ``guess_channel_order``.

    Args:
        state_dict: of any of them.
        **config: of the decoder, where it differs from the published one: ``attention_head_dim``,
            ``norm_num_groups``.

    Raises:
        PolyditError: it is none of them.
    """
    weights = {k: v for k, v in state_dict.items() if not k.startswith("sd_vae.")}
    if any(k.startswith("blocks.") for k in weights):
        weights = {f"encoder.{k}": v for k, v in weights.items()}
    elif "latent_conv_in.weight" in weights:
        weights = {f"decoder.{k}": v for k, v in weights.items()}
    encoder, decoder = None, None
    if "encoder.blocks.0.weight" in weights:
        widths = [weights[f"encoder.blocks.{2 * i}.weight"].shape[0] for i in (1, 3, 5, 7)]
        encoder = OffsetEncoder(weights["encoder.blocks.16.weight"].shape[0], widths)
    if "decoder.latent_conv_in.weight" in weights:
        levels = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("decoder.down_blocks."))
        names = [f"decoder.down_blocks.{level}." for level in range(levels)]
        settings = {
            "latent_channels": weights["decoder.latent_conv_in.weight"].shape[1],
            "block_out_channels": [weights[f"{name}resnets.0.conv2.weight"].shape[0] for name in names],
            "attention_levels": sum(f"{name}attentions.0.to_q.weight" in weights for name in names),
            "layers_per_block": sum(f"{names[0]}resnets.{i}.conv1.weight" in weights for i in range(8)),
        }
        known = ("attention_head_dim", "norm_num_groups")
        unknown = sorted(set(config) - {*known, *settings, "unet", "offset_encoder_widths", "alpha_scale"})
        if unknown:
            raise PolyditError(f"layerdiffuse: unknown setting {unknown[0]}; it has {', '.join(known)}")
        config = {**config, **{k: v for k, v in config.get("unet", {}).items() if k in known}}
        decoder = TransparencyDecoder(**settings, **{k: v for k, v in config.items() if k in known})
    if encoder is None and decoder is None:
        raise PolyditError(
            "layerdiffuse checkpoint: holds neither an offset encoder (blocks.0) nor a transparency decoder "
            "(latent_conv_in); give the transparent encoder or decoder file"
        )
    return load_matching(TransparencyNets(encoder, decoder), weights, "layerdiffuse")


def layerdiffuse_to_official(model: TransparencyNets) -> dict[str, Tensor]:
    """The combined file's names; a single network has those of its own file."""
    state = model.state_dict()
    prefixes = {key.split(".")[0] for key in state}
    if len(prefixes) == 1:
        return {key.split(".", 1)[1]: value for key, value in state.items()}
    return state
