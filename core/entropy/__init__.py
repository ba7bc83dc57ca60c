"""What learned codecs say about the probability of their latents: priors, context in passes, and exact arithmetic.

Nothing here knows a file format: a :data:`~polydit.core.entropy.quadtree.Quantizer` rounds while training, writes while
encoding, reads while decoding, and the networks run the same loop for all three.
"""

from __future__ import annotations

from .depth_conv import ChunkAdd, DepthConvBlock, Downsample, SubpixelUp, WSiLU
from .factorized import FactorizedPrior
from .fixed_point import UNIT, make_exact
from .gaussian import SCALES, gaussian_bits, scale_boundaries, scale_tables
from .quadtree import QuadtreeContext, pass_masks, squeeze, unsqueeze
from .rounding import noisy, round_through

__all__ = [
    "SCALES",
    "UNIT",
    "ChunkAdd",
    "DepthConvBlock",
    "Downsample",
    "FactorizedPrior",
    "QuadtreeContext",
    "SubpixelUp",
    "WSiLU",
    "gaussian_bits",
    "make_exact",
    "noisy",
    "pass_masks",
    "round_through",
    "scale_boundaries",
    "scale_tables",
    "squeeze",
    "unsqueeze",
]
