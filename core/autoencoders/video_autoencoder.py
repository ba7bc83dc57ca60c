"""The autoencoders of diffusers for video: Wan, LTX-Video, CogVideoX."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..errors import PolyditError
from ..tiling import normalised_profiles, tile_starts
from .diffusers_autoencoder import VIDEO, DiffusersAutoencoder

__all__ = ["VideoAutoencoder"]

SEED = 20_240_301


class VideoAutoencoder(DiffusersAutoencoder):
    """A diffusers autoencoder that shrinks time, too.

    The first frame has a latent of its own, every further latent stands for ``temporal_factor`` frames: videos have
    1 + k * ``temporal_factor`` frames, and a picture is a video of one. Scale and shift are those of the configuration
    (CogVideoX: ``scaling_factor``; Wan: per channel) or of the weights (LTX-Video: per channel). Wan and CogVideoX run
    through time in steps that remember what was before, so their memory is bounded and the result exact; LTX-Video
    sees all frames at once, or windows of them.

    LTX-Video from 0.9.1 on decodes at a timestep, from latents with a little noise. Noise is drawn from a fixed seed:
    the same latents give the same pixels.

    Args:
        vae: the loaded model, one of :data:`VIDEO`; kept under the same name, in eval mode.
        tile_size: see :meth:`set_tiling`.
        tile_overlap: see :meth:`set_tiling`.
        tile_frames: see :meth:`set_tiling`.
        frame_overlap: see :meth:`set_tiling`.
        decode_timestep: of a decoder that takes one, 0 (clean) .. 1.
        decode_noise: share of noise in what such a decoder gets.

    Raises:
        PolyditError: another kind of model, or a tile that does not fit it.
    """

    supported: ClassVar[tuple[str, ...]] = VIDEO

    def __init__(
        self,
        vae: ModelMixin,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        tile_frames: int | None = None,
        frame_overlap: int | None = None,
        decode_timestep: float = 0.05,
        decode_noise: float = 0.025,
    ) -> None:
        super().__init__(vae)
        config = vae.config
        self.decode_timestep, self.decode_noise = decode_timestep, decode_noise
        if self._is_ltx:
            self.spatial_factor = vae.spatial_compression_ratio
            self.temporal_factor = vae.temporal_compression_ratio
        elif "temperal_downsample" in config:  # diffusers' spelling
            self.spatial_factor *= config.patch_size or 1
            self.temporal_factor = 2 ** sum(config.temperal_downsample)
            self.pixel_channels //= (config.patch_size or 1) ** 2
        else:
            self.temporal_factor = int(config.temporal_compression_ratio)
        self.set_tiling(tile_size, tile_overlap, tile_frames, frame_overlap)

    @property
    def _is_ltx(self) -> bool:
        return type(self.vae).__name__ == "AutoencoderKLLTXVideo"

    def _scale_and_shift(self) -> tuple[float, float] | tuple[Tensor, Tensor]:
        if self._is_ltx:  # in the weights
            return self.vae.config.scaling_factor / self.vae.latents_std, self.vae.latents_mean
        return super()._scale_and_shift()

    def set_tiling(
        self,
        tile_size: int | None,
        tile_overlap: int | None = None,
        tile_frames: int | None = None,
        frame_overlap: int | None = None,
    ) -> None:
        """Cut larger videos into overlapping tiles and windows of frames that are blended, or stop doing so.

        Args:
            tile_size: side in pixels, a multiple of ``spatial_factor``; None switches tiles off.
            tile_overlap: pixels that neighbours share, a multiple of ``spatial_factor``; default a quarter.
            tile_frames: frames of a window, a multiple of ``temporal_factor``; for LTX-Video only.
            frame_overlap: frames that windows share, a multiple of ``temporal_factor``; default a quarter.
        """
        super().set_tiling(tile_size, tile_overlap)
        factor = self.temporal_factor
        if tile_frames is not None:
            if not self._is_ltx:
                raise PolyditError(
                    f"tile_frames {tile_frames}: {type(self.vae).__name__} runs through time in steps already; "
                    "leave it out"
                )
            if frame_overlap is None:
                frame_overlap = tile_frames // 4 // factor * factor
            fits = tile_frames >= factor and tile_frames % factor == frame_overlap % factor == 0
            if not fits or not 0 <= frame_overlap < tile_frames:
                raise PolyditError(
                    f"tile_frames {tile_frames}, frame_overlap {frame_overlap}: give multiples of {factor}, the "
                    "overlap smaller than the window"
                )
        self.tile_frames, self.frame_overlap = tile_frames, frame_overlap or 0

    def encode(
        self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Normalised latents of pixels.

        Args:
            pixels: (B, 3, T, H, W) in [-1, 1], or (B, 3, H, W) as one frame; T is 1 + k * ``temporal_factor``, H and W
                multiples of ``spatial_factor``.
            sample: draw from the posterior instead of taking its mode.
            generator: for the draw.

        Returns:
            (B, channels, 1 + k, H / factor, W / factor), without time for a picture; float32.

        Raises:
            ValueError: a size or the number of channels does not fit.
        """
        if pixels.ndim == 4:
            return self.encode(pixels.unsqueeze(2), sample, generator).squeeze(2)
        self._check(pixels)
        if (pixels.shape[2] - 1) % self.temporal_factor:
            raise ValueError(
                f"{pixels.shape[2]} frames, and the autoencoder takes 1 more than a multiple of "
                f"{self.temporal_factor}; repeat the last one."
            )
        factor = self.spatial_factor

        def moments(blocks: Tensor) -> Tensor:  # (B, T, C * factor ** 2, h, w)
            return self._moments(F.pixel_shuffle(blocks, factor).transpose(1, 2))

        def window(pixels: Tensor) -> Tensor:
            blocks = F.pixel_unshuffle(pixels.transpose(1, 2), factor)
            return self._tiled(moments, blocks, scale=1)

        raw = self._windows(window, pixels.to(self.vae.dtype), encode=True)
        return self._normalised(raw, sample, generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) or (B, 3, H, W), in about [-1, 1], float32, of normalised latents."""
        if latents.ndim == 4:
            return self.decode(latents.unsqueeze(2)).squeeze(2)
        scale, shift = self._statistics(latents)
        raw = latents.float() / scale + shift
        timestep: dict[str, Tensor] = {}
        if self.vae.config.get("timestep_conditioning"):
            noise = torch.randn(raw.shape, generator=torch.Generator().manual_seed(SEED)).to(raw.device)
            raw = (1 - self.decode_noise) * raw + self.decode_noise * noise
            timestep["temb"] = torch.full(
                (len(raw),), self.decode_timestep, device=raw.device, dtype=self.vae.dtype
            )

        def pixels(raw: Tensor) -> Tensor:
            # CogVideoX makes three frames too many of an even number of latents, all of the first one.
            frames = 1 + (raw.shape[2] - 1) * self.temporal_factor
            return self.vae.decode(raw, **timestep).sample[:, :, -frames:]

        def window(raw: Tensor) -> Tensor:
            return self._tiled(pixels, raw, scale=self.spatial_factor)

        if not any(self.vae.config.get("decoder_inject_noise", ())):
            return self._windows(window, raw.to(self.vae.dtype), encode=False).float()
        with torch.random.fork_rng([raw.device] if raw.is_cuda else []):
            torch.manual_seed(SEED)  # this decoder draws noise in its layers
            return self._windows(window, raw.to(self.vae.dtype), encode=False).float()

    def _windows(self, fn: Callable[[Tensor], Tensor], frames: Tensor, encode: bool) -> Tensor:
        """``fn`` on (B, C, T, ...), in windows of time that are blended if it is longer than one.

        A window begins one latent early, because the first latent of whatever is run stands for a single frame, and
        what came of that one is dropped.
        """
        factor = self.temporal_factor
        count = (frames.shape[2] - 1) // factor + 1 if encode else frames.shape[2]
        if self.tile_frames is None or count * factor <= self.tile_frames:
            return fn(frames)
        size, shared = self.tile_frames // factor, self.frame_overlap // factor
        starts = tile_starts(count, size, shared)
        weights = normalised_profiles(count, starts, size, "cosine").to(frames.device)
        total: Tensor | None = None
        for start, weight in zip(starts, weights, strict=True):
            first = max(start - 1, 0)
            if encode:
                part = fn(frames[:, :, first * factor : (start + size - 1) * factor + 1])[
                    :, :, start - first :
                ]
                at = slice(start, start + size)
            else:
                part = fn(frames[:, :, first : start + size])[:, :, start - first :]
                at = slice(start * factor - (factor - 1 if start else 0), (start + size - 1) * factor + 1)
                weight = weight.repeat_interleave(factor)[-part.shape[2] :]
            if total is None:
                length = count if encode else (count - 1) * factor + 1
                total = part.new_zeros(*part.shape[:2], length, *part.shape[3:], dtype=torch.float32)
            total[:, :, at] += part.float() * weight[:, None, None]
        assert total is not None
        return total
