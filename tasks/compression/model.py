"""Training of the latent codec of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from .codec import LAST_QUALITY, Coded, step_of
from .picture_codec import PictureCodec

__all__ = ["PictureCompression"]


class PictureCompression(DiffusionModule):
    """Rate and distortion of a latent codec at all qualities at once; nothing is diffused.

    The loss of a crop is its bits per pixel plus its squared error over ``balance * step**2``: for values that are
    quantised finely, the error falls by ``step**2 * 2 ln 2 / 36`` for a bit per pixel, so 0.04 balances all qualities.
    Crops count the more, the coarser their step, so that a percent of the bits weighs about the same at every quality.

    Args:
        backbone: the codec.
        balance: squared error, in squared steps, that a bit per pixel is worth.
        thrift: the same for the rounding of each coefficient; see `Rounding`.
        **kwargs: of :class:`DiffusionModule`; ``objective`` and ``autoencoder`` have no part here. ``init_weights`` may
            also be a pipeline of this task, whose integers become weights again.

    Raises:
        PolyditError: the backbone is another one.
    """

    def __init__(
        self, backbone: PictureCodec, balance: float = 0.04, thrift: float = 0.1, **kwargs: Any
    ) -> None:
        if not isinstance(backbone, PictureCodec):
            raise PolyditError(
                f"--model.backbone: {type(backbone).__name__} is no PictureCodec; take PictureCodec"
            )
        if backbone.config.frozen:
            raise PolyditError("--model.backbone.frozen: integers cannot be trained; leave it out")
        if balance <= 0 or thrift < 0:
            raise PolyditError(
                f"--model.balance {balance}, --model.thrift {thrift}: must be above 0, and 0 or more"
            )
        source = kwargs.get("init_weights")
        saved = None if source is None else _saved_codec(source)
        if saved is not None:
            kwargs["init_weights"] = None
            _copy_into(backbone, saved, str(source))
        super().__init__(backbone, **kwargs)
        self.init_weights = source
        self.balance, self.thrift = balance, thrift

    def setup(self, stage: str) -> None:
        """Start a new run with the statistics of the data."""
        super().setup(stage)
        samples = getattr(getattr(self.trainer, "datamodule", None), "train_set", None)
        if (
            stage == "fit"
            and samples is not None
            and self.trainer.ckpt_path is None
            and self.init_weights is None
        ):
            self.backbone.start_from(torch.stack([samples[number]["picture"] for number in range(24)]))

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The pictures (B, 3, H, W)."""
        return batch["picture"]

    def qualities(self, count: int, first: int | None) -> Tensor:
        """Quality indices of a batch: drawn at random, or spread evenly over the held-out samples."""
        if first is None:
            return torch.randint(LAST_QUALITY + 1, (count,))
        return (torch.arange(first, first + count) * 149) % (LAST_QUALITY + 1)

    @staticmethod
    def emphasis(quality: Tensor) -> Tensor:
        """What the loss of each crop is multiplied by: 1 at the middle quality, as rates go with step**-1.25."""
        return (step_of(quality) / step_of(torch.tensor(LAST_QUALITY / 2))) ** 1.25

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """Rate (weighted bits per pixel) and distortion (in the same unit), and what was reconstructed."""
        pictures = self.target(batch)
        self.batch_samples = len(pictures)
        quality = self.qualities(len(pictures), first).to(pictures.device)
        coded: Coded = self.backbone(pictures, quality, self.thrift)
        weight = self.emphasis(quality)
        rate = weight * coded.bits / pictures[0, 0].numel()
        error = ((coded.pictures.float() - pictures.float()) * 127.5).square().mean((1, 2, 3))
        distortion = weight * error / (self.balance * step_of(quality).square())
        terms = {"rate": rate.mean(), "distortion": distortion.mean()}
        output = ObjectiveOutput(
            loss=terms["rate"] + terms["distortion"],
            loss_per_sample=(rate + distortion).detach(),
            x0=coded.pictures,
            x_t=pictures,
            t=pictures.new_zeros(len(pictures)),
            noise=torch.zeros_like(pictures),
            prediction=coded.pictures,
        )
        return terms, output

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over a copy of the codec that holds integers."""
        from .pipeline import CompressionPipeline

        return CompressionPipeline(self.backbone.frozen_copy())

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """The first held-out pictures and what is left of them at three qualities."""
        panels = []
        for picture in batch["picture"][:3]:
            given = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            shown = {"picture": given}
            for quality in (1, 3, 6):
                coded = pipeline(given, quality=quality)
                shown[f"{quality}: {coded.bits_per_pixel[0]:.2f} bpp"] = coded.images[0]
            panels.append(shown)
        return panels


def _saved_codec(source: str | Path) -> PictureCodec | None:
    """The codec of a pipeline's folder, or None where the source is something else."""
    folder = Path(source).expanduser()
    for place in (folder, folder / "codec"):
        if (place / "config.json").is_file():
            return PictureCodec.from_pretrained(str(place), local_files_only=True)
    return None


def _copy_into(backbone: PictureCodec, saved: PictureCodec, source: str) -> None:
    """Take the weights of a saved codec.

    Raises:
        PolyditError: it has other sizes.
    """
    try:
        backbone.load_state_dict(saved.thaw().state_dict())
    except RuntimeError as error:
        raise PolyditError(
            f"--model.init_weights {source}: a codec of other sizes; use the backbone settings it was saved with"
        ) from error
