"""Flow-matching refinement that starts from decoded latents, partly noised.

The paper's time runs from noise (0) to data (1) and starts at 0.7; the project's runs from data (0) to noise (1), so it
starts at 0.3. The straight path from the start to the clean latents has, in project time, the velocity
``(noise - clean) + (1 - start) / start * (coded - clean)``: what the pretrained transformer knows, and a correction for
what coding did, which the adapter learns. Euler's method with the true velocity ends at the clean latents exactly, in
any number of steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .....core.backbones.pretrained import PretrainedTransformer, adapt_transformer
from .....core.diffusion import Denoise, LinearPath, Parameterization, TimeConvention, refine
from .adapter import ContextAdapter

__all__ = [
    "START",
    "STEPS",
    "backbone_of",
    "denoiser",
    "fixed_noise",
    "path_point",
    "refine_latents",
    "true_velocity",
]

START = 0.3
STEPS = 5
FLOW = Parameterization(LinearPath(), "velocity", TimeConvention(scale=1000.0))


def true_velocity(clean: Tensor, coded: Tensor, noise: Tensor, start: float = START) -> Tensor:
    """The velocity of the straight path from the start to the clean latents, in project time."""
    return (noise - clean) + (1 - start) / start * (coded - clean)


def path_point(clean: Tensor, coded: Tensor, noise: Tensor, t: Tensor, start: float = START) -> Tensor:
    """The path at project times t (B,) in 0..start."""
    begin = (1 - start) * coded + start * noise
    share = (t / start).view(-1, *[1] * (clean.ndim - 1))
    return clean + share * (begin - clean)


def refine_latents(
    denoise: Denoise, coded: Tensor, noise: Tensor, start: float = START, steps: int = STEPS
) -> Tensor:
    """Refine decoded latents (B, C, T, h, w) in Euler steps, deterministic given the noise."""
    return refine(denoise, coded, FLOW, steps, start=start, noise=noise)


def backbone_of(transformer: nn.Module) -> nn.Module:
    """A transformer behind the call of a backbone; VACE, which takes its control itself, and native ones stay."""
    if type(transformer).__name__ in ("DiT", "WanVACETransformer3DModel"):
        return transformer
    return transformer if isinstance(transformer, PretrainedTransformer) else adapt_transformer(transformer)


def denoiser(transformer: nn.Module, adapter: ContextAdapter | None, features: Tensor) -> Denoise:
    """The transformer with the codec's features filled in.

    Args:
        transformer: a native DiT, an adapted diffusers transformer (``WanTransformer3DModel``), or diffusers' own
            ``WanVACETransformer3DModel``, which takes the features as its control.
        adapter: what turns features into additions; None with VACE, or to leave the features out.
        features: (B, width, T, h, w).
    """
    condition: dict[str, object] = {}
    prompt = None if adapter is None else adapter.prompt
    if prompt is not None:
        condition["encoder_hidden_states"] = prompt.expand(len(features), -1, -1).to(features)
    if type(transformer).__name__ == "WanVACETransformer3DModel":
        condition["control_hidden_states"] = features
        if prompt is None:
            width = transformer.config.text_dim
            condition["encoder_hidden_states"] = features.new_zeros(len(features), 1, width)
    elif adapter is not None:
        condition["block_controlnet_hidden_states"] = adapter(features)

    def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
        answer = transformer(x_t, timestep, **condition)
        return answer.sample if hasattr(answer, "sample") else answer

    return denoise


def fixed_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise that is a part of the file format: Philox bits, Box-Muller in double precision.

    Args:
        shape: of the result, float32.
        seed: stands in the file.
    """
    count = int(np.prod(shape))
    bits = np.random.Philox(key=seed).random_raw(count + count % 2)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    radius = np.sqrt(-2 * np.log(uniform[::2]))
    angle = 2 * np.pi * uniform[1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:count]
    return torch.from_numpy(normal.astype(np.float32)).view(shape)
