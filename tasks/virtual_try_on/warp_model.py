"""Training of a transformer that copies from the garment: by what drawn people know of where their cloth lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from .model import TokenGroupTryOn
from .warping import WarpingTokenGroupDiT, compose, warp_losses

__all__ = ["WarpingTryOn"]

Learn = Literal["all", "warp", "rest"]


class WarpingTryOn(TokenGroupTryOn):
    """:class:`TokenGroupTryOn` over a ``WarpingTokenGroupDiT`` whose warp learns, too.

    LoRAs on such a backbone, which leave the warp as it is, are :class:`TokenGroupTryOn`'s.

    Args:
        backbone: A ``WarpingTokenGroupDiT``.
        learn: ``all``; its ``warp`` alone, without denoising and many times faster; or the ``rest``.
        flow_weight: Of what the warp errs by in where cloth lies in the garment's picture, in pixels; this and the next
            two count where the data knows that.
        trust_weight: Of the cross-entropy of where it trusts its copy.
        light_weight: Of what the light on its copy errs by.
        **kwargs: Of :class:`TokenGroupTryOn`, without ``adapters``.

    Raises:
        PolyditError: settings contradict each other or the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        learn: Learn = "all",
        flow_weight: float = 0.1,
        trust_weight: float = 0.2,
        light_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        weights = {"flow": flow_weight, "trust": trust_weight, "light": light_weight}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise PolyditError(f"--model.{name}_weight {weight:g}: a weight, 0 or more")
        if learn not in get_args(Learn):
            raise PolyditError(
                f"--model.learn: {learn!r} is unknown; choose from {', '.join(get_args(Learn))}"
            )
        if not isinstance(backbone, WarpingTokenGroupDiT):
            raise PolyditError("--model.backbone: a warp learns of a WarpingTokenGroupDiT only; take one")
        if kwargs.get("adapters"):
            raise PolyditError("--model.adapters: leave the warp as it is; train them with TokenGroupTryOn")
        super().__init__(backbone, **kwargs)
        self.learn, self.warp_weights = learn, weights

    def prepare(self) -> None:
        """Freeze what shall not learn."""
        if not self._prepared and self.learn != "all":
            self.backbone.requires_grad_(self.learn == "rest")
            self._network[0].warp.requires_grad_(self.learn == "warp")
        super().prepare()

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """As in :class:`DiffusionModule`; where the warp learns alone, of what it says and without denoising.

        Raises:
            PolyditError: the warp learns alone and the data does not know where cloth lies.
        """
        if self.learn != "warp":
            return super().losses(batch, first)
        if "flow" not in batch:
            raise PolyditError(
                "--model.learn warp: the data does not know where cloth lies; use SyntheticTryOn, or learn all"
            )
        shown = self.condition(batch)["conditions"]
        self.batch_samples = len(shown["person"])
        maps = self._network[0].maps(shown["person"], shown["garment"])
        made = compose(torch.zeros_like(shown["person"]), shown["garment"], maps)
        picture, copies = made.split((made.shape[1] - 4, 4), 1)
        terms = self.weighted(copies, batch)
        loss = torch.stack(list(terms.values())).sum()
        none = torch.zeros_like(picture)
        time = loss.new_zeros(len(picture))
        return terms, ObjectiveOutput(loss, loss.expand(len(picture)), picture, none, time, none, made)

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """What a warp errs by that learns with the rest, on data that knows where cloth lies."""
        if "flow" not in batch or self.learn == "rest":
            return {}
        return self.weighted(output.prediction[:, output.x0.shape[1] :], batch)

    def weighted(self, copies: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``flow``, ``trust`` and ``light``."""
        return {name: self.warp_weights[name] * error for name, error in warp_losses(copies, batch).items()}
