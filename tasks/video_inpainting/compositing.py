"""What GenCompositor diffuses and what its network is shown: foreground, masked background, mask, and where things go.

"GenCompositor: Generative Video Compositing with Diffusion Transformer", arXiv 2509.02460.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ...core.alpha import fill_smoothly
from ...core.backbones.pretrained import PretrainedTransformer
from ...core.conditioning import TokenGroup, forward_groups
from ...core.conditioning.positions import Position
from ...core.diffusion import Parameterization
from ...core.errors import PolyditError
from .formulation import latent_mask

__all__ = [
    "CompositingFormulation",
    "Scene",
    "centred",
    "gamma_adjusted",
    "guess_of",
    "inflated",
    "keyed",
    "parse_path",
    "placed",
]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """What is given of a clip; colours and masks in [0, 1].

    Attributes:
        background: (B, 3, T, H, W), black inside the mask.
        mask: (B, 1, T, H, W), 0 or 1, inflated: where something may change.
        foreground: (B, 3, T, H, W), what is put in, in the middle, on white.
        guess: (B, 3, T, H, W), the background filled smoothly with the foreground pasted over it.
    """

    background: Tensor
    mask: Tensor
    foreground: Tensor
    guess: Tensor


@dataclass(frozen=True)
class CompositingFormulation:
    """How clips become what the network works on, and back.

    Attributes:
        residual_scale: if set, for pixel space, the network works on what the pasted guess lacks, in these units.
        frames: of a window.
        known: frames of the result that the next window is given as background.
        inflate: pixels by which the mask of what is put in grows, for shadows and rims; 25 as released.
        layout: of the places of both streams in a ``CompositingTransformer``: ``paper`` or ``released``.
        side: longer side in pixels at which the network sees a frame.
        hints: whether there is a background branch.
    """

    residual_scale: float | None = None
    frames: int = 49
    known: int = 9
    inflate: int = 25
    layout: str = "paper"
    side: int = 720
    hints: bool = True

    def __post_init__(self) -> None:
        if self.residual_scale is not None and self.residual_scale <= 0:
            raise PolyditError("residual_scale: is above 0, or left out")
        if not 0 <= self.known < self.frames:
            raise PolyditError(f"known {self.known}: fewer frames than the {self.frames} of a window")

    def config(self) -> dict[str, Any]:
        """JSON-ready description, stored in the pipeline folder."""
        return asdict(self)

    def conditions(self, scene: Scene, space: Any) -> dict[str, Tensor]:
        """Latents of background and foreground, and the mask on their grid."""
        background = space.encode(scene.background * 2 - 1)
        size = tuple(background.shape[2:])
        if space.temporal_factor > 1:  # as released: the nearest in time too
            mask = F.interpolate(scene.mask, size, mode="nearest")
        else:
            mask = latent_mask(scene.mask, size, 1)
        return {"background": background, "foreground": space.encode(scene.foreground * 2 - 1), "mask": mask}

    def target(self, scene: Scene, clean: Tensor, space: Any) -> Tensor:
        """What the network shall make of ``clean`` (B, 3, T, H, W) in [-1, 1]."""
        if self.residual_scale is not None:
            return scene.mask * ((clean.float() + 1) / 2 - scene.guess) / self.residual_scale
        return space.encode(clean)

    def finish(self, x0: Tensor, scene: Scene, space: Any) -> Tensor:
        """The inverse of :meth:`target`: a clip in [0, 1]."""
        if self.residual_scale is not None:
            return (scene.guess + scene.mask * x0 * self.residual_scale).clamp(0, 1)
        return ((space.decode(x0) + 1) / 2).clamp(0, 1)

    def predict(
        self,
        network: nn.Module,
        branch: nn.Module | None,
        x_t: Tensor,
        timestep: Tensor,
        given: Mapping[str, Tensor],
        parameterization: Parameterization,
        text: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """One call of the network and its branch; both streams have the noisy one's timestep.

        Args:
            network: the adapter of a ``CompositingTransformer``, or a ``TokenGroupDiT`` of 3 C channels with a
                condition called foreground.
            branch: the background's side branch, or None.
            x_t: (B, C, t, h, w).
            timestep: (B,), as the network takes it.
            given: of :meth:`conditions`.
            parameterization: what the network's output means.
            text: what a pretrained network reads.

        Returns:
            Like ``x_t``.
        """
        background, foreground, mask = (
            given[name].to(x_t.dtype) for name in ("background", "foreground", "mask")
        )
        options = dict(text or {})
        if isinstance(network, PretrainedTransformer):
            network.layout = self.layout
            both, hints = torch.cat([x_t, background], 1), None
            if branch is not None:
                hints = branch(torch.cat([both, mask], 1), timestep, mask=mask, **options)
            answer: Tensor = network(
                both, timestep, foreground=foreground, block_controlnet_hidden_states=hints, **options
            ).sample
            return answer
        if self.residual_scale is not None:  # the noise of what is not asked about says nothing
            x_t = x_t * parameterization.signal_gain(timestep).view(-1, 1, 1, 1, 1).to(x_t.dtype)
        empty = torch.zeros_like(x_t)
        both = torch.cat([x_t, background, empty], 1)
        hints = branch(torch.cat([both, mask], 1), timestep, mask=mask) if branch is not None else None
        place = Position.beside(network.grid_of(both), -2)  # extended rotary positions, the paper's layout
        groups = [
            TokenGroup("target", both, timestep=timestep),
            TokenGroup(
                "foreground",
                torch.cat([empty, empty, foreground], 1),
                timestep=timestep,
                position=place,
                type_embedding=network.type_embed["foreground"],
            ),
        ]
        residuals = {"target": hints} if hints is not None else None
        return forward_groups(network, groups, None, ("target",), residuals=residuals)["target"]


# -- masks and foregrounds ---------------------------------------------------------------------------------


def inflated(
    mask: NDArray[np.uint8], kernel: int = 51, sigma: float = 10.0, least: float = 1e-4
) -> NDArray[np.bool_]:
    """Clean a mask (H, W) and grow it as the released code does.

    Opened by a 3 x 3 cross, without pieces of up to ``least`` of the picture, blurred by a Gaussian that is not
    normalised, so that whatever it touches with 1 of 255 or more counts: about 25 pixels on each side.

    Args:
        mask: 0 .. 255; above 128 is set.
        kernel: side of the Gaussian in pixels.
        sigma: of the Gaussian.
        least: share of the picture.
    """
    from scipy.ndimage import correlate1d

    clean = cleaned(mask, least)
    if not clean.any():
        return clean
    reach = np.arange(kernel) - kernel // 2
    weights = np.exp(-(reach.astype(np.float64) ** 2) / (2 * sigma**2))
    blurred = clean.astype(np.float64)
    for axis in (0, 1):
        blurred = correlate1d(blurred, weights, axis=axis, mode="constant")
    grown: NDArray[np.bool_] = (blurred * 255).clip(0, 255).astype(np.uint8) > 0
    return grown


def cleaned(mask: NDArray[np.uint8], least: float = 1e-4) -> NDArray[np.bool_]:
    """A mask without specks: see :func:`inflated`."""
    from scipy.ndimage import binary_opening, generate_binary_structure, label

    opened = binary_opening(mask > 128, generate_binary_structure(2, 1))
    pieces, count = label(opened, np.ones((3, 3)))
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    keep = areas > least * mask.size
    keep[0] = False
    found: NDArray[np.bool_] = keep[pieces]
    return found


def gamma_adjusted(frames: Pixels, gamma: float) -> Pixels:
    """Frames of another luminance: every level to the power of ``gamma``, rounded down, as the released code does."""
    levels = (np.arange(256, dtype=np.float64) / 255) ** gamma * 255
    return levels.clip(0, 255).astype(np.uint8)[frames]


def keyed(frame: Pixels) -> NDArray[np.float32]:
    """Alpha (h, w) of an element on a plain background, which is the colour of the frame's border."""
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]]).astype(np.float32)
    plain = np.median(border, 0)
    distance = np.abs(frame.astype(np.float32) - plain).max(-1)
    alpha: NDArray[np.float32] = ((distance - 12) / 36).clip(0, 1)
    return alpha


