"""GNVC-VD: "Generative Neural Video Compression via Video Diffusion Prior" (CVPR 2026).

A contextual codec of a video autoencoder's latents (`contextual`, `coding`), whose decoded latents a video diffusion
transformer refines by partial flow matching (`refinement`), told what was decoded by an adapter (`adapter`). `model`
trains, `pipeline` runs, `system` writes and reads files. No official code was published when this was written: the
latent codec follows DCVC-RT (arXiv 2502.20762), as the paper says its own does, at the sizes that fit Wan's latents.
"""

from __future__ import annotations
