"""Training of the small video codec."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ....core.diffusion.objective import ObjectiveOutput
from ....core.errors import PolyditError
from ....core.training import DiffusionModule
from ..codec import BLOCK, LAST_QUALITY
from ..context import MEAN_UNIT
from ..lapped import SIZE
from ..rounding import Rounding
from .inter_codec import Known
from .latent_video import State
from .motion import LEVEL, Reference, search
from .video_codec import VideoCodec

__all__ = ["VideoCompression"]

TYPICAL = 90
"""Quality index at which residuals are looked at before training."""


class VideoCompression(DiffusionModule):
    """Rate and distortion of what prediction leaves; nothing is diffused.

    Each clip is coded in the loop that the codec runs (quantise, predict, search), with plain rounding in the place of
    the context models, which do not change what is predicted from. What the residuals then cost is learned.

    Args:
        backbone: the codec.
        pictures: folder of a saved picture codec for first frames; its transform and gains are used for all. Without
            it the context models of first frames are trained along.
        balance: squared error, in squared steps, that a bit per pixel is worth.
        thrift: the same for the rounding of each coefficient; see `Rounding`.
        **kwargs: of :class:`DiffusionModule`; ``objective`` and ``autoencoder`` have no part here. ``init_weights`` may
            also be a pipeline of this codec, whose integers become weights again.

    Raises:
        PolyditError: the backbone is another one.
    """

    def __init__(
        self,
        backbone: VideoCodec,
        pictures: str | None = None,
        balance: float = 0.04,
        thrift: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, VideoCodec):
            raise PolyditError(
                f"--model.backbone: {type(backbone).__name__} is no VideoCodec; take VideoCodec"
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
            backbone.load_state_dict(saved.thaw().state_dict())
        super().__init__(backbone, **kwargs)
        self.init_weights = source
        self.pictures_folder, self.balance, self.thrift = pictures, balance, thrift
        if pictures is not None:
            from ..picture_codec import PictureCodec

            place = Path(pictures).expanduser() / "codec"
            if not (place / "config.json").is_file():
                raise PolyditError(
                    f"--model.pictures {pictures}: holds no picture codec; give the folder of its pipeline"
                )
            backbone.take_pictures_from(
                PictureCodec.from_pretrained(str(place), local_files_only=True).thaw()
            )
            backbone.intra.requires_grad_(False)
        # The transform stays as it is: what is predicted from would change under the context models.
        for parameter in (backbone.intra.log_gains, backbone.intra.lapped.middle):
            parameter.requires_grad_(False)

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
            self.start_from(torch.stack([samples[number]["frames"] for number in range(8)]).float())

    def start_from(self, clips: Tensor) -> None:
        """Begin with the statistics of clips (B, T, 3, H, W), levels 0..255."""
        codec: VideoCodec = self.backbone
        if self.pictures_folder is None:
            codec.intra.start_from(clips[:, 0] / 127.5 - 1)
        _, left = self.simulate(clips, TYPICAL, codec.index_of_predicted(TYPICAL))
        codec.inter.start_from(*codec.analyse(left, 0))

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The clips (B, T, 3, H, W) uint8."""
        return batch["frames"]

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """Rate (bits per pixel of a frame) and distortion (in the rate's unit)."""
        clips = self.target(batch).float()
        self.batch_samples = len(clips)
        index = first * 61 if first is not None else random.randrange(LAST_QUALITY + 1)
        index %= LAST_QUALITY + 1
        codec: VideoCodec = self.backbone
        lower = codec.index_of_predicted(index)
        with torch.autocast(clips.device.type, enabled=False):
            known, left = self.simulate(clips, index, lower)
        coarse, fine = codec.analyse(left, lower)
        roundings = [Rounding(values, codec.inter.tables, self.thrift) for values in (coarse, fine)]
        given = codec.inter.code(codec.synthesis, known, lower, *roundings)
        rate, distortion = self._weigh(roundings, given, (coarse, fine), clips[0, 0, 0].numel())
        terms = {"rate": rate, "distortion": distortion}
        if self.pictures_folder is None:
            quality = torch.full((len(clips),), index)
            levels = codec.analyse(clips[:, 0] - 128, index)
            roundings = [Rounding(values, codec.intra.tables, self.thrift) for values in levels]
            size = (levels[0].shape[-2], levels[0].shape[-1])
            given = codec.intra.code(quality, size, *roundings)
            first_rate, first_distortion = self._weigh(roundings, given, levels, clips[0, 0, 0].numel())
            terms |= {"first_rate": first_rate, "first_distortion": first_distortion}
        loss = torch.stack(list(terms.values())).sum()
        zeros = clips.new_zeros(len(clips))
        output = ObjectiveOutput(
            loss=loss,
            loss_per_sample=zeros + loss.detach(),
            x0=clips,
            x_t=clips,
            t=zeros,
            noise=torch.zeros_like(clips),
            prediction=clips,
        )
        return terms, output

    def _weigh(
        self, roundings: Any, given: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], pixels: int
    ) -> tuple[Tensor, Tensor]:
        rate = sum(rounding.bits for rounding in roundings) / pixels
        # Means of blocks are in both levels; the coarse one says what becomes of them.
        errors = sum(
            (got / MEAN_UNIT - want).square().sum((1, 2, 3)) for got, want in zip(given, wanted, strict=True)
        )
        return rate.mean(), (errors / (3 * pixels * self.balance)).mean()

    @torch.no_grad()
    def simulate(self, clips: Tensor, index: int, lower: int) -> tuple[Known, Tensor]:
        """What is known before each predicted frame of clips (B, T, 3, H, W), and what prediction leaves."""
        codec: VideoCodec = self.backbone
        if isinstance(clips, FakeTensor):  # `check` asks for shapes, and a search needs values
            return _shapes_of(clips[:, 1:].flatten(0, 1))
        price = 0.4 * float(codec.synthesis.factor(lower)[1]) / 4096
        known, left = [], []
        for clip in clips:
            coarse, fine = (_dead(values) for values in codec.analyse(clip[:1] - 128, index))
            pixels = codec.synthesis.frame(codec.synthesis(coarse, fine, index) + 128 * LEVEL)
            state = State(Reference(pixels), None, torch.zeros_like(fine))
            for frame in clip[1:]:
                vectors = search(state.reference, frame, state.vectors, price)
                found = codec.known(state, vectors)
                difference = frame - found.prediction[0].float() / LEVEL
                coarse, fine = (_dead(values) for values in codec.analyse(difference[None], lower))
                pixels = codec.synthesis.frame(found.prediction[0] + codec.synthesis(coarse, fine, lower))
                state = State(Reference(pixels), vectors, fine)
                known.append(found)
                left.append(difference)
        whole = Known(
            torch.cat([one.prediction for one in known]),
            torch.cat([one.disagreement for one in known]),
            torch.cat([one.before for one in known]),
        )
        return whole, torch.stack(left)

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over a copy of the codec that holds integers."""
        from .pipeline import VideoCompressionPipeline

        return VideoCompressionPipeline(self.backbone.frozen_copy())


def _shapes_of(frames: Tensor) -> tuple[Known, Tensor]:
    count, _, height, width = frames.shape
    whole = torch.zeros_like(frames, dtype=torch.int32)
    before = frames.new_zeros(count, 3 * BLOCK - 3, height // SIZE, width // SIZE)
    return Known(whole, whole[:, 0], before), frames


def _saved_codec(source: str | Path) -> VideoCodec | None:
    """The codec of a pipeline's folder, or None where the source is something else."""
    place = Path(source).expanduser() / "codec"
    if (place / "config.json").is_file():
        return VideoCodec.from_pretrained(str(place), local_files_only=True)
    return None


def _dead(values: Tensor) -> Tensor:
    """Rounded as a thrifty encoder would, in 1/16."""
    return values.sign() * torch.floor(values.abs() + 0.38) * MEAN_UNIT