def centred(elements: Sequence[Pixels], size: tuple[int, int]) -> Pixels:
    """Elements (h, w, 4) with straight alpha as frames (T, H, W, 3): in the middle, on white, all at one scale."""
    height, width = size
    largest = max(max(max(element.shape[:2]) for element in elements), 1)
    ratio = 0.9 * min(size) / largest
    frames = []
    for element in elements:
        canvas = Image.new("RGBA", (width, height), "white")
        if element.size:
            shape = [max(1, round(side * ratio)) for side in (element.shape[1], element.shape[0])]
            small = Image.fromarray(element).resize((shape[0], shape[1]), Image.Resampling.BICUBIC)
            canvas.alpha_composite(small, ((width - shape[0]) // 2, (height - shape[1]) // 2))
        frames.append(np.asarray(canvas.convert("RGB")))
    return np.stack(frames)


def placed(element: Pixels, middle: tuple[float, float], height: float, size: tuple[int, int]) -> Pixels:
    """An element (h, w, 4) of so many rows, its middle at (column, row), on an empty (H, W, 4) canvas."""
    canvas = Image.new("RGBA", (size[1], size[0]))
    ratio = height / max(1, element.shape[0])
    wide, high = max(1, round(element.shape[1] * ratio)), max(1, round(height))
    small = (
        Image.fromarray(element)
        .convert("RGBa")
        .resize((wide, high), Image.Resampling.BICUBIC)
        .convert("RGBA")
    )
    canvas.paste(small, (round(middle[0] - wide / 2), round(middle[1] - high / 2)))
    return np.asarray(canvas)


def parse_path(text: str | None, size: tuple[int, int], frames: int) -> list[tuple[float, float]]:
    """Where the middle is in each frame: ``"x,y@frame x,y@frame ..."``, straight lines between.

    Args:
        text: one point needs no frame; None is the middle of the picture.
        size: (height, width).
        frames: of the video.

    Raises:
        PolyditError: it is something else.
    """
    if text is None:
        return [(size[1] / 2, size[0] / 2)] * frames
    points: dict[int, tuple[float, float]] = {}
    try:
        for number, word in enumerate(text.replace(";", " ").split()):
            place, _, frame = word.partition("@")
            x, y = (float(part) for part in place.split(","))
            if not frame and number:
                raise ValueError
            points[int(frame or 0)] = (x, y)
        known = sorted(points)
    except ValueError:
        known = []
    if not known:
        raise PolyditError(
            f"--path {text!r}: give points in pixels with their frames, such as '40,60@0 200,80@24'"
        )
    at = np.arange(frames)
    columns, rows = (np.interp(at, known, [points[k][axis] for k in known]) for axis in (0, 1))
    return [(float(x), float(y)) for x, y in zip(columns, rows, strict=True)]


def guess_of(background: Tensor, mask: Tensor, pasted: Tensor, alpha: Tensor) -> Tensor:
    """The background filled smoothly inside the mask, with the foreground over it.

    Args:
        background: (T, 3, H, W) in [0, 1].
        mask: (T, 1, H, W).
        pasted: (T, 3, H, W), colours of the foreground in its place.
        alpha: (T, 1, H, W).
    """
    filled = fill_smoothly(background, 1 - (mask > 0).float())
    return filled + alpha * (pasted - filled)
