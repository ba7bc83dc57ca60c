"""The LightningModules of virtual try-on: what they have in common, and MC-VTON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor, nn

from ...core.adapters import LoraOptions, continue_from, inject_group
from ...core.autoencoders import DiffusersAutoencoder, as_autoencoder
from ...core.backbones.pretrained import PretrainedTransformer, as_backbone, refuse_other_latents
from ...core.conditioning import FixedText
from ...core.conditioning.pretrained_joint import can_join
from ...core.diffusion import Objective, make_scheduler, shift_of_tokens
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from ...core.training.weights import PACKAGE, is_on_meta
from .formulation import GROUPS, Formulation, TokenGroupFormulation
from .warping import lacks_warp, start_plain

__all__ = ["TokenGroupTryOn", "VirtualTryOn", "shift_of", "shipped_or_own"]


class VirtualTryOn(DiffusionModule):
    """What the try-on systems share: latents, the fixed text, dropping of the garment, the pipeline.

    Args:
        backbone: What denoises.
        objective: As in :class:`DiffusionModule`.
        formulation: What the network sees, and how.
        autoencoder: None for pixel space, or for that of the folder that a pretrained backbone is from.
        drop_garment: How often training shows no garment; needed for guidance.
        prompt: The fixed words that a backbone with text inputs reads with every picture.
        steps: Denoising steps of the pipeline, if nobody asks for another number.
        **kwargs: Of :class:`DiffusionModule`.

    Raises:
        PolyditError: settings contradict each other or the backbone.
    """

    predict_words = ("--garment", "FILE", "--mask", "FILE")

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None,
        formulation: Formulation,
        autoencoder: nn.Module | None = None,
        drop_garment: float = 0.0,
        prompt: str = "Model",
        steps: int = 30,
        **kwargs: Any,
    ) -> None:
        if not 0 <= drop_garment < 1:
            raise PolyditError(f"--model.drop_garment {drop_garment}: a share from 0 to less than 1")
        network = as_backbone(backbone)
        reads = network.text_inputs if isinstance(network, PretrainedTransformer) else None
        folder = getattr(network.config, "_name_or_path", None) if reads else None
        folder = _pipeline_folder(folder) if folder else None
        if autoencoder is None and folder and (folder / "vae").is_dir():
            autoencoder = DiffusersAutoencoder.from_pretrained(folder)
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        if formulation.keep_known and self.objective.prediction != "x0":
            raise PolyditError(
                f"--model.keep_known: the network answers {self.objective.prediction}; needs an objective with x0"
            )
        if self.adapter_options is not None:
            raise PolyditError("--model.adapter: would change the tokens of all groups; use --model.adapters")
        self.formulation = formulation
        self.drop_garment, self.steps = drop_garment, steps
        self.text: FixedText | None = None
        if reads is not None and folder is not None:
            self.text = FixedText.from_pipeline(folder, prompt)
        elif reads is not None:
            if not is_on_meta(backbone):
                raise PolyditError(
                    f"--model.backbone: {type(backbone).__name__} reads text; build it from a folder with text encoders"
                )
            texts = {"empty": "", "negative": "", "prompt": prompt}
            self.text = FixedText(texts, reads.length, reads.width, reads.pooled_width)
        self._network = (network,)  # not a child: its weights are the backbone's
        self.own_scheduler = _dynamic_scheduler(folder) if folder else None

    def prepare(self) -> None:
        """Refuse another space than the backbone is made for, then what every module prepares.

        Raises:
            PolyditError: the autoencoder is missing, or one of other latents.
        """
        refuse_other_latents(self._network[0], self.space.channels)
        super().prepare()

    def switch_adapters(self, on: bool) -> str | None:
        """There are none over all tokens, see the constructor."""
        return None if on else ""

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.autoencoder)

    @property
    def transformer(self) -> nn.Module:
        """The model that is saved: of a pretrained backbone that of diffusers."""
        network = self._network[0]
        return network.transformer if isinstance(network, PretrainedTransformer) else network

    @property
    def acting(self) -> dict[str, str]:
        """Group -> name of the LoRA on its tokens."""
        return {}

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Clean latents of what is generated."""
        return self.formulation.target(batch, self.space)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Latents of person and garment, the mask, and the text; in training the garment is left out at times."""
        conditions = self.formulation.conditions(batch, self.space)
        if self.training and self.drop_garment:
            dropped = torch.rand(len(conditions["garment"])) < self.drop_garment
            conditions = self.formulation.without_garment(
                conditions, dropped.to(conditions["garment"].device)
            )
        text = None if self.text is None else self.text(["prompt"] * len(conditions["person"]))
        return {"conditions": conditions, "text": text}

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The network's raw answer, see the formulation's ``predict``."""
        return self.ask(x_t, timestep, condition, self.acting)

    def ask(
        self,
        x_t: Tensor,
        timestep: Tensor,
        condition: Mapping[str, Any],
        adapters: Mapping[str, str],
        **more: Any,
    ) -> Tensor:
        """:meth:`denoise` with other adapters: group -> name."""
        return self.formulation.predict(
            self._network[0],
            x_t,
            timestep,
            condition["conditions"],
            self.objective,
            condition["text"],
            adapters,
            **more,
        )

    def build_scheduler(self) -> SchedulerMixin:
        """Euler steps, shifted as the backbone's own where those follow the tokens, else as training draws times."""
        if self.own_scheduler is not None:
            return FlowMatchEulerDiscreteScheduler.from_config(self.own_scheduler)
        return make_scheduler("euler", self.objective, shift=shift_of(self.objective.timesteps))

    def sampling_shift(self, latents: Tensor) -> float:
        """The time shift of :meth:`build_scheduler` for latents (B, C, H, W)."""
        if self.own_scheduler is None:
            return shift_of(self.objective.timesteps)
        return math.exp(shift_of_tokens(self.own_scheduler, math.prod(self._network[0].grid_of(latents))))

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone and its adapters."""
        from .pipeline import VirtualTryOnPipeline

        return VirtualTryOnPipeline(
            transformer=self.transformer,
            scheduler=self.build_scheduler(),
            vae=self.space.component,
            text=self.text,
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
            adapters=dict(self.acting),
            steps=self.steps,
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Garment, masked person, answer and truth of the first samples of the batch."""
        count = min(4, len(batch["person"]))
        first = {name: batch[name][:count] for name in ("person", "garment", "mask")}
        made = pipeline.generate(**first, generator=generator).cpu()
        masked = first["person"] * (1 - first["mask"])
        rows = zip(first["garment"], masked, made, first["person"], strict=True)
        return [
            dict(
                zip(
                    ("garment", "masked", "result", "truth"),
                    (_to_uint8(picture) for picture in row),
                    strict=True,
                )
            )
            for row in rows
        ]


