"""DiT-IC: coded latents of a 32x autoencoder, decoded in one step of a diffusion transformer.

"DiT-IC: Aligned Diffusion Transformer for Efficient Image Compression" (CVPR 2026), on SANA's checkpoints in diffusers'
format; and its idea in the small: a one-step enhancer behind the small codec.
"""

from __future__ import annotations

__all__: list[str] = []
