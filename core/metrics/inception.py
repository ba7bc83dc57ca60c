"""The Inception network whose pooled features define FID and KID."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import Weights, load_into

__all__ = ["InceptionFeatures"]

_FILE = "pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
_Kernel = int | tuple[int, int]


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of the Inception-v3 that FID was defined with, from the user's weights.

    "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567), with the three changes of
    the 2015 TensorFlow graph: average pools that do not count the padding, and a maximum in place of the
    average in the last block. Pictures are resized to 299x299 bilinearly without antialiasing, as pytorch-fid
    does. Keys are those of ``pt_inception-2015-12-05-6726825d.pth``; its classifier is ignored.
    """

    size = 2048

    def __init__(self, weights: Weights | None = None) -> None:
        """Load the weights.

        Raises:
            MissingWeightsError: the file is missing; the message names it.
            PolyditError: the file is another network's.
        """
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _Grid35(192, 32)
        self.Mixed_5c = _Grid35(256, 64)
        self.Mixed_5d = _Grid35(288, 64)
        self.Mixed_6a = _To17(288)
        self.Mixed_6b = _Grid17(768, 128)
        self.Mixed_6c = _Grid17(768, 160)
        self.Mixed_6d = _Grid17(768, 160)
        self.Mixed_6e = _Grid17(768, 192)
        self.Mixed_7a = _To8(768)
        self.Mixed_7b = _Grid8(1280, maximum=False)
        self.Mixed_7c = _Grid8(2048, maximum=True)
        load_into(self, weights, "FID/KID", _FILE)
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, 2048)."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
            raise ValueError(f"FID/KID: takes float (B, 3, H, W) in [-1, 1], not {tuple(pictures.shape)}")
        x = F.interpolate(pictures.float(), (299, 299), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (B, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        return x.mean((2, 3))


class _Conv(nn.Module):
    def __init__(self, width: int, out: int, kernel: _Kernel, stride: int = 1, padding: _Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _row7(width: int, out: int) -> _Conv:
    return _Conv(width, out, (1, 7), padding=(0, 3))


def _column7(width: int, out: int) -> _Conv:
    return _Conv(width, out, (7, 1), padding=(3, 0))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _Grid35(nn.Module):
    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 64, 1)
        self.branch5x5_1 = _Conv(width, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(width, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average(x)),
        ]
        return torch.cat(branches, 1)


class _To17(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _Grid17(nn.Module):
    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 192, 1)
        self.branch7x7_1 = _Conv(width, middle, 1)
        self.branch7x7_2 = _row7(middle, middle)
        self.branch7x7_3 = _column7(middle, 192)
        self.branch7x7dbl_1 = _Conv(width, middle, 1)
        self.branch7x7dbl_2 = _column7(middle, middle)
        self.branch7x7dbl_3 = _row7(middle, middle)
        self.branch7x7dbl_4 = _column7(middle, middle)
        self.branch7x7dbl_5 = _row7(middle, 192)
        self.branch_pool = _Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average(x)),
        ]
        return torch.cat(branches, 1)


class _To8(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(width, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(width, 192, 1)
        self.branch7x7x3_2 = _row7(192, 192)
        self.branch7x7x3_3 = _column7(192, 192)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class _Grid8(nn.Module):
    def __init__(self, width: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = _Conv(width, 320, 1)
        self.branch3x3_1 = _Conv(width, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(width, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average(x)
        branches = [
            self.branch1x1(x),
            *(self.branch3x3_2a(three), self.branch3x3_2b(three)),
            *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)
