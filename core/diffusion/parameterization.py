"""What a network's output means: along which path, as which kind of prediction, in which time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .paths import PREDICTIONS, DiscretePath, LinearPath, Path, path_from_config


class Denoise(Protocol):
    """A network with its conditions filled in."""

    def __call__(self, x_t: Tensor, timestep: Tensor, /) -> Tensor:
        """Raw prediction for states (B, C, ...) at model timesteps (B,)."""


@dataclass(frozen=True)
class TimeConvention:
    """How a network counts time.

    Args:
        scale: Number that multiplies time before it enters the network: 1000 for FLUX, SD3 and most diffusers
            transformers, 1 for SiT and LightningDiT.
        flip: True if the network's time runs from noise (0) to data (1), as SiT's and LightningDiT's does.
            Its velocity then points from noise to data and changes sign at this border.
        discrete: True if the network takes whole indices 0 .. scale - 1, as DiT and Stable Diffusion do.
            Project time (i + 1) / scale is index i.
    """

    scale: float = 1000.0
    flip: bool = False
    discrete: bool = False

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"time scale must be positive, not {self.scale}")
        if self.discrete and (self.flip or self.scale != int(self.scale)):
            raise ValueError("discrete time counts whole indices from data to noise: no flip, integer scale")

    @property
    def velocity_sign(self) -> float:
        """-1 if the network's velocity points the other way."""
        return -1.0 if self.flip else 1.0

    def model_timestep(self, t: Tensor) -> Tensor:
        """What the network is given at project times ``t``: int64 if discrete, else of t's dtype."""
        if self.discrete:
            return (torch.ceil(t * self.scale - 1e-3).long() - 1).clamp(0, int(self.scale) - 1)
        return (1 - t if self.flip else t) * self.scale

    def project_time(self, timestep: Tensor) -> Tensor:
        """Project times of what a network is given."""
        if self.discrete:
            return (timestep + 1) / self.scale
        t = timestep / self.scale
        return 1 - t if self.flip else t


class Parameterization:
    """Path, kind of prediction and time of one network, shared by its training and its sampling.

    Args:
        path: Noise path; None is the linear path.
        prediction: ``velocity``, ``epsilon``, ``v``, ``x0`` or ``score``.
        time: How the network counts time; None is project time x 1000, as in FLUX and SD3.

    A network with learned variance answers 2C channels; all readers here use the first C.
    """

    def __init__(
        self, path: Path | None = None, prediction: str = "velocity", time: TimeConvention | None = None
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}; one of {', '.join(PREDICTIONS)}")
        self.path = LinearPath() if path is None else path
        self.prediction = prediction
        self.time = TimeConvention() if time is None else time
        if self.time.discrete and isinstance(self.path, DiscretePath) and self.path.steps != self.time.scale:
            raise ValueError(
                f"the path has {self.path.steps} indices, the network's time {self.time.scale:g}"
            )

    def model_timestep(self, t: Tensor) -> Tensor:
        """What the network is given at project times (B,)."""
        return self.time.model_timestep(t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should answer, in its own sign of time."""
        return self._signed(self.path.target(x0, noise, t, self.prediction))

    def read(self, raw: Tensor, x_t: Tensor, t: Tensor | float, kind: str) -> Tensor:
        """The network's raw answer at ``x_t`` as another kind of prediction, in project time."""
        raw = raw[:, : x_t.shape[1]] if raw.shape[1] == 2 * x_t.shape[1] else raw
        return self.path.convert(self._signed(raw), x_t, t, self.prediction, kind)

    def x0(self, raw: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        """Clean data according to the network's raw answer."""
        return self.read(raw, x_t, t, "x0")

    def velocity(self, raw: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        """Velocity in project time according to the network's raw answer."""
        return self.read(raw, x_t, t, "velocity")

    def signal_gain(self, timestep: Tensor) -> Tensor:
        """Gain (B,) of the best linear estimate of data of unit variance from a noisy state, at model timesteps.

        ``alpha / (alpha^2 + sigma^2)``, zero at pure noise: a narrow network whose input is multiplied by it need not
        spend its width on carrying noise, and its one-step answer does not depend on the seed.
        """
        t = self.time.project_time(timestep)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return alpha / (alpha**2 + sigma**2)

    def config(self) -> dict[str, Any]:
        """JSON-ready description, to be stored beside the weights."""
        return {"path": self.path.config(), "prediction": self.prediction, "time": asdict(self.time)}

    @classmethod
    def from_config(cls, config: dict[str, Any] | None) -> Parameterization:
        """Inverse of :meth:`config`; None is the default."""
        if not config:
            return cls()
        return cls(path_from_config(config["path"]), config["prediction"], TimeConvention(**config["time"]))

    def _signed(self, value: Tensor) -> Tensor:
        return -value if self.prediction == "velocity" and self.time.flip else value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {self.prediction!r}, {self.time!r})"


def preset(name: str) -> Parameterization:
    """That of a published family: ``flow`` (FLUX, SD3, Wan), ``sit``, ``lightningdit`` or ``dit``."""
    if name == "flow":
        return Parameterization()
    if name in ("sit", "lightningdit"):
        return Parameterization(LinearPath(), "velocity", TimeConvention(scale=1.0, flip=True))
    if name == "dit":
        return Parameterization(DiscretePath(), "epsilon", TimeConvention(scale=1000.0, discrete=True))
    raise ValueError(f"unknown preset {name!r}; one of flow, sit, lightningdit, dit")
