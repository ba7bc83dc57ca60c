"""The image autoencoders of diffusers behind one contract, each read by its own configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..errors import PolyditError
from ..tiling import tiled_apply

__all__ = ["DiffusersAutoencoder"]

SUPPORTED = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny", "VQModel")


class DiffusersAutoencoder(nn.Module):
    """A diffusers image autoencoder; the frames of a video go through it one by one.

    Scale and shift are those of the model's configuration: ``scaling_factor`` and ``shift_factor`` (Stable
    Diffusion 3, FLUX), or ``latents_mean`` and ``latents_std`` per channel. A quantised model (``VQModel``)
    gives the latents before quantisation, and ``decode`` quantises. The model keeps its dtype, what goes in
    and comes out is float32.

    Args:
        vae: the loaded model, one of :data:`SUPPORTED`; kept under the same name, in eval mode.
        tile_size: see :meth:`set_tiling`.
        tile_overlap: see :meth:`set_tiling`.

    Raises:
        PolyditError: another kind of model, or a tile that does not fit it.
    """

    temporal_factor = 1

    def __init__(
        self, vae: ModelMixin, tile_size: int | None = None, tile_overlap: int | None = None
    ) -> None:
        super().__init__()
        _check_supported(type(vae).__name__, "vae")
        self.vae = vae.eval()
        config = vae.config
        self.channels: int = config.latent_channels
        # Every supported class halves the picture between its levels.
        levels = config.get("encoder_block_out_channels") or config.block_out_channels
        self.spatial_factor: int = 2 ** (len(levels) - 1)
        self.scale: float | Tensor
        self.shift: float | Tensor
        self.scale, self.shift = _scale_and_shift(config)
        self.set_tiling(tile_size, tile_overlap)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **tiling: int | None,
    ) -> DiffusersAutoencoder:
        """Load from a folder in diffusers format or a hub id.

        Args:
            source: folder of the autoencoder or of a pipeline (its ``vae`` or ``vqvae``), or a hub id.
            subfolder: inside ``source``.
            torch_dtype: of the weights; default float32.
            tiling: ``tile_size`` and ``tile_overlap``, see :meth:`set_tiling`.

        Raises:
            PolyditError: nothing there, not an autoencoder that is supported, or weights that do not fit.
        """
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
        _check_supported(name, place)
        try:
            vae, info = getattr(diffusers, name).from_pretrained(
                source, torch_dtype=torch_dtype, output_loading_info=True, **where
            )
        except Exception as error:  # of diffusers, safetensors and torch: each has its own for a broken file
            raise PolyditError(f"{place}: the weights cannot be loaded ({_first_line(error)}).") from error
        if missing := info["missing_keys"]:
            raise PolyditError(
                f"{place}: {len(missing)} weights are missing, {missing[0]} first; copy it anew."
            )
        return cls(vae, **tiling)

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
            pixels: (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1]; H and W multiples of ``spatial_factor``.
            sample: draw from the posterior instead of taking its mode; no effect on models without one.
            generator: for the draw.

        Returns:
            (B, channels, [T,] H / factor, W / factor), float32.

        Raises:
            ValueError: a side is no multiple of ``spatial_factor``.
        """
        height, width = pixels.shape[-2:]
        if height % self.spatial_factor or width % self.spatial_factor:
            raise ValueError(
                f"pixels of {height}x{width} do not divide by {self.spatial_factor}, the factor of the "
                "autoencoder; pad them."
            )
        return _per_frame(lambda frames: self._encode(frames, sample, generator), pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, [T,] H, W), in about [-1, 1] and not clamped, float32, of normalised latents."""
        return _per_frame(self._decode, latents)

    def _encode(self, pixels: Tensor, sample: bool, generator: torch.Generator | None) -> Tensor:
        factor = self.spatial_factor

        def moments(blocks: Tensor) -> Tensor:
            out = self.vae.encode(F.pixel_shuffle(blocks, factor))
            if "latent_dist" in out:
                return out.latent_dist.parameters
            return out.latent if "latent" in out else out.latents

        # Tiles are counted in latents: each latent's block of pixels travels in the channels.
        blocks = F.pixel_unshuffle(pixels.to(self.vae.dtype), factor)
        raw = self._tiled(moments, blocks, scale=1)
        if raw.shape[1] == 2 * self.channels:
            posterior = DiagonalGaussianDistribution(raw)
            raw = posterior.sample(generator) if sample else posterior.mode()
        scale, shift = self._statistics(raw)
        return (raw.float() - shift) * scale

    def _decode(self, latents: Tensor) -> Tensor:
        scale, shift = self._statistics(latents)
        raw = latents.float() / scale + shift

        def pixels(raw: Tensor) -> Tensor:
            return self.vae.decode(raw).sample

        return self._tiled(pixels, raw.to(self.vae.dtype), scale=self.spatial_factor).float()

    def _tiled(self, fn: Callable[[Tensor], Tensor], grid: Tensor, scale: int) -> Tensor:
        """``fn`` on a grid of latents (B, C, h, w), in tiles if it is larger than one."""
        if self.tile_size is None or max(grid.shape[-2:]) * self.spatial_factor <= self.tile_size:
            return fn(grid)
        tile, overlap = self.tile_size // self.spatial_factor, self.tile_overlap // self.spatial_factor
        return tiled_apply(fn, grid, tile, overlap, scale)

    def _statistics(self, latents: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Scale and shift, ready to be broadcast over (B, C, h, w)."""
        scale, shift = (
            value.to(latents.device)[:, None, None] if isinstance(value, Tensor) else value
            for value in (self.scale, self.shift)
        )
        return scale, shift


def _scale_and_shift(config: Any) -> tuple[float, float] | tuple[Tensor, Tensor]:
    scale, mean, std = config.scaling_factor, config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return scale / torch.tensor(std), torch.tensor(mean)
    return scale, config.get("shift_factor") or 0.0


def _per_frame(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Apply ``fn``, which takes (B, C, H, W), to that or to the frames of (B, C, T, H, W)."""
    if tensor.ndim == 4:
        return fn(tensor)
    frames = fn(tensor.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (tensor.shape[0], -1)).transpose(1, 2)


def _check_supported(name: str, place: str) -> None:
    if name not in SUPPORTED:
        raise PolyditError(
            f"{place}: {name} is not a supported image autoencoder; use {', '.join(SUPPORTED)}."
        )


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
