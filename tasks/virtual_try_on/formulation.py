"""What is diffused and what the network sees: a noisy picture, and beside it groups of tokens for person and garment.

"MC-VTON: Minimal Control Virtual Try-On Diffusion Transformer", arXiv 2501.03630: the transformer itself encodes the
masked person and the garment, without reference network, pose or parsing. Masks are 1 where a garment is to be made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.backbones.pretrained import PretrainedTransformer
from ...core.conditioning import (
    KeyValueCache,
    TokenGroup,
    TokenGroupDiT,
    forward_groups,
    only_itself,
    separate,
)
from ...core.conditioning.token_group_dit import place
from ...core.diffusion import Parameterization
from ...core.errors import PolyditError
from .warping import WarpingTokenGroupDiT

__all__ = ["GROUPS", "Formulation", "TokenGroupFormulation", "masked_person"]

GROUPS = ("target", "person", "garment")
"""Whose tokens may have an adapter: of the noisy picture, of the masked person, of the garment."""

PLACES = ("shared", "beside", "below", "interpolated")
ATTENTION = ("independent", "separate", "full")


class Formulation(Protocol):
    """What is diffused, what the network is shown, how it is called: :class:`TokenGroupFormulation` explains each."""

    @property
    def height(self) -> int: ...  # noqa: D102

    @property
    def width(self) -> int: ...  # noqa: D102

    @property
    def keep_known(self) -> bool: ...  # noqa: D102

    def config(self) -> dict[str, Any]: ...  # noqa: D102

    def target(self, batch: Mapping[str, Tensor], space: Any) -> Tensor: ...  # noqa: D102

    def conditions(self, batch: Mapping[str, Tensor], space: Any) -> dict[str, Tensor]: ...  # noqa: D102

    def without_garment(self, conditions: Mapping[str, Tensor], dropped: Tensor) -> dict[str, Tensor]: ...  # noqa: D102

    def start(self, conditions: Mapping[str, Tensor]) -> torch.Size: ...  # noqa: D102

    def can_cache(self, network: nn.Module) -> bool: ...  # noqa: D102

    def finish(self, latents: Tensor, space: Any) -> Tensor: ...  # noqa: D102

    def predict(  # noqa: D102
        self,
        network: nn.Module,
        x_t: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        parameterization: Parameterization,
        text: Mapping[str, Any] | None = None,
        adapters: Mapping[str, str] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class TokenGroupFormulation:
    """MC-VTON: masked person and garment as token groups beside the noisy target.

    Attributes:
        height: Of the pictures that the weights are made for, in pixels.
        width: Likewise.
        person_place: Where the masked person's tokens stand, for a diffusers transformer: ``shared`` (the target's
            places), ``beside``, ``below``, ``interpolated``. A ``TokenGroupDiT`` has its places in its own config.
        garment_place: Where the garment's stand; one width beside the target in the published scheme. SD3 has a table
            of positions and takes ``shared`` only: the garment's adapter tells the groups apart.
        attention: ``independent``: person and garment look only at themselves, so their keys and values stay what
            they are over all steps; ``separate``: they look at everything but each other (OminiControl's training);
            ``full``. The last two run all groups as one sequence, at every step; of diffusers transformers FLUX can.
        keep_known: Outside of the mask the network's clean picture is the person's, exactly. In pixel space, with x0
            prediction.
        noise_scale: Standard deviation of the noise in the network's units, with x0 prediction. Below 1 a small network
            that lets some of the noise through shows less of it.
        guidance: The scale that a guidance-distilled transformer (FLUX.1-dev) reads with target and text in sampling;
            this and the next two are OminiControl's, and nothing to other networks.
        training_guidance: Likewise, in training.
        condition_guidance: The scale that it reads with person and garment, always.
    """

    height: int = 1024
    width: int = 768
    person_place: str = "shared"
    garment_place: str = "beside"
    attention: str = "independent"
    keep_known: bool = False
    noise_scale: float = 1.0
    guidance: float = 3.5
    training_guidance: float = 1.0
    condition_guidance: float = 1.0

    kind: ClassVar[str] = "token_groups"
    condition_names: ClassVar[tuple[str, ...]] = ("person", "garment")

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("person_place", self.person_place, PLACES),
            ("garment_place", self.garment_place, PLACES),
            ("attention", self.attention, ATTENTION),
        ):
            if value not in choices:
                raise PolyditError(
                    f"--model.{option}: {value!r} is unknown; choose from {', '.join(choices)}"
                )
        for option in ("guidance", "training_guidance", "condition_guidance"):
            if not 0 <= getattr(self, option) < math.inf:
                raise PolyditError(
                    f"--model.{option} {getattr(self, option):g}: a scale, 0 or more; 1 is none and 3.5 is common"
                )

    def config(self) -> dict[str, Any]:
        """JSON-ready description."""
        return {"kind": self.kind, **asdict(self)}

    # -- what is diffused ----------------------------------------------------------------------------------

    def target(self, batch: Mapping[str, Tensor], space: Any) -> Tensor:
        """Clean latents of the person (B, C, h, w), in units of the noise."""
        return space.encode(batch["person"]) / self.noise_scale

    def conditions(self, batch: Mapping[str, Tensor], space: Any) -> dict[str, Tensor]:
        """What the network is shown, (B, C, h, w) each, and the mask (B, 1, h, w) of the latents.

        Args:
            batch: ``person``, or ``masked_person``; ``garment``, all (B, 3, H, W) in [-1, 1]; ``mask`` (B, 1, H, W).
            space: Pixels or the autoencoder.
        """
        masked = masked_person(batch)
        latents = space.encode(masked)
        return {
            "person": latents,
            "garment": space.encode(batch["garment"]),
            "mask": F.adaptive_max_pool2d(batch["mask"].float(), latents.shape[-2:]),
        }

    def without_garment(self, conditions: Mapping[str, Tensor], dropped: Tensor) -> dict[str, Tensor]:
        """The conditions with nothing (zeros) for the garment of some samples.

        Args:
            conditions: As :meth:`conditions` gives them.
            dropped: Whose garment goes, bool (B,).
        """
        garment = conditions["garment"]
        hidden = dropped.view(-1, *[1] * (garment.ndim - 1))
        return {**conditions, "garment": garment.masked_fill(hidden, 0.0)}

    def start(self, conditions: Mapping[str, Tensor]) -> torch.Size:
        """Shape of the noise that sampling starts from."""
        return conditions["person"].shape

    def can_cache(self, network: nn.Module) -> bool:
        """Whether person and garment look only at themselves."""
        attention = network.config.attention if isinstance(network, TokenGroupDiT) else self.attention
        return bool(attention == "independent")

    def finish(self, latents: Tensor, space: Any) -> Tensor:
        """Latents to pixels (B, 3, H, W) in [-1, 1]."""
        return space.decode(latents * self.noise_scale).clamp(-1, 1)

    # -- the network ---------------------------------------------------------------------------------------

    def groups(
        self,
        network: nn.Module,
        x_t: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        adapters: Mapping[str, str],
        training: bool = False,
    ) -> tuple[list[TokenGroup], dict[str, tuple[str, ...]] | Mapping[str, Any]]:
        """The token groups and who looks at whom.

        Args:
            network: A ``TokenGroupDiT``, or the adapter of a diffusers transformer.
            x_t: Noisy latents.
            timestep: As the network takes it, (B,); the conditions have 0, they are clean.
            conditions: As :meth:`conditions` gives them; a group that is not there is left out.
            adapters: Group -> name of the LoRA on its tokens.
            training: See :meth:`predict`.
        """
        shown = {name: conditions[name] for name in self.condition_names if name in conditions}
        if isinstance(network, TokenGroupDiT):
            made = network.groups(x_t, timestep, shown)
            return (
                [replace(group, adapter=adapters.get(group.name)) for group in made],
                network.looks(list(shown)),
            )
        if not isinstance(network, PretrainedTransformer):
            raise PolyditError(
                f"--model.backbone: {type(network).__name__} takes no token groups; use TokenGroupDiT, or the "
                "transformer of a FLUX or Stable Diffusion 3 folder"
            )
        grid = network.grid_of(x_t)
        scale = self.training_guidance if training else self.guidance
        made = [TokenGroup("target", x_t, timestep=timestep, adapter=adapters.get("target"), guidance=scale)]
        places = {"person": self.person_place, "garment": self.garment_place}
        for name, picture in shown.items():
            position = place(places[name], network.grid_of(picture), grid)
            made.append(
                TokenGroup(
                    name,
                    picture,
                    position=position,
                    adapter=adapters.get(name),
                    guidance=self.condition_guidance,
                )
            )
        names = list(shown)
        if self.attention == "independent":
            # Nor does it look at the text, whose tokens change with the target's in FLUX and SD3.
            return made, only_itself(*names)
        return made, separate(["target", *names, "text"], names) if self.attention == "separate" else {}

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
        training: bool = False,
    ) -> Tensor:
        """The network's raw answer for the target, (B, C, h, w).

        In training, four channels follow of a network that copies, see ``warping.compose``.

        Args:
            network: See :meth:`groups`.
            x_t: Noisy latents, in units of the noise.
            timestep: As the network takes it.
            conditions: As :meth:`conditions` gives them; without ``garment`` nothing says what to wear.
            parameterization: What the answer means.
            text: What a network that reads text is given.
            adapters: Group -> name of the LoRA on its tokens; None is that of the group's own name.
            cache: Keys and values of person and garment in one sampling run.
            training: With the guidance of training in place of that of sampling, and all channels.
        """
        given = {name: name for name in GROUPS} if adapters is None else adapters
        if (self.keep_known or self.noise_scale != 1) and parameterization.prediction != "x0":
            raise PolyditError(
                "--model.keep_known, --model.noise_scale: need an objective with prediction x0"
            )
        groups, looks = self.groups(network, x_t * self.noise_scale, timestep, conditions, given, training)
        copying = isinstance(network, WarpingTokenGroupDiT)
        with network.showing(conditions, cache) if copying else nullcontext():
            raw = forward_groups(network, groups, looks, cache=cache, **(text or {}))["target"]
        copies = None
        if copying:
            raw, copies = raw[:, : x_t.shape[1]], raw[:, x_t.shape[1] :]
        if self.keep_known:
            mask = conditions["mask"].to(raw.dtype)
            raw = raw * mask + conditions["person"].to(raw.dtype) * (1 - mask)
        raw = raw / self.noise_scale
        return torch.cat([raw, copies.to(raw.dtype)], 1) if training and copies is not None else raw


def masked_person(batch: Mapping[str, Tensor]) -> Tensor:
    """The person with grey where the mask is set."""
    if "masked_person" in batch:
        return batch["masked_person"]
    return batch["person"] * (1 - batch["mask"].to(batch["person"].dtype))
