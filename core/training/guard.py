"""Stop at the first loss that is not finite, and say which batch it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import PolyditError

__all__ = ["FiniteGuard", "describe_batch"]

NAME_KEYS = ("name", "names", "path", "paths", "key", "keys", "__key__", "file")


def describe_batch(batch: Any, limit: int = 3) -> str:
    """The samples of a batch by name, as far as it carries names: ``a.png, b.png, c.png and 5 more``."""
    names: list[str] = []
    if isinstance(batch, Mapping):
        for key in NAME_KEYS:
            value = batch.get(key)
            if isinstance(value, str):
                names = [value]
            elif isinstance(value, (list, tuple)) and value and not isinstance(value[0], Tensor):
                names = [str(v) for v in value]
            if names:
                break
    if not names:
        return ""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


class FiniteGuard:
    """Looks at each loss without making the accelerator wait.

    On the CPU a loss is looked at once. On an accelerator the verdict is copied in the background and read one step
    later (or before a checkpoint is written), because reading it at once would stall the queue in every step.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any, str] | None = None

    def watch(self, loss: Tensor, where: str) -> None:
        """Check the previous loss, and take note of this one.

        Raises:
            PolyditError: a loss was not finite.
        """
        self.flush()
        finite = torch.isfinite(loss.detach()).all()
        if finite.device.type != "cuda":
            self._pending = (finite, None, where)
            self.flush()
            return
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (host, event, where)

    def flush(self) -> None:
        """Read the verdict that is under way.

        Raises:
            PolyditError: the loss was not finite.
        """
        if self._pending is None:
            return
        verdict, event, where = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        if not bool(verdict):
            raise PolyditError(
                f"training: the loss is not finite at {where}; the last checkpoint is kept. Look at those samples, "
                "or lower --model.optimizer.lr, or set --trainer.gradient_clip_val 1.0"
            )
