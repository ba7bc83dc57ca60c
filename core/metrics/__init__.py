"""What is measured, each metric with its published protocol.

Functions of two pictures: `psnr`, `ssim`, `ms_ssim`, `gmsd`. Networks with the user's weights: `LPIPS`,
`DISTS`. Over a data set: `PictureMean` of any of these, `FrechetDistance` (FID) and `KernelDistance` (KID) on
any features, `InceptionFeatures` among them. Of masks: `saliency_scores` and, over a data set,
`SaliencyMetrics`. Of videos: `.video` (PSNR and SSIM of frames, E_warp).
Of point clouds: `.point_sets`; of solids: `.volumes`.
A metric whose weights are missing raises `MissingWeightsError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .dists import DISTS
from .gmsd import gmsd
from .inception import InceptionFeatures
from .lpips import LPIPS
from .pictures import levels, luma
from .psnr import psnr
from .saliency import saliency_scores
from .ssim import ms_ssim, ssim
from .weights import MissingWeightsError

if TYPE_CHECKING:
    from .average import PictureMean
    from .few_shot import FewShotIoU
    from .frechet import FrechetDistance, frechet_distance
    from .kernel import KernelDistance, kernel_distance
    from .saliency_set import SaliencyMetrics

__all__ = [
    "DISTS",
    "LPIPS",
    "FewShotIoU",
    "FrechetDistance",
    "InceptionFeatures",
    "KernelDistance",
    "MissingWeightsError",
    "PictureMean",
    "SaliencyMetrics",
    "frechet_distance",
    "gmsd",
    "kernel_distance",
    "levels",
    "luma",
    "ms_ssim",
    "psnr",
    "saliency_scores",
    "ssim",
]

# torchmetrics takes two seconds to import; whoever only wants a PSNR does not wait for it.
_NEED_TORCHMETRICS = {
    "FewShotIoU": "few_shot",
    "PictureMean": "average",
    "FrechetDistance": "frechet",
    "frechet_distance": "frechet",
    "KernelDistance": "kernel",
    "kernel_distance": "kernel",
    "SaliencyMetrics": "saliency_set",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCHMETRICS:
        return getattr(import_module(f".{_NEED_TORCHMETRICS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
