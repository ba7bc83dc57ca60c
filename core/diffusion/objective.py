"""The training objective: draw time and noise, predict, and measure the error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .learned_variance import variational_bound
from .parameterization import Denoise, Parameterization, TimeConvention
from .paths import DiscretePath, Path, expand_like
from .timesteps import TimestepSampler, Uniform

Loss = Literal["mse", "l1", "charbonnier", "huber"]
Weighting = Literal["none", "velocity", "x0", "likelihood", "min_snr"]


@dataclass
class ObjectiveOutput:
    """What one call of an :class:`Objective` computed; tensors keep their gradients.

    Attributes:
        loss: Mean over the batch, scalar.
        loss_per_sample: (B,).
        terms: The summands of the loss by name, each (B,) and detached.
        x0: Clean data according to the network, for losses that a task adds.
        x_t: The network's input.
        t: Project times (B,).
        noise: The noise in ``x_t``.
        prediction: The network's raw answer.
    """

    loss: Tensor
    loss_per_sample: Tensor
    x0: Tensor
    x_t: Tensor
    t: Tensor
    noise: Tensor
    prediction: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Objective(Parameterization):
    """Denoising loss for one network.

    Args:
        path: Noise path; None is the linear path.
        prediction: What the network answers: ``velocity``, ``epsilon``, ``v``, ``x0`` or ``score``. The error
            is measured on that answer (for a score, on the noise it implies).
        loss: ``mse``, ``l1``, ``charbonnier`` (``sqrt(e^2 + 1e-6)``) or ``huber`` (delta 1), elementwise.
        weighting: Weight as a function of time. ``velocity`` and ``x0`` count squared errors as they would
            appear in that quantity (``x0`` on the linear path with velocity prediction is the sigma^2 weight
            of DiT4SR; ``velocity`` with x0 prediction is the velocity loss). ``likelihood`` is SiT's (arXiv
            2401.08740), ``min_snr`` that of arXiv 2303.09556.
        min_snr_gamma: Where min-SNR cuts the signal-to-noise ratio.
        cosine_weight: Weight of ``1 - cos`` between predicted and true velocity along the channels, as in
            LightningDiT (arXiv 2501.01423).
        variance_weight: If not 0, the network answers 2C channels and the bound of its learned variance is
            added with this weight (DiT: 1). Needs a :class:`DiscretePath` and epsilon prediction.
        timesteps: How times are drawn; None is uniform.
        time: How the network counts time; None is project time x 1000.
        time_range: Least and greatest time drawn; None chooses by path, prediction and weighting, so that
            neither is singular.
    """

    def __init__(
        self,
        path: Path | None = None,
        prediction: str = "velocity",
        loss: Loss = "mse",
        weighting: Weighting = "none",
        min_snr_gamma: float = 5.0,
        cosine_weight: float = 0.0,
        variance_weight: float = 0.0,
        timesteps: TimestepSampler | None = None,
        time: TimeConvention | None = None,
        time_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(path, prediction, time)
        for option, value, choices in (
            ("loss", loss, get_args(Loss)),
            ("weighting", weighting, get_args(Weighting)),
        ):
            if value not in choices:
                raise ValueError(f"unknown {option} {value!r}; one of {', '.join(choices)}")
        if variance_weight and not (isinstance(self.path, DiscretePath) and prediction == "epsilon"):
            raise ValueError("a learned variance needs a DiscretePath and epsilon prediction")
        self.loss = loss
        self.weighting = weighting
        self.min_snr_gamma = min_snr_gamma
        self.cosine_weight = cosine_weight
        self.variance_weight = variance_weight
        self.timesteps = Uniform() if timesteps is None else timesteps
        self.time_range = self._safe_range() if time_range is None else time_range

    def __call__(
        self,
        denoise: Denoise,
        x0: Tensor,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
        element_weight: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Train on clean data once.

        Args:
            denoise: The network with its conditions: ``(x_t, timestep) -> prediction``.
            x0: Clean data (B, C, ...).
            noise: Standard normal like x0; drawn if None.
            t: Project times (B,), used as given; drawn if None.
            generator: Source of the draws. A CPU generator means the same on every device; without one,
                noise comes from the device's own.
            element_weight: Broadcastable to x0; multiplies the error of each element (a mask, a focal area).
        """
        if t is None:
            t = self.draw_times(x0.shape[0], generator, x0.device)
        if noise is None:
            noise = randn_tensor(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        x_t = self.path.add_noise(x0, noise, t).to(x0.dtype)
        raw = denoise(x_t, self.model_timestep(t))
        answer = raw[:, : x0.shape[1]].to(torch.promote_types(raw.dtype, torch.float32))

        error = self._error(answer, x0, noise, t)
        if element_weight is not None:
            error = error * element_weight
        terms: dict[str, Tensor] = {self.loss: error.flatten(1).mean(1) * self.weight(t)}
        if self.cosine_weight:
            cosine = F.cosine_similarity(
                self.velocity(answer, x_t, t), self.path.velocity(x0, noise, t), dim=1, eps=1e-8
            )
            terms["cosine"] = self.cosine_weight * (1 - cosine).flatten(1).mean(1)
        if self.variance_weight:
            terms["variance"] = self.variance_weight * self._variance_bound(raw, x0, x_t, t)
        per_sample = torch.stack(list(terms.values())).sum(0)
        return ObjectiveOutput(
            loss=per_sample.mean(),
            loss_per_sample=per_sample,
            x0=self.x0(answer, x_t, t),
            x_t=x_t,
            t=t,
            noise=noise,
            prediction=raw,
            terms={name: term.detach() for name, term in terms.items()},
        )

    def draw_times(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Project times (B,) within ``time_range``, on the network's own indices if its time is discrete."""
        t = self.timesteps(batch, generator, device).clamp(*self.time_range)
        return self.time.project_time(self.time.model_timestep(t)) if self.time.discrete else t

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the squared error at times (B,)."""
        if self.weighting == "none":
            return torch.ones_like(t)
        if self.weighting in ("velocity", "x0"):
            return self.path.gain(t, self._space, self.weighting) ** 2
        if self.weighting == "likelihood":
            of_noise_error = self.path.diffusion(t) / self.path.sigma(t) ** 2
            return of_noise_error * self.path.gain(t, self._space, "epsilon") ** 2
        signal_to_noise = (self.path.alpha(t) / self.path.sigma(t)) ** 2
        return signal_to_noise.clamp(max=self.min_snr_gamma) * self.path.gain(t, self._space, "x0") ** 2

    @property
    def _space(self) -> str:
        return "epsilon" if self.prediction == "score" else self.prediction

    def _error(self, answer: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "score":
            difference = self.path.sigma(expand_like(t, answer)) * answer + noise
        else:
            difference = answer - self.target(x0, noise, t)
        if self.loss == "mse":
            return difference**2
        if self.loss == "l1":
            return difference.abs()
        if self.loss == "charbonnier":
            return torch.sqrt(difference**2 + 1e-6)
        return F.huber_loss(difference, torch.zeros_like(difference), reduction="none")

    def _variance_bound(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        assert isinstance(self.path, DiscretePath)
        if raw.shape[1] != 2 * x0.shape[1]:
            raise ValueError(
                f"a learned variance needs {2 * x0.shape[1]} output channels, not {raw.shape[1]}"
            )
        epsilon, v = raw.to(torch.promote_types(raw.dtype, torch.float32)).chunk(2, dim=1)
        return variational_bound(self.path, x0, x_t, self.path.index_of_time(t), epsilon, v)

    def _safe_range(self) -> tuple[float, float]:
        # Reading data off noise divides by alpha, weights by sigma or alpha: stay away from their zeros.
        singular = self.prediction in ("epsilon", "score") or self.weighting != "none"
        # A path's own bound holds whatever is predicted: SiT trains its VP path from 1e-5.
        low = self.path.min_time or (1e-3 if singular else 0.0)
        return low, 1 - 1e-3 if singular and self.path.ends_in_noise else 1.0
