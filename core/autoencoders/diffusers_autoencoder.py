"""The autoencoders of diffusers for pictures behind one contract, each read by its own configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..errors import PolyditError
from ..tiling import tiled_apply

__all__ = ["PICTURES", "VIDEO", "DiffusersAutoencoder"]

PICTURES = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny", "VQModel", "AutoencoderKLQwenImage")
"""Classes of diffusers that :class:`DiffusersAutoencoder` wraps."""

VIDEO = ("AutoencoderKLWan", "AutoencoderKLLTXVideo", "AutoencoderKLCogVideoX")
"""Those that :class:`~.video_autoencoder.VideoAutoencoder` wraps."""


class DiffusersAutoencoder(nn.Module):
    """A diffusers image autoencoder; the frames of a video go through it one by one.

    Scale and shift are those of the model's configuration: ``scaling_factor`` and ``shift_factor`` (Stable
    Diffusion 3, FLUX), or ``latents_mean`` and ``latents_std`` per channel. A quantised model (``VQModel``)
    gives the latents before quantisation, and ``decode`` quantises. Qwen-Image's, whose layered variant has
    an alpha channel, is a video model that diffusers uses on single frames, and so does this class. The model
    keeps its dtype, what goes in and comes out is float32.

    Args:
        vae: the loaded model, one of :data:`PICTURES`; kept under the same name, in eval mode.
        tile_size: see :meth:`set_tiling`.
        tile_overlap: see :meth:`set_tiling`.

    Raises:
        PolyditError: another kind of model, or a tile that does not fit it.
    """

    supported: ClassVar[tuple[str, ...]] = PICTURES
    temporal_factor = 1

    def __init__(
        self, vae: ModelMixin, tile_size: int | None = None, tile_overlap: int | None = None
    ) -> None:
        super().__init__()
        name = type(vae).__name__
        if name not in self.supported:
            raise PolyditError(
                f"vae: {name} is not supported by {type(self).__name__}; use {', '.join(self.supported)}"
            )
        self.vae = vae.eval()
        config = vae.config
        self.channels: int = config.get("latent_channels") or config.z_dim
        self.pixel_channels: int = config.get("input_channels") or config.in_channels
        # Every supported class halves the picture between its levels.
        levels = (
            config.get("encoder_block_out_channels") or config.get("block_out_channels") or config.dim_mult
        )
        self.spatial_factor: int = 2 ** (len(levels) - 1)
        self.scale: float | Tensor
        self.shift: float | Tensor
        self.scale, self.shift = self._scale_and_shift()
        self.set_tiling(tile_size, tile_overlap)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **tiling: Any,
    ) -> DiffusersAutoencoder:
        """Load from a folder in diffusers format or a hub id; for video it is a :class:`VideoAutoencoder`.

        Args:
            source: folder of the autoencoder or of a pipeline (its ``vae`` or ``vqvae``), or a hub id. Shipped configs
                leave it open.
            subfolder: inside ``source``.
            torch_dtype: of the weights; default float32.
            tiling: of :meth:`set_tiling`.

        Raises:
            PolyditError: nothing there, not an autoencoder that is supported, or weights that do not fit.
        """
        if source is None:
            raise PolyditError(
                "--model.autoencoder.source: the folder of the autoencoder, in diffusers format, is missing; name it"
            )
        source = str(source)
        if subfolder is None:
            subfolder = _subfolder_of_pipeline(Path(source))
        place = source if subfolder is None else f"{source}/{subfolder}"
        where: dict[str, Any] = {} if subfolder is None else {"subfolder": subfolder}
        try:
            config = diffusers.AutoencoderKL.load_config(source, **where)
        except (OSError, ValueError) as error:
            raise PolyditError(
                f"{place}: no autoencoder in diffusers format ({_first_line(error)})."
            ) from error
        name = str(config.get("_class_name"))
        if name not in (*PICTURES, *VIDEO):
            raise PolyditError(
                f"{place}: {name} is not a supported autoencoder; use {', '.join((*PICTURES, *VIDEO))}."
            )
        try:
            vae, info = getattr(diffusers, name).from_pretrained(
                source, dtype=torch_dtype, output_loading_info=True, **where
            )
        except Exception as error:  # of diffusers, safetensors and torch: each has its own for a broken file
            raise PolyditError(f"{place}: the weights cannot be loaded ({_first_line(error)}).") from error
        if missing := info["missing_keys"]:
            raise PolyditError(
                f"{place}: {len(missing)} weights are missing, {missing[0]} first; copy it anew."
            )
        if name in VIDEO:
            from .video_autoencoder import VideoAutoencoder

            return VideoAutoencoder(vae, **tiling)
        return DiffusersAutoencoder(vae, **tiling)

    @property
    def component(self) -> ModelMixin:
        """The plain diffusers model, which a pipeline registers under ``vae``."""
        return self.vae

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Save the plain diffusers model, as it would save itself."""
        self.vae.save_pretrained(folder, **kwargs)

    def set_tiling(self, tile_size: int | None, tile_overlap: int | None = None) -> None:
        """Cut pictures larger than a tile into overlapping tiles that are blended, or stop doing so.

        Memory is then bounded by the tile. Norms and attention see one tile at a time, so the result is close
        to the untiled one, not equal.

        Args:
            tile_size: side in pixels, a multiple of ``spatial_factor``; None switches tiling off.
            tile_overlap: pixels that neighbours share, a multiple of ``spatial_factor``; default a quarter.
        """
        if tile_size is not None:
            factor = self.spatial_factor
            if tile_overlap is None:
                tile_overlap = tile_size // 4 // factor * factor
            if (
                tile_size < factor
                or tile_size % factor
                or not 0 <= tile_overlap < tile_size
                or tile_overlap % factor
            ):
                raise PolyditError(
                    f"tile_size {tile_size}, tile_overlap {tile_overlap}: give multiples of {factor}, "
                    "the overlap smaller than the tile."
                )
        self.tile_size, self.tile_overlap = tile_size, tile_overlap or 0

    def encode(
        self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Normalised latents of pixels.

        Args:
            pixels: (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1], 4 channels with alpha; H and W multiples of
                ``spatial_factor``.
            sample: draw from the posterior instead of taking its mode; no effect on models without one.
            generator: for the draw.

        Returns:
            (B, channels, [T,] H / factor, W / factor), float32.

        Raises:
            ValueError: a side is no multiple of ``spatial_factor``, or the number of channels is another.
        """
        self._check(pixels)
        return _per_frame(lambda frames: self._encode(frames, sample, generator), pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, [T,] H, W), in about [-1, 1] and not clamped, float32, of normalised latents."""
        return _per_frame(self._decode, latents)

    def _check(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        if height % self.spatial_factor or width % self.spatial_factor:
            raise ValueError(
                f"pixels of {height}x{width} do not divide by {self.spatial_factor}, the factor of the "
                "autoencoder; pad them."
            )
        if pixels.shape[1] != self.pixel_channels:
            raise ValueError(
                f"pixels of {pixels.shape[1]} channels, and the autoencoder takes {self.pixel_channels}"
            )

    def _encode(self, pixels: Tensor, sample: bool, generator: torch.Generator | None) -> Tensor:
        factor = self.spatial_factor

        def moments(blocks: Tensor) -> Tensor:
            return self._moments(F.pixel_shuffle(blocks, factor))

        # Tiles are counted in latents: each latent's block of pixels travels in the channels.
        blocks = F.pixel_unshuffle(pixels.to(self.vae.dtype), factor)
        raw = self._tiled(moments, blocks, scale=1)
        return self._normalised(raw, sample, generator)

    def _moments(self, pixels: Tensor) -> Tensor:
        """What the encoder says of pixels (B, C, H, W): latents, or mean and log-variance along the channels."""
        out = self.vae.encode(pixels.unsqueeze(2) if self._of_frames else pixels)
        if "latent_dist" in out:
            moments = out.latent_dist.parameters
            return moments.squeeze(2) if self._of_frames else moments
        return out.latent if "latent" in out else out.latents

    @property
    def _of_frames(self) -> bool:
        return type(self.vae).__name__ == "AutoencoderKLQwenImage"

    def _normalised(self, raw: Tensor, sample: bool, generator: torch.Generator | None) -> Tensor:
        if raw.shape[1] == 2 * self.channels:
            posterior = DiagonalGaussianDistribution(raw)
            raw = posterior.sample(generator) if sample else posterior.mode()
        scale, shift = self._statistics(raw)
        return (raw.float() - shift) * scale

    def _decode(self, latents: Tensor) -> Tensor:
        scale, shift = self._statistics(latents)
        raw = latents.float() / scale + shift

        def pixels(raw: Tensor) -> Tensor:
            if self._of_frames:
                return self.vae.decode(raw.unsqueeze(2)).sample.squeeze(2)
            return self.vae.decode(raw).sample

        return self._tiled(pixels, raw.to(self.vae.dtype), scale=self.spatial_factor).float()

    def _tiled(self, fn: Callable[[Tensor], Tensor], grid: Tensor, scale: int) -> Tensor:
        """``fn`` on a grid of latents (B, C, h, w), in tiles if it is larger than one."""
        if self.tile_size is None or max(grid.shape[-2:]) * self.spatial_factor <= self.tile_size:
            return fn(grid)
        tile, overlap = self.tile_size // self.spatial_factor, self.tile_overlap // self.spatial_factor
        return tiled_apply(fn, grid, tile, overlap, scale)

    def _statistics(self, latents: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Scale and shift, ready to be broadcast over (B, C, [t,] h, w)."""
        scale, shift = (
            value.to(latents.device).view(-1, *[1] * (latents.ndim - 2))
            if isinstance(value, Tensor)
            else value
            for value in (self.scale, self.shift)
        )
        return scale, shift

    def _scale_and_shift(self) -> tuple[float, float] | tuple[Tensor, Tensor]:
        config = self.vae.config
        scale, mean, std = (
            config.get("scaling_factor", 1.0),
            config.get("latents_mean"),
            config.get("latents_std"),
        )
        if mean is not None and std is not None:
            return scale / torch.tensor(std), torch.tensor(mean)
        return scale, config.get("shift_factor") or 0.0


def _per_frame(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Apply ``fn``, which takes (B, C, H, W), to that or to the frames of (B, C, T, H, W)."""
    if tensor.ndim == 4:
        return fn(tensor)
    frames = fn(tensor.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (tensor.shape[0], -1)).transpose(1, 2)


def _subfolder_of_pipeline(folder: Path) -> str | None:
    """Where a pipeline folder keeps its autoencoder; None if this is no pipeline folder."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    components = json.loads(index.read_text())
    for name in ("vae", "vqvae"):
        if name in components and components[name][0] is not None:
            return name
    raise PolyditError(
        f"{index}: this pipeline has no autoencoder (it works on pixels); name another folder."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
