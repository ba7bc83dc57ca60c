"""Guidance by a classifier that has never seen noise (EluCD, arXiv 2310.11311)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion import Denoise, Parameterization
from ..diffusion.runs import sampling_step
from ..errors import PolyditError

__all__ = ["ClassifierGuidance", "class_gradient", "mean_shift", "smooth", "state_shift", "weight_of_step"]


def smooth(classifier: nn.Module, beta: float) -> nn.Module:
    """A copy with every ReLU a softplus of sharpness beta: its gradients do not jump. Large beta is the ReLU again."""
    if isinstance(classifier, nn.ReLU):
        return nn.Softplus(beta=beta)
    copied = copy.deepcopy(classifier)
    for module in copied.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus(beta=beta))
    return copied.eval().requires_grad_(False)


def class_gradient(
    classifier: Callable[[Tensor], Tensor],
    x0: Tensor,
    labels: Tensor,
    joint: float = 1.0,
    marginal: float = 0.5,
) -> Tensor:
    """Gradient of ``joint f_y - logsumexp(marginal f)`` by clean data, like them.

    Both temperatures 1 give the log-probability of the class; marginal 0 gives the bare logit.

    Args:
        classifier: (B, C, ...) to logits (B, classes).
        x0: where; no gradient flows to what it came from.
        labels: (B,).
        joint: temperature of the class.
        marginal: temperature of the sum over classes.
    """
    with torch.inference_mode(False), torch.enable_grad():
        inputs = x0.detach().clone().requires_grad_()
        logits = classifier(inputs)
        chosen = logits.gather(1, labels[:, None]).squeeze(1)
        score = joint * chosen - torch.logsumexp(marginal * logits, dim=1)
        return torch.autograd.grad(score.sum(), inputs)[0]


def mean_shift(
    gradient: Tensor, variance: Tensor, largest: Tensor, index: int, total: int, scale: float, gamma: float
) -> Tensor:
    """What is added to the mean of an ancestral step: ``(variance + gamma sin(pi t / T) largest) scale gradient``.

    Args:
        gradient: of :func:`class_gradient`.
        variance: of the step.
        largest: of the chain so far.
        index: of the step, counted from the data.
        total: of the steps.
        scale: of the guidance.
        gamma: of the part that is greatest half way.
    """
    return (variance + gamma * math.sin(math.pi * index / total) * largest) * scale * gradient


def weight_of_step(step: int, total: int, greatest: float, bump: float) -> float:
    """``max(greatest (n - i) / n, 1e-5) + bump greatest sin(pi i / (n - 1))``, n one more than the steps."""
    count = total + 1
    falling = max(greatest * (count - step) / count, 1e-5)
    return falling + bump * greatest * math.sin(math.pi * step / (count - 1))


def state_shift(gradient: Tensor, x: Tensor, weight: float) -> Tensor:
    """The gradient at the size of the state: ``gradient / rms(gradient) rms(x) weight``, by sample."""
    return gradient / _rms(gradient).clamp(min=1e-12) * _rms(x) * weight


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class ClassifierGuidance:
    """Shifts what a network predicts to be clean towards a class; for any sampler of the project.

    Args:
        classifier: as a rule :func:`smooth`; sees clean data as predicted, through ``decode``.
        parameterization: of the network.
        weight: greatest weight of the shift; 0 is no guidance, bit for bit.
        bump: see :func:`weight_of_step`.
        joint: see :func:`class_gradient`.
        marginal: see there.
        decode: from the sampler's space to the classifier's, differentiable; normalisation belongs here.
    """

    classifier: Callable[[Tensor], Tensor]
    parameterization: Parameterization
    weight: float = 0.004
    bump: float = 0.3
    joint: float = 1.0
    marginal: float = 0.0
    decode: Callable[[Tensor], Tensor] | None = None

    def wrap(self, denoise: Denoise, labels: Tensor) -> Denoise:
        """The guided network.

        Args:
            denoise: with conditions and other guidance filled in.
            labels: (B,) classes.
        """
        if self.weight == 0:
            return denoise
        read, path = self.parameterization.read, self.parameterization.path
        kind = self.parameterization.prediction

        def classify(x0: Tensor) -> Tensor:
            return self.classifier(x0 if self.decode is None else self.decode(x0))

        def guided(x_t: Tensor, timestep: Tensor, /) -> Tensor:
            present = sampling_step()
            if present is None:
                raise PolyditError("classifier guidance: weights go by step; use a sampler of the project")
            raw = denoise(x_t, timestep)
            t = self.parameterization.time.project_time(timestep)
            x0 = read(raw, x_t, t, "x0")
            gradient = class_gradient(classify, x0, labels, self.joint, self.marginal)
            weight = weight_of_step(present.index, present.total, self.weight, self.bump)
            shifted = x0 + state_shift(gradient, x0, weight).to(x0.dtype)
            answer = path.convert(shifted, x_t, t, "x0", kind)
            answer = -answer if kind == "velocity" and self.parameterization.time.flip else answer
            return torch.cat([answer, raw[:, answer.shape[1] :]], dim=1)

        return guided