class TokenGroupTryOn(VirtualTryOn):
    """MC-VTON: masked person and garment as groups of tokens, each with its own LoRA on a frozen backbone.

    "MC-VTON: Minimal Control Virtual Try-On Diffusion Transformer", arXiv 2501.03630. With ``adapters`` the backbone
    is frozen and only they learn; without, all of it learns, which is how the small base is made.

    Args:
        backbone: A ``TokenGroupDiT`` with the conditions ``person`` and ``garment``, or the transformer of a FLUX or
            Stable Diffusion 3 folder.
        objective: As in :class:`DiffusionModule`.
        autoencoder: See :class:`VirtualTryOn`.
        adapters: LoRA of each group: ``person`` and ``garment``, and ``target`` for the noisy picture's own tokens.
            ``init_from`` goes on from a file.
        height: Of the pictures, for the pipeline.
        width: Likewise.
        person_place: See :class:`TokenGroupFormulation`.
        garment_place: Likewise.
        attention: Likewise.
        keep_known: Likewise.
        noise_scale: Likewise.
        guidance: Likewise.
        training_guidance: Likewise.
        condition_guidance: Likewise.
        drop_garment: See :class:`VirtualTryOn`.
        prompt: Likewise.
        steps: Likewise.
        **kwargs: Of :class:`DiffusionModule`.

    Raises:
        PolyditError: settings contradict each other or the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        adapters: dict[str, LoraOptions] = {},  # noqa: B006 - read only; the parser shows it
        height: int = 1024,
        width: int = 768,
        person_place: str = "shared",
        garment_place: str = "beside",
        attention: str = "independent",
        keep_known: bool = False,
        noise_scale: float = 1.0,
        guidance: float = 3.5,
        training_guidance: float = 1.0,
        condition_guidance: float = 1.0,
        drop_garment: float = 0.0,
        prompt: str = "Model",
        steps: int = 30,
        **kwargs: Any,
    ) -> None:
        source = kwargs.get("init_weights")
        plain = source is not None and lacks_warp(source, backbone)
        if plain:
            start_plain(source, backbone)  # type: ignore[arg-type]
            kwargs["init_weights"] = None  # read already
            print(f"weights: {source} has none for copying from the garment; that part starts anew")  # noqa: T201
        formulation = TokenGroupFormulation(
            height=height,
            width=width,
            person_place=person_place,
            garment_place=garment_place,
            attention=attention,
            keep_known=keep_known,
            noise_scale=noise_scale,
            guidance=guidance,
            training_guidance=training_guidance,
            condition_guidance=condition_guidance,
        )
        super().__init__(backbone, objective, formulation, autoencoder, drop_garment, prompt, steps, **kwargs)
        unknown = sorted(set(adapters) - set(GROUPS))
        if unknown:
            raise PolyditError(
                f"--model.adapters: {unknown[0]!r} is no group of tokens; there are {', '.join(GROUPS)}"
            )
        self.group_adapters = dict(adapters)
        if plain and not is_on_meta(backbone):
            self.init_weights = source
        network = self._network[0]
        if (
            isinstance(network, PretrainedTransformer)
            and attention != "independent"
            and not can_join(network)
        ):
            raise PolyditError(
                f"--model.attention {attention}: groups of {type(network.transformer).__name__} that see each other "
                "cannot have times and adapters of their own; use independent, or the transformer of a FLUX folder"
            )

    @property
    def acting(self) -> dict[str, str]:
        """Group -> name of the LoRA on its tokens: its own."""
        return {group: group for group in self.group_adapters}

    def switch_adapters(self, on: bool) -> str | None:
        """The LoRAs of its groups, where the config has any."""
        if not on:
            self.group_adapters = {}
            return ""
        ranks = [f"--model.adapters.{group}.rank {lora.rank}" for group, lora in self.group_adapters.items()]
        return " ".join(ranks) or None

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The network's raw answer, with the guidance of training."""
        return self.ask(x_t, timestep, condition, self.acting, training=True)

    def prepare(self) -> None:
        """Freeze the backbone and add the LoRAs, where there are any.

        Raises:
            PolyditError: a LoRA on random weights, a target that is not there.
        """
        if self._prepared:
            return
        if self.group_adapters:
            self.backbone.requires_grad_(False)
            for group, options in self.group_adapters.items():
                inject_group(self.transformer, replace(options, init_from=None), group)
        super().prepare()

    def setup(self, stage: str) -> None:
        """Refuse LoRAs on random weights; go on from files, where the options name some."""
        super().setup(stage)
        if stage == "fit" and self.group_adapters:
            self.refuse_random_base()
            for group, options in self.group_adapters.items():
                if options.init_from:
                    continue_from(self.transformer, shipped_or_own(options.init_from), group)

    def refuse_random_base(self) -> None:
        """Refuse a LoRA on weights that are random.

        Raises:
            PolyditError: nothing says where the backbone's weights come from.
        """
        loaded = getattr(getattr(self.backbone, "config", None), "_name_or_path", None)
        if not (self.init_weights or loaded or is_on_meta(self.backbone)):
            raise PolyditError(
                "--model.adapters: LoRAs need trained weights under them; name them with --model.init_weights"
            )


def shift_of(timesteps: Any) -> float:
    """The time shift that training draws with, also inside another sampler."""
    inner = getattr(timesteps, "inner", None)
    return (
        float(getattr(timesteps, "shift", 1.0))
        if inner is None or hasattr(timesteps, "shift")
        else shift_of(inner)
    )


def shipped_or_own(name: str) -> Path:
    """A file or folder of the user, or one that came with the package, which shipped configs name."""
    path = Path(name).expanduser()
    return path if path.exists() or not (PACKAGE / name).exists() else PACKAGE / name


def _pipeline_folder(transformer: str) -> Path:
    """The pipeline's folder, from that of its transformer."""
    path = Path(transformer).expanduser()
    return path.parent if not (path / "model_index.json").is_file() and path.name == "transformer" else path


def _dynamic_scheduler(folder: Path) -> dict[str, Any] | None:
    """Settings of a folder's flow scheduler, where its time shift follows the number of tokens."""
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        return None
    config = FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler")
    return dict(config) if config.get("use_dynamic_shifting") else None


def _to_uint8(picture: Tensor) -> np.ndarray:
    return ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
