"""The generative decoder of the small codec: a diffusion transformer that moves a decoded picture in one step.

After DiT-IC ("Aligned Diffusion Transformer for Efficient Image Compression", CVPR 2026): the step starts from what was
decoded, not from noise, and goes as far as the file leaves open. Here the picture is in pixels, and the deviation to
expect comes from the tables that its coefficients were coded with.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import PolyditError
from .codec import LAST_QUALITY, LatentCodec, step_of
from .context import MEAN_UNIT
from .lapped import SIZE
from .rounding import Rounding
from .uncertainty import Uncertainty

__all__ = ["CHANNELS", "Enhancer", "open_enhancer", "reconstruct", "velocity"]

CHANNELS = 7
"""The transformer sees the picture, its detail in units of the deviation to expect, and that deviation."""
SMALLEST = 1e-3
BLUR = 5


def velocity(network: nn.Module, pictures: Tensor, deviation: Tensor, quality: Tensor) -> Tensor:
    """What has to be taken away from decoded pictures.

    Args:
        network: a ``DiT`` of 7 channels in and 3 out; it is told the quality as its timestep, 0 (best) to 1000.
        pictures: decoded, (B, 3, H, W) in [-1, 1].
        deviation: to expect, (B, 1, H / 8, W / 8).
        quality: indices, (B,).

    Returns:
        The network's answer in units of the deviation, (B, 3, H, W): 0 of a new network.
    """
    wide = F.interpolate(deviation, scale_factor=SIZE, mode="bilinear", align_corners=False)
    around = F.pad(pictures, (BLUR // 2,) * 4, mode="replicate")
    detail = (pictures - F.avg_pool2d(around, BLUR, 1)) / wide.clamp(min=SMALLEST)
    # Half a decade of the deviation is a unit.
    seen = torch.cat([pictures, detail.clamp(-8, 8), 2 * torch.log10(wide.clamp(min=SMALLEST)) + 3], dim=1)
    timestep = 1000 * (1 - quality.float() / LAST_QUALITY)
    return wide * network(seen.to(_dtype(network)), timestep).sample.float()


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


@torch.no_grad()
def reconstruct(
    codec: LatentCodec, pictures: Tensor, quality: Tensor, thrift: float = 0.1
) -> tuple[Tensor, Tensor]:
    """What a decoder would have of pictures, without writing a file.

    Args:
        codec: frozen.
        pictures: (B, 3, H, W) in [-1, 1]; sides are multiples of 64.
        quality: indices, (B,).
        thrift: see `Rounding`.

    Returns:
        Decoded pictures, not clipped, and the deviation to expect.
    """
    with torch.autocast(pictures.device.type, enabled=False):  # integers in a lower precision are others
        coarse, fine = codec.analyse(pictures, quality)
        unsure = Uncertainty()
        coarse16, fine16 = codec.code(
            quality,
            (coarse.shape[-2], coarse.shape[-1]),
            Rounding(coarse, codec.tables, thrift),
            unsure.of(Rounding(fine, codec.tables, thrift)),
        )
        found = codec.synthesise(coarse16 / MEAN_UNIT, fine16 / MEAN_UNIT, quality)
    return found.float(), unsure.deviation(step_of(quality))


class Enhancer:
    """The step, as a decoder takes it.

    Args:
        network: see :func:`velocity`.
        fidelity: 1 leaves the decoded picture as it is, 0 takes the whole step.

    Raises:
        PolyditError: fidelity is out of range.
    """

    def __init__(self, network: nn.Module, fidelity: float) -> None:
        if not 0 <= fidelity <= 1:
            raise PolyditError(f"--fidelity {fidelity:g}: give a number from 0 (generative) to 1 (plain)")
        self.network, self.fidelity = network, fidelity

    @torch.no_grad()
    def __call__(self, pictures: Tensor, deviation: Tensor, quality: Tensor) -> Tensor:
        """Enhanced pictures; see :func:`velocity`."""
        if self.fidelity == 1:
            return pictures
        return pictures - (1 - self.fidelity) * velocity(self.network, pictures, deviation, quality)


def open_enhancer(
    folder: str | Path, fidelity: float, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Enhancer:
    """Read the enhancer of a saved pipeline.

    Args:
        folder: of the pipeline, with ``enhancer/config.json``.
        fidelity: see `Enhancer`.
        device: where it computes.
        dtype: of its weights; None is float32.

    Raises:
        PolyditError: there is none in the folder, or it is damaged.
    """
    place = Path(folder).expanduser() / "enhancer"
    if not (place / "config.json").is_file():
        raise PolyditError(
            f"--fidelity {fidelity:g}: {folder} holds no enhancer; leave the option out, or give weights with one"
        )
    from ...core.backbones import DiT

    try:
        network = DiT.from_pretrained(
            str(place), local_files_only=True, use_safetensors=True, torch_dtype=dtype or torch.float32
        )
    except Exception as error:  # of diffusers, safetensors and torch: each has its own for a broken file
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise PolyditError(f"{place}: cannot be read ({line}); get the folder again") from error
    return Enhancer(network.eval().requires_grad_(False).to(device), fidelity)
