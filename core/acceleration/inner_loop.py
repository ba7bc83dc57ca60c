"""Inner Loop Feedback: a small trained block looks ahead, and only the middle of the network is run again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..diffusion import Parameterization
from ..errors import PolyditError
from ..tensor_files import save_tensors
from .blocks import BlockPort, find_blocks
from .clock import Moment
from .estimators import Taylor
from .handle import accelerate, frozen
from .plan import first_then_every
from .policy import Policy
from .sites import CacheSite, SpanSite, Unbind, bind

__all__ = ["Feedback", "InnerLoop", "InnerLoopTraining"]


class Feedback(nn.Module):
    """The feedback block and its strengths; fresh, it does nothing.

    Args:
        model: whose kind of block it is, trained anew.
        start: first block of the loop; there must be one in front of it.
        stop: first block behind the loop.
        seed: of its weights.

    Attributes:
        block: reads what leaves the loop on a full step, with the conditions of the present step.
        scales: (blocks of the loop,), zero at first: an unscaled injection diverges.
    """

    def __init__(self, model: nn.Module, start: int, stop: int, seed: int = 0) -> None:
        super().__init__()
        blocks = [block for _, block in find_blocks(model)]
        if not 0 < start < stop <= len(blocks):
            raise PolyditError(
                f"loop {start}:{stop}: give blocks with at least one in front of them, of the {len(blocks)} of "
                f"{type(model).__name__}"
            )
        self.start, self.stop = start, stop
        self.block = copy.deepcopy(blocks[stop - 1]).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.block.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        self.scales = nn.Parameter(torch.zeros(stop - start))

    def save(self, path: str | Path) -> None:
        """Write safetensors."""
        save_tensors(self.state_dict(), Path(path), {"start": str(self.start), "stop": str(self.stop)})

    @classmethod
    def read(cls, path: str | Path, model: nn.Module) -> Feedback:
        """The one that :meth:`save` wrote for this network.

        Raises:
            PolyditError: it belongs to another network, or is none.
        """
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
            start, stop = int(header["start"]), int(header["stop"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise PolyditError(
                f"{path}: holds no feedback block ({error}); Feedback.save writes one"
            ) from error
        feedback = cls(model, start, stop)
        feedback.load(path)
        return feedback.requires_grad_(False)

    def load(self, path: str | Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            PolyditError: it belongs to another loop or another network.
        """
        try:
            self.load_state_dict(load_file(path))
        except (OSError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise PolyditError(f"{path}: not the feedback of this network and loop ({first})") from error


class InnerLoop(Policy):
    """Between full steps run only the loop and what is behind it, on features that a trained block corrects.

    ILF, "Accelerate High-Quality Diffusion Models with Inner Loop Feedback" (arXiv 2501.13107), from its description:
    no code was released. The blocks in front of the loop keep their last output; the feedback block reads what left
    the loop on the last full step and the conditions of the present one, and its answer is added, scaled, to the input
    of each block of the loop. With all scales at zero it is a cache of the front.

    Args:
        feedback: trained for the network.
        interval: every how many steps all is computed.
    """

    def __init__(self, feedback: Feedback, interval: int = 2) -> None:
        self.feedback, self.interval = feedback, interval
        self.schedule = first_then_every(interval)

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """The front, with the loop behind it."""
        blocks = find_blocks(model)
        if len(blocks) < self.feedback.stop:
            raise PolyditError(f"{self}: {type(model).__name__} has only {len(blocks)} blocks")
        return [_LoopSite(blocks, self.feedback)]

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """By the interval."""
        return self.schedule(moment.step)

    def __repr__(self) -> str:
        return f"InnerLoop({self.feedback.start}:{self.feedback.stop}, interval={self.interval})"


class _LoopSite(SpanSite):
    """The output of the front blocks, and the loop that runs on it."""

    def __init__(self, blocks: list[tuple[str, nn.Module]], feedback: Feedback) -> None:
        front = [block for _, block in blocks[: feedback.start]]
        name = f"front {blocks[0][0]} to {blocks[feedback.start - 1][0]}"
        super().__init__(name, front, Taylor(), residual=False)
        self.loop = [BlockPort(block) for _, block in blocks[feedback.start : feedback.stop]]
        self.feedback = feedback
        self._left: dict[int, Tensor] = {}
        self._branch = 0
        self._answer: Tensor | None = None

    def enter(self, step: int, branch: int, compute: bool | None, learn: bool = True) -> None:
        super().enter(step, branch, compute, learn)
        self._branch, self._answer = branch, None

    def forget(self, branch: int | None = None) -> None:
        super().forget(branch)
        if branch is None:
            self._left.clear()
        else:
            self._left.pop(branch, None)

    @property
    def bytes(self) -> int:
        return super().bytes + sum(t.numel() * t.element_size() for t in self._left.values())

    def attach(self) -> list[Unbind]:
        return super().attach() + [
            bind(port.block, "forward", self._feed(port, index, port.block.forward))
            for index, port in enumerate(self.loop)
        ]

    def _feed(self, port: BlockPort, index: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        last = len(self.loop) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return inner(*args, **kwargs)
            if self.compute:
                output = inner(*args, **kwargs)
                if index == last and self.learning:
                    left = port.streams(output)[0]
                    assert left is not None
                    self._left[self._branch] = left
                return output
            if index == 0:
                asked, named = port.replace(args, kwargs, self._left[self._branch])
                self._answer = port.streams(self.feedback.block(*asked, **named))[0]
            tokens = port.read(args, kwargs)[0]
            assert tokens is not None
            assert self._answer is not None
            args, kwargs = port.replace(args, kwargs, tokens + self.feedback.scales[index] * self._answer)
            return inner(*args, **kwargs)

        return forward


class InnerLoopTraining:
    """Fast approximate distillation: the feedback learns the frozen network's answer at a later time.

    Args:
        model: frozen.
        feedback: what learns, by an optimiser of the caller.
        parameterization: the network's path and time.
    """

    def __init__(self, model: nn.Module, feedback: Feedback, parameterization: Parameterization) -> None:
        self.model, self.feedback, self.parameterization = model, feedback, parameterization

    def loss(
        self,
        denoise: Callable[[Tensor, Tensor], Tensor],
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        later: Tensor,
    ) -> Tensor:
        """Mean square distance of the looped answer at ``later`` from the network's own.

        Args:
            denoise: the network with conditions filled in; must call ``model`` once.
            x0: clean data (B, C, ...).
            noise: of the same shape; the same for both times.
            t: times (B,) of the full step.
            later: times (B,) with less noise.

        Raises:
            PolyditError: a later time has more noise.
        """
        if bool((later >= t).any()):
            raise PolyditError("inner loop: the later times must have less noise than the first")
        path, time = self.parameterization.path, self.parameterization.model_timestep
        x_t, x_later = path.add_noise(x0, noise, t), path.add_noise(x0, noise, later)
        with frozen(self.model):
            with torch.no_grad():
                teacher = denoise(x_later, time(later))
            with accelerate(self.model, InnerLoop(self.feedback, 2)) as handle, handle.run(2):
                with torch.no_grad():
                    denoise(x_t, time(t))
                student = denoise(x_later, time(later))
        return (student - teacher).square().mean()
