"""The pipeline that a user calls: a clip and its masks in, the clip without what they cover out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from ...core.backbones.pretrained import as_backbone
from ...core.data.masks import Box, bounding_box, dilate, paste_back
from ...core.diffusion import Parameterization, guide, sample
from ...core.diffusion.samplers import Step
from ...core.errors import PolyditError
from ...core.pipeline import TaskPipeline
from ...core.time_windows import CircularShift, averaged, mirrored, stream_windows, to_ring
from .formulation import Formulation, Known
from .propagation import Propagated, agree, propagate

__all__ = ["WINDOWS", "VideoInpaintingPipeline", "adain_clip"]

Frames = NDArray[np.uint8]
Masks = NDArray[np.bool_]
WINDOWS = ("hand-over", "circular", "averaged")
LEAST_FRAMES = 5  # that a network is shown; shorter clips go back and forth


class VideoInpaintingPipeline(TaskPipeline):
    """EraserDiT's sampler (arXiv 2506.12853) for clips of any length and size.

    Args:
        transformer: a native ``DiT`` on three axes, or a diffusers transformer for video.
        vae: a diffusers autoencoder for video, or None for pixel space.
        text: what a transformer that reads text is given.
        formulation: see :class:`Formulation`, as a dictionary.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
    """

    model_cpu_offload_seq = "text->transformer->vae"
    _optional_components = ["vae", "text"]

    def __init__(
        self,
        transformer: ModelMixin,
        vae: ModelMixin | None = None,
        text: ModelMixin | None = None,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
        parameterization: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text=text)
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = Formulation(**(formulation or {}))
        self.parameterization = Parameterization.from_config(parameterization)

    # -- clips ---------------------------------------------------------------------------------------------

    def __call__(self, frames: Frames, masks: Masks, **options: Any) -> Frames:
        """Inpaint a clip that is in memory.

        Args:
            frames: (T, H, W, 3) uint8.
            masks: (T, H, W) bool, True is made up anew.
            **options: of :meth:`stream`.

        Returns:
            (T, H, W, 3) uint8; what no mask covers is the given frame's, bit for bit.

        Raises:
            PolyditError: the sizes do not fit.
        """
        if frames.ndim != 4 or masks.shape != frames.shape[:3]:
            raise PolyditError(
                f"masks {masks.shape} do not fit frames {frames.shape}; give (T, H, W) and (T, H, W, 3)"
            )
        return np.stack(list(self.stream(zip(frames, masks, strict=True), **options)))

    def stream(
        self,
        pairs: Iterable[tuple[Frames, Masks]],
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        windows: Literal["hand-over", "circular", "averaged"] = "hand-over",
        clip: int | None = None,
        feather: int = 0,
        adain: bool = False,
        frame_rate: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Frames]:
        """Inpaint frames as they come; a window of them is in memory.

        Args:
            pairs: frame (H, W, 3) uint8 and mask (H, W) bool, in order.
            num_inference_steps: of the schedule; default 1 for networks that answer in one step, else 50.
            generator: source of the noise.
            windows: ``hand-over``: each window of ``formulation.frames`` begins with the last results of the one
                before, as known (the released code). ``circular``: clips of up to ``clip`` frames are mirrored into a
                ring that is cut elsewhere at every step (the paper's Algorithm 1). ``averaged``: overlapping windows of
                such clips are averaged at every step.
            clip: frames of the clips of ``circular`` and ``averaged``; longer videos hand over between them.
            feather: pixels over which results fade in, inside the mask.
            adain: give the result the mean and spread of the colours of what is given, channel by channel.
            frame_rate: frames per second, for networks that count in seconds.
            progress: called with (steps done, steps in all) of the present window.

        Yields:
            Frames (H, W, 3) uint8.

        Raises:
            PolyditError: an option is out of range.
        """
        form = self.formulation
        if windows not in WINDOWS:
            raise PolyditError(f"--windows {windows}: choose {', '.join(WINDOWS)}")
        size = form.frames if windows == "hand-over" else max(clip or 2 * form.frames, form.frames)
        handed: list[Frames] = []
        for window in stream_windows(pairs, size, form.known, self._length):
            frames = np.stack([frame for frame, _ in window.frames])
            masks = np.stack([mask for _, mask in window.frames])
            for number, frame in enumerate(handed[: window.known]):
                frames[number], masks[number] = frame, False
            made = self.window(
                frames, masks, num_inference_steps, generator, windows, adain, frame_rate, progress
            )
            own = len(made) - window.padding
            pasted = paste_back(frames[:own], made[:own], masks[:own], feather)
            yield from pasted[window.known :]
            handed = list(pasted[own - form.known :]) if form.known else []

    def _length(self, frames: int) -> int:
        """Frames that the autoencoder takes, so many or more."""
        factor = self.space.temporal_factor
        return max(frames, LEAST_FRAMES) if factor == 1 else 1 + -(-(frames - 1) // factor) * factor

    @torch.no_grad()
    def window(
        self,
        frames: Frames,
        masks: Masks,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        windows: str = "hand-over",
        adain: bool = False,
        frame_rate: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Frames:
        """What the network makes of one window, whole frames; outside of the masks they are only nearly the given ones.

        Args:
            frames: (T, H, W, 3) uint8.
            masks: (T, H, W) bool.
            num_inference_steps: see :meth:`stream`.
            generator: see :meth:`stream`.
            windows: see :meth:`stream`.
            adain: see :meth:`stream`.
            frame_rate: see :meth:`stream`.
            progress: see :meth:`stream`.
        """
        if not masks.any():
            return frames.copy()
        form = self.formulation
        video = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 255
        hole = torch.from_numpy(masks.copy())[None, None]
        found: Propagated | None = None
        if form.fill == "propagated":  # from the whole frames: the camera shows in all of them
            found = propagate(video[0].transpose(0, 1), hole[0].transpose(0, 1))
            fill = found.frames.transpose(0, 1)[None]
            known = Known(fill, hole.float(), (1 - found.seen).transpose(0, 1)[None])
        else:
            known = form.known_of(video * 2 - 1, hole)
        box = self.region(hole)
        part = known.part(slice(None), *box.slices)
        made = self._at_size(part, num_inference_steps, generator, windows, frame_rate, progress)
        if adain:
            made = adain_clip(made, video[..., box.slices[0], box.slices[1]], part.hole)
        result = known.fill if form.fill == "propagated" else video
        result[..., box.slices[0], box.slices[1]] = made
        if found is not None:
            loose = (known.never[0] > 0).transpose(0, 1) & hole[0].transpose(0, 1)
            result = agree(result[0].transpose(0, 1), loose, found.chains, found.scenes)
            result = result.transpose(0, 1)[None]
        pixels: Frames = (result[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
        return pixels

    def region(self, hole: Tensor) -> Box:
        """The part of the frames that the network is shown: around all holes, with surroundings.

        In pixel space as much around as the hole is wide; with an autoencoder whole frames as far as they are allowed.
        """
        height, width = hole.shape[-2:]
        if self.vae is not None and height * width <= self.formulation.max_pixels:
            return Box(0, 0, height, width)
        tight = bounding_box(hole[0, 0])
        assert tight is not None
        margin = max(32, max(tight.height, tight.width) // 2)
        found = bounding_box(hole[0, 0], margin=margin, multiple=self._multiple)
        assert found is not None
        return found

    @property
    def _multiple(self) -> int:
        patch = self.transformer.config.patch_size
        return int(self.space.spatial_factor * (patch if isinstance(patch, int) else max(patch)))

    def _at_size(
        self,
        known: Known,
        steps: int | None,
        generator: torch.Generator | None,
        windows: str,
        frame_rate: float | None,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """The network's answer, of parts with too many pixels at a reduced size."""
        height, width = known.hole.shape[-2:]
        ratio = min(1.0, (self.formulation.max_pixels / (height * width)) ** 0.5)
        small = known
        if ratio < 1:
            low = (max(1, round(height * ratio)), max(1, round(width * ratio)))
            small = Known(*(_resized(getattr(known, name), low) for name in ("fill", "hole", "unseen")))
            small = Known(small.fill, (small.hole > 0).float(), small.unseen * (small.hole > 0))
        made = self.make(small, steps, generator, windows, frame_rate, progress)
        if ratio == 1:
            return made
        if self.formulation.fill == "propagated":  # what it adds to the fill is carried over
            return (known.fill + known.hole * _resized(made - small.fill, (height, width))).clamp(0, 1)
        return _resized(made, (height, width)).clamp(0, 1)

    @torch.no_grad()
    def make(
        self,
        known: Known,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        windows: str = "hand-over",
        frame_rate: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """What the network says at the size of its input.

        Args:
            known: of frames of any size and number; batch and colours as :class:`Known` has them.
            num_inference_steps: see :meth:`stream`.
            generator: see :meth:`stream`.
            windows: see :meth:`stream`.
            frame_rate: see :meth:`stream`.
            progress: see :meth:`stream`.

        Returns:
            (B, 3, T, H, W) in [0, 1], float32 on the CPU.
        """
        form, space = self.formulation, self.space
        device, dtype = self.transformer.device, self.transformer.dtype
        frames, height, width = known.hole.shape[2:]
        multiple = self._multiple
        padded = self._padded(known, -height % multiple, -width % multiple)
        if windows == "circular" and frames > form.frames:
            padded = _ring(padded, self._length)
        given = form.conditions(Known(*(t.to(device) for t in vars(padded).values())), space).to(dtype)
        channels = space.channels
        shape = (len(given), channels, *given.shape[2:])
        noise = randn_tensor(shape, generator=generator, device=device)
        steps = num_inference_steps or (1 if form.residual_scale is not None else 50)
        if steps < 1:
            raise PolyditError(f"--steps {num_inference_steps}: at least 1 step is needed")
        times = form.times(steps)
        start = noise
        if times[0] < 1:
            start = self.parameterization.path.add_noise(given[:, :channels].float(), noise, times[0])
        call = self._network(channels, len(given), frame_rate)
        seen = form.frames if space.temporal_factor == 1 else 1 + (form.frames - 1) // space.temporal_factor
        if windows == "circular":
            call = CircularShift(call, seen)
        elif given.shape[2] > seen:
            call = averaged(call, seen, max(1, seen // 4))

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            return call(torch.cat([x_t.to(dtype), given], 1), timestep).float()

        def show(step: Step) -> None:
            if progress is not None:
                progress(step.index + 1, step.total)

        x0 = sample(
            denoise,
            start.float(),
            self.parameterization,
            len(times) - 1,
            times=times,
            generator=generator,
            callback=show,
        )
        whole = Known(*(t.to(device) for t in vars(padded).values()))
        made = form.finish(x0, whole, space)
        return made[:, :, :frames, :height, :width].float().cpu()

    def _network(
        self, channels: int, batch: int, frame_rate: float | None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The network with its texts and guidance."""
        network, form = as_backbone(self.transformer), self.formulation

        def call(x: Tensor, timestep: Tensor) -> Tensor:
            def answer(name: str) -> Tensor:
                text = None if self.text is None else self.text([name] * batch)
                return form.predict(network, x, timestep, channels, self.parameterization, text, frame_rate)

            if self.text is None or form.guidance == 1:
                return answer("prompt")
            return guide(answer("prompt"), answer("negative"), form.guidance)

        return call

    def _padded(self, known: Known, below: int, right: int) -> Known:
        """Sides continued to multiples of a token, and clips of few frames by going back and forth."""
        frames = known.hole.shape[2]
        order = torch.tensor(mirrored(list(range(frames)), self._length(frames)))

        def pad(values: Tensor) -> Tensor:
            values = values[:, :, order]
            flat = F.pad(values.transpose(1, 2).flatten(0, 1), (0, right, 0, below), mode="replicate")
            return flat.unflatten(0, (len(values), -1)).transpose(1, 2)

        return Known(pad(known.fill), pad(known.hole), pad(known.unseen))


def _ring(known: Known, length: Callable[[int], int]) -> Known:
    """The clip mirrored in time, in pixels: latents of a mirrored clip are no mirrored latents."""
    parts = [to_ring(value) for value in (known.fill, known.hole, known.unseen)]
    frames = parts[0].shape[2]
    order = torch.arange(length(frames)) % frames
    return Known(*(part[:, :, order] for part in parts))


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    smaller = size[0] * size[1] < values.shape[-1] * values.shape[-2]
    flat = values.transpose(1, 2).flatten(0, 1)
    flat = F.interpolate(flat, size, mode="bilinear", antialias=smaller, align_corners=False)
    return flat.unflatten(0, (len(values), -1)).transpose(1, 2)


def adain_clip(made: Tensor, given: Tensor, hole: Tensor) -> Tensor:
    """The made clip with the mean and spread of each colour that the given one has outside of the hole.

    Args:
        made: (B, 3, T, H, W).
        given: of the same shape.
        hole: (B, 1, T, H, W). Statistics are of what is not hidden, in both (the released code means to, and takes
            whole frames, as its mask is true everywhere).
    """
    seen = (dilate((hole > 0).float(), 1) == 0).float()
    count = seen.sum((2, 3, 4), keepdim=True).clamp(min=1)

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = (values * seen).sum((2, 3, 4), keepdim=True) / count
        spread = ((values - mean) ** 2 * seen).sum((2, 3, 4), keepdim=True) / count
        return mean, spread.sqrt().clamp(min=1e-5)

    (mean, spread), (wanted, wide) = moments(made), moments(given)
    return ((made - mean) / spread * wide + wanted).clamp(0, 1)
