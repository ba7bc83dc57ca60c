"""DiT-IC's released checkpoints: their key names, there and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .dit_ic import DC_AE, FLOW_SIGMA, SANA_600M, TIMESTEP, DiTIC, DiTICLatentCodec, LatentPrompter
from .elic import ElicAnalysis
from .official import load_matching

__all__ = ["dit_ic_from_official", "dit_ic_to_official"]

# Beginnings of names: released, ours.
PREFIXES = (
    ("codec.h_a.reduction.", "codec.h_a."),
    ("codec.h_s.increase.", "codec.h_s."),
    ("codec.adapter_in.", "codec.context.adapter_in."),
    ("codec.adapter_out.", "codec.context.adapter_out."),
    ("codec.LRP.", "codec.context.LRP."),
    ("codec.g_c.block.", "codec.context.g_c."),
    ("codec.aux.block.", "codec.aux.synthesis_transform."),
    ("DiT.", "transformer."),
    ("aux_codec.analysis_transform.", "features.analysis_transform."),
)
# Parts inside names: a pattern of the released, what it becomes, and back.
INNER = (
    (r"(context\.adapter_(?:in|out)\.\d)\.branch1\.", r"\1.", r"(context\.adapter_(?:in|out)\.\d)\."),
    (r"(context\.LRP\.\d)\.block\.0\.branch1\.", r"\1.", r"(context\.LRP\.\d)\."),
    (r"(codec\.h_s\.[01]\.up)\.conv\.", r"\1.", r"(codec\.h_s\.[01]\.up)\."),
)
INNER_BACK = (r"\1.branch1.", r"\1.block.0.branch1.", r"\1.conv.")
# Constants and what compressai computes from the weights.
CONSTANTS = re.compile(
    r"codec\.(entropy_bottleneck\.(_?(offset|quantized_cdf|cdf_length)|target|likelihood_lower_bound\.bound)"
    r"|gaussian_conditional\..*)$|(^|\.)timesteps?$"
)
# Downsampling and upsampling stand twice in released files, old ones know the second name only.
DOWN = re.compile(r"(codec\.g_a\.(?:pre2\.0|analysis_transform\.2)\.)branch1\.")
UP = re.compile(r"(codec\.(?:(?:g_s|scale|prompt)\.synthesis_transform\.3|aux\.block\.2)\.)branch1\.")
# What only training needs.
TRAINING = re.compile(r"loss\.|linear_proj\.|foundation_model\.|prompter\.(proj_clip\.|logit_scale$)")
OLD_BOTTLENECK = re.compile(r"entropy_bottleneck\._(matrix|bias|factor)(\d)$")
PLURAL = {"matrix": "matrices", "bias": "biases", "factor": "factors"}


def dit_ic_from_official(
    state_dict: dict[str, Tensor],
    ch_emd: int = 32,
    channel: int = 320,
    channel_out: int | None = None,
    hard_coded_widths_replaced: Mapping[str, int] | None = None,
    prompter: Mapping[str, int] | None = None,
    sana: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    time: int = TIMESTEP,
    vae: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A released, merged DiT-IC: ``codec.*``, ``prompter.*``, ``DiT.*``, and ``vae.*``, ``aux_codec.*`` if there.

    Args:
        state_dict: official names.
        ch_emd: channels of the autoencoder's latents.
        channel: width of what is coded.
        channel_out: of the reconstruction; None is ``ch_emd``.
        hard_coded_widths_replaced: for smaller models, what stands for the released code's 320, 192, 128 and 64.
        prompter: arguments of :class:`LatentPrompter`.
        sana: arguments of diffusers' ``SanaTransformer2DModel``; None is SANA-600M.
        scheduler: configuration of diffusers' DPM-Solver, which says how far the step goes and at which timestep.
        time: timestep that the transformer is told without a ``scheduler``.
        vae: arguments of diffusers' ``AutoencoderDC``; None is DC-AE f32c32.

    Raises:
        PolyditError: the weights are of another network.
    """
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    widths = {int(k): v for k, v in (hard_coded_widths_replaced or {}).items()}
    width = widths.get(320, channel)
    state = _ours(state_dict)
    start, timestep = (FLOW_SIGMA, time) if scheduler is None else _start(scheduler)
    has = {name.split(".")[0] for name in state}

    def build() -> DiTIC:
        return DiTIC(
            DiTICLatentCodec(
                ch_emd, channel, channel_out, widths.get(128), widths.get(64), widths.get(192), width
            ),
            LatentPrompter(**(prompter or {})),
            SanaTransformer2DModel(**(sana or SANA_600M)),
            start=start,
            timestep=timestep,
            vae=AutoencoderDC(**(vae or DC_AE)) if "vae" in has else None,
            features=ElicAnalysis(widths.get(192, 192), width) if "features" in has else None,
        )

    with torch.device("meta"):
        model = build()
    if {name for name, _ in model.named_buffers()} - model.state_dict().keys():
        model = build()  # tables that no checkpoint holds
    state = {k: v.clone() for k, v in state.items()}
    state["codec.counts"] = torch.zeros(model.codec.counts.shape, dtype=torch.int32)
    load_matching(model, state, "dit_ic", assign=True).codec.count()
    return model


def dit_ic_to_official(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a :class:`DiTIC` under their official names, with the constants that the released code expects."""
    names = {_official(name): tensor for name, tensor in model.state_dict().items()}
    del names["codec.counts"]  # the released code computes its own
    bounds = {"likelihood_lower_bound.bound": 1e-9, "lower_bound_scale.bound": 0.11, "scale_bound": 0.11}
    constants = {f"codec.gaussian_conditional.{k}": torch.tensor([v]) for k, v in bounds.items()}
    end = torch.log(torch.tensor(2 / 1e-9 - 1))
    constants["codec.entropy_bottleneck.target"] = torch.stack([-end, torch.zeros(()), end])
    constants["codec.entropy_bottleneck.likelihood_lower_bound.bound"] = torch.tensor([1e-9])
    return names | constants


def _start(scheduler: Mapping[str, Any]) -> tuple[float, int]:
    from diffusers import DPMSolverMultistepScheduler

    solver = DPMSolverMultistepScheduler.from_config(dict(scheduler))
    solver.set_timesteps(1)
    return float(solver.sigmas[0]), int(solver.timesteps[0])


def _ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if CONSTANTS.search(name) or TRAINING.match(name):
            continue
        plain = UP.sub(r"\1up.", DOWN.sub(r"\1down.", name))
        if plain != name and plain in state:
            continue
        # The whole of that codec, or its analysis alone; the rest is not used.
        name = re.sub(r"^aux_codec\.g_a\.", "aux_codec.", plain)
        if name.startswith("aux_codec.") and not name.startswith("aux_codec.analysis_transform."):
            continue
        name = OLD_BOTTLENECK.sub(lambda m: f"entropy_bottleneck.{PLURAL[m[1]]}.{m[2]}", name)
        for released, ours in PREFIXES:
            if name.startswith(released):
                name = ours + name.removeprefix(released)
                break
        for pattern, replacement, _ in INNER:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _official(name: str) -> str:
    for (_, _, pattern), replacement in zip(INNER, INNER_BACK, strict=True):
        name = re.sub(pattern, replacement, name)
    for released, ours in PREFIXES:
        if name.startswith(ours):
            return released + name.removeprefix(ours)
    return name
