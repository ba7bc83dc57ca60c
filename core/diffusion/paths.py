"""Noise paths ``x_t = alpha(t) x0 + sigma(t) noise`` in project time: t = 0 is data, t = 1 is noise.

Every published direction and scale of time is converted where a network is called (:mod:`.parameterization`).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_LOG_ALPHA = -40.0
"""Stands for no signal at all: interpolation has no use for the logarithm of 0."""

Prediction = Literal["velocity", "epsilon", "v", "x0", "score"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


def expand_like(t: Tensor | float, x: Tensor) -> Tensor:
    """Shape times (B,) to broadcast against ``x`` (B, ...), in at least float32 and at least x's precision.

    A tensor that already has x's number of axes is a map of times (per frame, per pixel) and is kept.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(t, Tensor) and t.is_floating_point():
        dtype = torch.promote_types(dtype, t.dtype)
    t = torch.as_tensor(t, dtype=dtype, device=x.device)
    if t.ndim in (0, x.ndim):
        return t
    if t.ndim != 1 or t.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"times of shape {tuple(t.shape)} do not fit a batch of shape {tuple(x.shape)}")
    return t.view(-1, *([1] * (x.ndim - 1)))


class Path(ABC):
    """A Gaussian path between data and noise; all functions take times in [0, 1] and keep their shape.

    ``min_time`` is the least time at which the velocity is finite and ``ends_in_noise`` says whether alpha(1)
    is exactly 0, so that data cannot be read off a noise prediction there.
    """

    name: str
    min_time: float = 0.0
    ends_in_noise: bool = True

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of :meth:`alpha` by t."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of :meth:`sigma` by t."""

    @abstractmethod
    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The time whose ratio sigma(t) / alpha(t) is the given one; the pair need not lie on this path."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """``x_t`` for data and noise (B, ...) at times (B,)."""
        t = expand_like(t, x0)
        return self.alpha(t) * x0 + self.sigma(t) * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """``d x_t / dt`` in project time, from data towards noise (``noise - x0`` on the linear path)."""
        return self.target(x0, noise, t, "velocity")

    def diffusion(self, t: Tensor) -> Tensor:
        """Half of the squared diffusion coefficient, ``sigma sigma' - sigma^2 alpha' / alpha``.

        The reverse process ``dx = (velocity - w score) dt + sqrt(2 w) dW`` with w equal to this is the
        classical score SDE; SiT (arXiv 2401.08740) builds its loss weights from it.
        """
        return self.sigma(t) * self.d_sigma(t) - self.sigma(t) ** 2 * self.d_alpha(t) / self.alpha(t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | float, kind: str) -> Tensor:
        """What a network with that kind of prediction should answer at ``x_t``."""
        t = expand_like(t, x0)
        if kind == "score":
            return -noise / self.sigma(t)
        of_data, of_noise = self._coefficients(t, kind)
        return of_data * x0 + of_noise * noise

    def convert(self, prediction: Tensor, x_t: Tensor, t: Tensor | float, source: str, target: str) -> Tensor:
        """Turn one kind of prediction into another at the same ``x_t``.

        Kinds: ``velocity`` (d x_t / dt), ``epsilon`` (the noise), ``v`` (``alpha noise - sigma x0``),
        ``x0`` and ``score`` (``-noise / sigma``). Results are infinite where the path carries no information,
        for example x0 from epsilon at t = 1 on the linear path.
        """
        if source == target:
            return prediction
        t = expand_like(t, x_t)
        if source == "score":
            prediction, source = -self.sigma(t) * prediction, "epsilon"
            if target == "epsilon":
                return prediction
        if target == "score":
            return self.convert(prediction, x_t, t, source, "epsilon") / -self.sigma(t)
        # Both predictions are c x0 + d noise; eliminate x0 and noise with x_t = alpha x0 + sigma noise.
        alpha, sigma = self.alpha(t), self.sigma(t)
        c, d = self._coefficients(t, source)
        c_out, d_out = self._coefficients(t, target)
        of_state, of_prediction = c_out * d - d_out * c, d_out * alpha - c_out * sigma
        return (of_state * x_t + of_prediction * prediction) / (alpha * d - sigma * c)

    def gain(self, t: Tensor, source: str, target: str) -> Tensor:
        """Factor by which an error in the source prediction appears in the target prediction."""
        zero = torch.zeros_like(t)
        return self.convert(torch.ones_like(t), zero, t, source, target) + zero

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor | float, kind: str) -> Tensor:
        """Clean data from a prediction."""
        return self.convert(prediction, x_t, t, kind, "x0")

    def to_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor | float, kind: str) -> Tensor:
        """Noise from a prediction."""
        return self.convert(prediction, x_t, t, kind, "epsilon")

    def to_velocity(self, prediction: Tensor, x_t: Tensor, t: Tensor | float, kind: str) -> Tensor:
        """Velocity in project time from a prediction."""
        return self.convert(prediction, x_t, t, kind, "velocity")

    def to_score(self, prediction: Tensor, x_t: Tensor, t: Tensor | float, kind: str) -> Tensor:
        """Score, the gradient of the log density of ``x_t``, from a prediction."""
        return self.convert(prediction, x_t, t, kind, "score")

    def _coefficients(self, t: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Weights of x0 and of the noise in a prediction."""
        if kind == "velocity":
            return self.d_alpha(t), self.d_sigma(t)
        if kind == "v":
            return -self.sigma(t), self.alpha(t)
        if kind == "epsilon":
            return torch.zeros_like(t), torch.ones_like(t)
        if kind == "x0":
            return torch.ones_like(t), torch.zeros_like(t)
        raise ValueError(f"unknown prediction {kind!r}; one of {', '.join(PREDICTIONS)}")

    def config(self) -> dict[str, Any]:
        """Name and constructor arguments, JSON-ready; :func:`path_from_config` reads it."""
        arguments = [] if type(self).__init__ is object.__init__ else inspect.signature(type(self)).parameters
        return {"name": self.name, **{key: getattr(self, key) for key in arguments}}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config() == other.config()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(tuple(self.config().items()))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")
        return f"{type(self).__name__}({arguments})"


