"""I3D's convolutions, and the Frechet distance of videos in their features (VFID), with weights that the user has.

"Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", arXiv 1705.07750; names of the weights as in the
PyTorch port that video inpainting measures with (``rgb_imagenet.pt`` or ``i3d_rgb_imagenet.pt``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .frechet import frechet_distance
from .weights import Weights, load_into, read_weights

__all__ = ["I3D_FILE", "I3DFeatures", "vfid"]

I3D_FILE = "i3d_rgb_imagenet.pt, of ProPainter's release"

_MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
_POOLS = {"3b": ((1, 3, 3), (1, 2, 2)), "4b": ((3, 3, 3), (2, 2, 2)), "5b": ((2, 2, 2), (2, 2, 2))}


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around (B, C, T, H, W), so that the size is divided by the stride and rounded up, as TensorFlow pads."""
    padding: list[int] = []
    for side, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        missing = max(k - (s if side % s == 0 else side % s), 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(x, padding)


class _Unit(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(_same(x, self.kernel, self.stride))))


class _Mixed(nn.Module):
    def __init__(self, channels: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(channels, sizes[0])
        self.b1a, self.b1b = _Unit(channels, sizes[1]), _Unit(sizes[1], sizes[2], 3)
        self.b2a, self.b2b = _Unit(channels, sizes[3]), _Unit(sizes[3], sizes[4], 3)
        self.b3b = _Unit(channels, sizes[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3DFeatures(nn.Module):
    """Videos to 1024 features each, the mean of the last block ``Mixed_5c``.

    Args:
        weights: of RGB I3D on Kinetics; the classifier's are not needed.

    Raises:
        PolyditError: the file is missing or of another network.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        channels = 192
        for name, sizes in _MIXED.items():
            self.add_module(f"Mixed_{name}", _Mixed(channels, sizes))
            channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        if weights is not None:
            found = read_weights(weights, "VFID", I3D_FILE)
            kept = {k: v for k, v in found.items() if not k.startswith("logits.")}
            # Older files do without these counters, which evaluation does not read.
            kept = {
                **{k: v for k, v in self.state_dict().items() if k.endswith("num_batches_tracked")},
                **kept,
            }
            load_into(self, kept, "VFID", I3D_FILE)
        self.eval().requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [0, 1], 9 frames or more, to (B, 1024)."""
        x = _pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name in _MIXED:
            if name in _POOLS:
                x = _pool(x, *_POOLS[name])
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3, 4))


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_same(x, kernel, stride), kernel, stride)


@torch.no_grad()
def vfid(
    network: nn.Module,
    made: Iterable[NDArray[np.uint8]],
    real: Iterable[NDArray[np.uint8]],
) -> float:
    """Frechet distance between two sets of videos; with fewer videos than features only sets of one size compare.

    Args:
        network: :class:`I3DFeatures`, or what maps (1, 3, T, H, W) in [0, 1] to (1, D).
        made: videos (T, H, W, 3).
        real: as many.
    """

    def moments(videos: Iterable[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        rows = [
            network(torch.from_numpy(v.copy()).permute(3, 0, 1, 2)[None].float() / 255)[0] for v in videos
        ]
        features = torch.stack(rows).double()
        if len(features) < 2:
            raise ValueError("a covariance needs two videos or more")
        return features.mean(0), torch.cov(features.T)

    return float(frechet_distance(*moments(made), *moments(real)))
