"""CatVTON: person and garment as one picture, one beside or below the other; a plain transformer does the rest.

"CatVTON: Concatenation Is All You Need for Virtual Try-On with Diffusion Models", arXiv 2407.15886.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.backbones.pretrained import PretrainedTransformer
from ...core.conditioning import KeyValueCache, widen_input
from ...core.diffusion import Objective, Parameterization
from ...core.errors import PolyditError
from .formulation import masked_person
from .model import VirtualTryOn

__all__ = ["ConcatenationFormulation", "ConcatenationTryOn"]

AXES = {"height": -2, "width": -1}


@dataclass(frozen=True)
class ConcatenationFormulation:
    """The noisy person-and-garment picture, and as channels beside it the mask and the masked picture.

    Input channels are [noisy C | mask 1 | masked C]; the mask of the garment's half is zero. The loss is over both
    halves, as published; what comes out is the person's.

    Attributes:
        height: Of one picture, in pixels.
        width: Likewise.
        axis: ``height``: the garment below the person, as published; ``width``: beside.
        keep_known: Outside of the mask, the garment's half included, the network's clean picture is the known one. In
            pixel space, with x0 prediction.
    """

    height: int = 1024
    width: int = 768
    axis: str = "height"
    keep_known: bool = False

    kind: ClassVar[str] = "concatenation"

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise PolyditError(f"--model.axis: {self.axis!r} is unknown; choose from {', '.join(AXES)}")

    def config(self) -> dict[str, Any]:
        """JSON-ready description."""
        return {"kind": self.kind, **asdict(self)}

    def target(self, batch: Mapping[str, Tensor], space: Any) -> Tensor:
        """Clean latents of person and garment in one picture."""
        return self._join(space.encode(batch["person"]), space.encode(batch["garment"]))

    def conditions(self, batch: Mapping[str, Tensor], space: Any) -> dict[str, Tensor]:
        """Latents of the masked person and of the garment, and the mask at their size."""
        person = space.encode(masked_person(batch))
        return {
            "person": person,
            "garment": space.encode(batch["garment"]),
            "mask": F.adaptive_max_pool2d(batch["mask"].float(), person.shape[-2:]),
        }

    def without_garment(self, conditions: Mapping[str, Tensor], dropped: Tensor) -> dict[str, Tensor]:
        """The conditions with zeros in the garment's half of some samples, bool (B,)."""
        garment = conditions["garment"]
        return {**conditions, "garment": garment.masked_fill(dropped.view(-1, 1, 1, 1), 0.0)}

    def start(self, conditions: Mapping[str, Tensor]) -> torch.Size:
        """Shape of the noise that sampling starts from: of both halves."""
        return self._join(conditions["person"], conditions["garment"]).shape

    def can_cache(self, network: nn.Module) -> bool:
        """Nothing stays the same over the steps."""
        return False

    def finish(self, latents: Tensor, space: Any) -> Tensor:
        """The person's half in pixels."""
        return space.decode(latents.chunk(2, dim=AXES[self.axis])[0]).clamp(-1, 1)

    def predict(
        self,
        network: nn.Module,
        x_t: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        parameterization: Parameterization,
        text: Mapping[str, Any] | None = None,
        adapters: Mapping[str, str] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The network's raw answer for both halves; there are no adapters of groups and nothing to cache."""
        known = self._join(conditions["person"], conditions["garment"])
        mask = self._join(conditions["mask"], torch.zeros_like(conditions["mask"])).to(x_t.dtype)
        seen = torch.cat([x_t, mask, known.to(x_t.dtype)], dim=1)
        raw: Tensor = network(seen, timestep, **(text or {})).sample
        if self.keep_known:
            raw = raw * mask + known.to(raw.dtype) * (1 - mask)
        return raw

    def _join(self, person: Tensor, garment: Tensor) -> Tensor:
        return torch.cat([person, garment], dim=AXES[self.axis])


class ConcatenationTryOn(VirtualTryOn):
    """CatVTON's layout on the shared transformer.

    Args:
        backbone: A ``DiT`` whose input has the channels [noisy | 1 | masked], or the transformer of a folder, whose
            input is widened to them; new columns start at zero. Likewise a ``DiT`` with the latents' channels.
        objective: As in :class:`DiffusionModule`.
        autoencoder: See :class:`VirtualTryOn`.
        height: Of one picture, for the pipeline.
        width: Likewise.
        axis: See :class:`ConcatenationFormulation`.
        keep_known: Likewise.
        train_only: Expression for the names of the parameters that learn; None is all. Published: self-attention.
        drop_garment: See :class:`VirtualTryOn`.
        prompt: Likewise.
        steps: Likewise.
        **kwargs: Of :class:`DiffusionModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        height: int = 1024,
        width: int = 768,
        axis: str = "height",
        keep_known: bool = False,
        train_only: str | None = None,
        drop_garment: float = 0.1,
        prompt: str = "",
        steps: int = 50,
        **kwargs: Any,
    ) -> None:
        formulation = ConcatenationFormulation(height, width, axis, keep_known)
        super().__init__(backbone, objective, formulation, autoencoder, drop_garment, prompt, steps, **kwargs)
        self.train_only = train_only
        network, channels = self._network[0], self.space.channels
        pretrained = isinstance(network, PretrainedTransformer)
        reads = network.in_channels if pretrained else network.config.in_channels  # type: ignore[union-attr]
        if reads == channels:
            widen_input(network, channels + 1)
        elif reads != 2 * channels + 1:
            raise PolyditError(
                f"--model.backbone: reads {reads} channels; give one for the {channels} of the latents, or for the "
                f"{2 * channels + 1} of noisy, mask and masked picture"
            )

    def prepare(self) -> None:
        """Freeze what is not to learn, then what every module prepares.

        Raises:
            PolyditError: ``train_only`` names nothing.
        """
        if self.train_only is not None and not self._prepared:
            names = [name for name, _ in self.transformer.named_parameters()]
            if not any(re.fullmatch(self.train_only, name) for name in names):
                raise PolyditError(
                    f"--model.train_only: no parameter matches {self.train_only!r}; there are for example "
                    f"{', '.join(names[:3])}"
                )
            for name, parameter in self.transformer.named_parameters():
                parameter.requires_grad_(re.fullmatch(self.train_only, name) is not None)
        super().prepare()
