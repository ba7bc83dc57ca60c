"""Peak signal-to-noise ratio by the super-resolution convention."""

from __future__ import annotations

from torch import Tensor

from .pictures import Channels, Picture, compared

__all__ = ["psnr"]


def psnr(prediction: Picture, target: Picture, *, channels: Channels = "rgb", crop: int = 0) -> Tensor:
    """Return 10 log10(255^2 / MSE) of each picture, in dB: (B,) float64; infinite for equal pictures.

    Both pictures are rounded to 8 bits first. The published super-resolution figures are
    ``channels="y", crop=scale``; compression papers use RGB without a crop.

    Args:
        prediction: see `levels` for the types taken.
        target: of the same shape.
        channels: ``"rgb"``: the error over all channels; ``"y"``: on studio-range luma, 16..235 (a full-range
            Y gives figures that are 20 log10(255/219) = 1.322 dB lower).
        crop: pixels left out along each border.

    Raises:
        ValueError: the shapes differ, or the crop leaves nothing.
    """
    a, b = compared(prediction, target, channels, crop)
    mse = (a - b).square_().mean((1, 2, 3))
    return 10 * (255**2 / mse).log10()
