"""Caches that lie in files: plans, measured ratios, routers, feedback blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import PolyditError
from .blocks import unwrap
from .handle import network_of
from .inner_loop import Feedback, InnerLoop
from .mag_cache import MagCache
from .plan import Plan
from .policy import Policy, Replay
from .routers import Routed, Router
from .taylorseer import FORA

__all__ = ["read_policy"]


def read_policy(path: str | Path, target: Any) -> Policy:
    """The method that a file holds.

    Args:
        path: JSON with a plan or with MagCache's ratios; safetensors with a router or a feedback block.
        target: what it is for, as of :func:`~polydit.core.acceleration.accelerate`.

    Raises:
        PolyditError: the file is none of these, or for another network.
    """
    if Path(path).suffix == ".json":
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PolyditError(f"{path}: cannot be read as JSON ({error}); write it anew") from error
        ratios = content.get("ratios") if isinstance(content, dict) else None
        if ratios is None:
            return Replay(FORA(), Plan.read(path))
        if not isinstance(ratios, list) or not all(isinstance(ratio, int | float) for ratio in ratios):
            raise PolyditError(f"{path}: ratios must be a list of numbers; measure them anew")
        return MagCache(ratios)
    try:
        with safe_open(path, "pt") as file:
            loops = "start" in (file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise PolyditError(f"{path}: cannot be read as safetensors ({error}); check the path") from error
    if loops:
        model = unwrap(network_of(target)[0])
        weight = next(model.parameters())
        return InnerLoop(Feedback.read(path, model).to(weight.device, weight.dtype))
    return Routed(Router.load(path))