class LinearPath(Path):
    """``alpha = 1 - t``, ``sigma = t``: rectified flow, as in FLUX, SD3, SiT and LightningDiT."""

    name = "linear"

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return t

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:  # noqa: D102
        return sigma / (alpha + sigma)


class GVPPath(Path):
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``: SiT's generalised variance-preserving path."""

    name = "gvp"

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(t * (math.pi / 2))

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -(math.pi / 2) * torch.sin(t * (math.pi / 2))

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return (math.pi / 2) * torch.cos(t * (math.pi / 2))

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:  # noqa: D102
        return torch.atan2(sigma, alpha) * (2 / math.pi)


class VariancePreserving(Path):
    """``alpha^2 + sigma^2 = 1``, given by the logarithm of alpha. At t = 0 the slope of sigma is infinite."""

    min_time = 1e-5
    ends_in_noise = False

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Natural logarithm of alpha."""

    @abstractmethod
    def d_log_alpha(self, t: Tensor) -> Tensor:
        """Derivative of :meth:`log_alpha` by t."""

    @abstractmethod
    def time_at_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """Inverse of :meth:`log_alpha`, clipped to [0, 1]."""

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        # expm1 keeps the digits that 1 - alpha^2 would lose near the data.
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.alpha(t) * self.d_log_alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return -(self.alpha(t) ** 2) * self.d_log_alpha(t) / self.sigma(t)

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:  # noqa: D102
        return self.time_at_log_alpha(-0.5 * torch.log1p((sigma / alpha) ** 2))


class VPPath(VariancePreserving):
    """The continuous path of variance-preserving score SDEs: ``beta(t)`` rises linearly."""

    name = "vp"

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min = beta_min
        self.beta_max = beta_max

    def log_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def d_log_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -0.5 * t * (self.beta_max - self.beta_min) - 0.5 * self.beta_min

    def time_at_log_alpha(self, log_alpha: Tensor) -> Tensor:  # noqa: D102
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 - 4 * slope * log_alpha)
        return ((root - self.beta_min) / slope).clamp(0, 1)


class DiscretePath(VariancePreserving):
    """The table of a discrete-time model: DDPM (arXiv 2006.11239), DiT, Stable Diffusion.

    Index i (0 .. steps - 1) lies at t = (i + 1) / steps and t = 0 is clean data. Between indices
    ``log alpha`` is linear in t.

    Args:
        schedule: ``linear`` betas, ``scaled_linear`` (linear in the square root of beta), or ``warm`` (linear over the
            first tenth of the indices, then constant: PVD's and DiT-3D's for planes).
        beta_start: First beta.
        beta_end: Last beta.
        steps: Number of indices.
        snr_shift: Divides the signal-to-noise ratio of every index (CogVideoX, arXiv 2408.06072).
        ends_in_noise: Lower the whole table of alpha so that the last index is pure noise, "Common Diffusion Noise
            Schedules and Sample Steps are Flawed" (arXiv 2305.08891).
    """

    name = "discrete"

    def __init__(
        self,
        schedule: Literal["linear", "scaled_linear", "warm"] = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        steps: int = 1000,
        snr_shift: float = 1.0,
        ends_in_noise: bool = False,
    ) -> None:
        if schedule == "linear":
            betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        elif schedule == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
        elif schedule == "warm":
            betas = torch.full((steps,), beta_end, dtype=torch.float64)
            betas[: steps // 10] = torch.linspace(beta_start, beta_end, steps // 10, dtype=torch.float64)
        else:
            raise ValueError(f"unknown schedule {schedule!r}; linear, scaled_linear or warm")
        self.schedule = schedule
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.steps = steps
        self.snr_shift = snr_shift
        self.ends_in_noise = ends_in_noise
        self.min_time = 1 / steps
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)
        if snr_shift != 1 or ends_in_noise:
            abar = self.alphas_cumprod / (snr_shift + (1 - snr_shift) * self.alphas_cumprod)
            if ends_in_noise:
                root = abar.sqrt()
                abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
            self.alphas_cumprod = abar
            self.betas = 1 - abar / F.pad(abar[:-1], (1, 0), value=1.0)
            log_alpha = 0.5 * abar.log().clamp(min=2 * LEAST_LOG_ALPHA)
        self._log_alpha = F.pad(log_alpha, (1, 0))
        self._tables: dict[tuple[torch.dtype, torch.device], Tensor] = {}  # copies of it, where they are used

    @property
    def is_changed(self) -> bool:
        """Whether the table is another than that which diffusers makes of the schedule's name and ends."""
        return self.snr_shift != 1 or self.ends_in_noise or self.schedule == "warm"

    def time_of_index(self, index: Tensor | int) -> Tensor:
        """Project time of a table index."""
        return (torch.as_tensor(index) + 1) / self.steps

    def index_of_time(self, t: Tensor) -> Tensor:
        """Table index (int64) of a time: the least index that is at least as noisy, 0 for clean data."""
        return (torch.ceil(t * self.steps - 1e-3).long() - 1).clamp(0, self.steps - 1)

    def log_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        position = self._position(t)
        low = position.floor().clamp(max=self.steps - 1)
        table = self._table(t)
        start, end = table[low.long()], table[low.long() + 1]
        return torch.lerp(start, end, position - low)

    def d_log_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        high = self._position(t).ceil().long().clamp(min=1)
        table = self._table(t)
        return (table[high] - table[high - 1]) * self.steps

    def time_at_log_alpha(self, log_alpha: Tensor) -> Tensor:  # noqa: D102
        table = -self._table(log_alpha)
        value = -log_alpha.contiguous()
        high = torch.searchsorted(table, value).clamp(1, self.steps)
        fraction = (value - table[high - 1]) / (table[high] - table[high - 1])
        return ((high - 1 + fraction) / self.steps).clamp(0, 1)

    def _table(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        if key not in self._tables:
            # First the precision: some devices have no float64.
            self._tables[key] = self._log_alpha.to(like.dtype).to(like.device)
        return self._tables[key]

    def _position(self, t: Tensor) -> Tensor:
        position = (t * self.steps).clamp(0, self.steps)
        nearest = position.round()
        # Times arrive in float32: what is within rounding of an index is that index.
        return torch.where((position - nearest).abs() < 1e-3, nearest, position)


PATHS: dict[str, type[Path]] = {cls.name: cls for cls in (LinearPath, GVPPath, VPPath, DiscretePath)}


def path_from_config(config: dict[str, Any]) -> Path:
    """Inverse of :meth:`Path.config`."""
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in PATHS:
        raise ValueError(f"unknown path {name!r}; one of {', '.join(PATHS)}")
    return PATHS[name](**arguments)
