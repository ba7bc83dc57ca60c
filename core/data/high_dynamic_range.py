"""High dynamic range to what a common screen shows: PQ and HLG to gamma-coded BT.709.

Transfer functions of ITU-R BT.2100; colours of BT.2020 to BT.709 by the matrix of BT.2087; highlights are
compressed by E. Reinhard et al., "Photographic Tone Reproduction for Digital Images" (2002), extended to a white point,
on the largest of the three channels, so that hues stay.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRANSFERS", "to_standard"]

TRANSFERS = {16: "PQ", 18: "HLG"}
"""ffmpeg's numbers of the transfer functions (AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67)."""
REFERENCE_WHITE = 203.0  # cd/m2, ITU-R BT.2408
PEAK = 1000.0
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def to_standard(coded: NDArray[np.uint16], transfer: str) -> NDArray[np.uint8]:
    """Map a picture.

    Args:
        coded: (H, W, 3) uint16, R'G'B' of BT.2020 over the full range.
        transfer: ``"PQ"`` or ``"HLG"``.

    Returns:
        (H, W, 3) uint8, R'G'B' of BT.709. Reference white (203 cd/m2) becomes 194 of 255, the peak (1000) 255.
    """
    light = _linear(transfer)[coded] @ _BT2020_TO_BT709.T
    light = light.clip(0, None)
    largest = light.max(-1, keepdims=True)
    white = PEAK / REFERENCE_WHITE
    shrunk = light * ((1 + largest / white**2) / (1 + largest))
    return _gamma()[np.rint(shrunk.clip(0, 1) * 4095).astype(np.int32)]


@cache
def _linear(transfer: str) -> NDArray[np.float32]:
    """Light over reference white of each of 65536 levels."""
    code = np.linspace(0, 1, 65536)
    if transfer == "PQ":
        power = code ** (1 / 78.84375)
        light = 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (
            1 / 0.1593017578125
        )
    elif transfer == "HLG":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        light = PEAK * scene**1.2  # the system gamma of a 1000 cd/m2 display
    else:
        raise ValueError(f"transfer is {transfer!r}; choose from {', '.join(TRANSFERS.values())}")
    return (light / REFERENCE_WHITE).astype(np.float32)


@cache
def _gamma() -> NDArray[np.uint8]:
    """Levels of 4096 amounts of light in [0, 1], by BT.1886's power of 2.4."""
    return np.rint(255 * np.linspace(0, 1, 4096) ** (1 / 2.4)).astype(np.uint8)
