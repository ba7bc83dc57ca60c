"""The LightningModule of GenCompositor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline
from torch import Tensor, nn

from ...core.autoencoders import DiffusersAutoencoder, as_autoencoder
from ...core.backbones.compositing import CompositingTransformer
from ...core.backbones.pretrained import PretrainedTransformer, adapt_transformer, as_backbone
from ...core.conditioning import SideBranch
from ...core.diffusion import Objective
from ...core.errors import PolyditError
from ...core.media import to_uint8
from ...core.training import DiffusionModule
from ...core.training.weights import is_on_meta
from .compositing import CompositingFormulation, Scene
from .text import PromptEmbeddings, _pipeline_folder, texts_for

__all__ = ["GenCompositor"]


class GenCompositor(DiffusionModule):
    """Put a video of something into another video, along a path, with the light and shadow of its surroundings.

    "GenCompositor: Generative Video Compositing with Diffusion Transformer", arXiv 2509.02460: the foreground is a
    second stream of tokens in every block, at places of its own; a branch of copied blocks adds the known background to
    tokens outside of the mask, beginning with nothing.

    Args:
        backbone: a ``TokenGroupDiT`` of 3 C channels with a condition called foreground; or a CogVideoX image-to-video
            model (``load_transformer``), which gets its second stream here.
        objective: as in :class:`DiffusionModule`.
        autoencoder: None for pixel space, or for that of the folder that a pretrained backbone is from.
        formulation: see :class:`CompositingFormulation`.
        branch_depth: blocks of the background branch; 2 as published, 0 for none.
        mask_weight: further weight of the error inside the mask.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: the backbone does not fit.
    """

    predict_words = ("--composite", "FILE", "--path", "X,Y@FRAME")

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        formulation: CompositingFormulation = CompositingFormulation(),  # noqa: B008 - frozen
        branch_depth: int = 2,
        mask_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        network, folder = as_backbone(backbone), None
        on_meta = is_on_meta(backbone)
        if isinstance(network, PretrainedTransformer):
            base = network.transformer
            folder = getattr(base.config, "_name_or_path", None) or None
            if isinstance(base, CogVideoXTransformer3DModel) and not isinstance(base, CompositingTransformer):
                base = CompositingTransformer.from_base(base)
                network = adapt_transformer(base)
            if not isinstance(base, CompositingTransformer):
                raise PolyditError(
                    f"--model.backbone: {type(base).__name__} takes no second stream; give a CogVideoX model"
                )
            backbone = base
            root = _pipeline_folder(folder)
            if autoencoder is None and root is not None and (root / "vae").is_dir() and not on_meta:
                autoencoder = DiffusersAutoencoder.from_pretrained(root, "vae")
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        self.formulation, self.mask_weight = formulation, mask_weight
        self._network = (network,)  # not a child: its weights are the backbone's
        self.branch: nn.Module | None = None
        self.text: PromptEmbeddings | None = None
        if isinstance(network, PretrainedTransformer):
            self.text = texts_for(network, folder, {"prompt": ""}, on_meta)
            if formulation.residual_scale is not None:
                raise PolyditError("--model.formulation.residual_scale: is for pixel space; leave it out")
        elif "foreground" not in (getattr(backbone.config, "conditions", None) or {}):
            raise PolyditError("--model.backbone: needs a condition called foreground; take TokenGroupDiT")
        elif backbone.config.in_channels != 3 * self.space.channels:
            raise PolyditError(
                f"--model.backbone.in_channels {backbone.config.in_channels}: noisy, known and foreground are "
                f"{3 * self.space.channels}"
            )
        if branch_depth:
            self.branch = background_branch(network, branch_depth)
        if (self.branch is None) == formulation.hints:
            raise PolyditError(
                "--model.formulation.hints: says whether there is a branch; branch_depth 0 is none"
            )

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.autoencoder)

    def scene(self, batch: Mapping[str, Tensor]) -> Scene:
        """What is given."""
        mask = (batch["mask"] > 0).float()
        background = (batch["clean"].float() + 1) / 2 * (1 - mask)
        return Scene(background, mask, (batch["foreground"] + 1) / 2, batch["guess"])

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The composite."""
        return self.formulation.target(self.scene(batch), batch["clean"], self.space)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Latents of background and foreground, and the mask."""
        return {"given": self.formulation.conditions(self.scene(batch), self.space)}

    def element_weight(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """More inside the mask, as in VideoPainter's training, whose code this system stands on."""
        if not self.mask_weight:
            return None
        mask = self.formulation.conditions(self.scene(batch), self.space)["mask"]
        return 1 + self.mask_weight * mask

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """See :meth:`CompositingFormulation.predict`."""
        return self.formulation.predict(
            self._network[0],
            self.branch,
            x_t,
            timestep,
            condition["given"],
            self.objective,
            None if self.text is None else self.text(["prompt"] * len(x_t)),
        )

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .compositing_pipeline import VideoCompositingPipeline

        return VideoCompositingPipeline(
            transformer=self.backbone,
            branch=self.branch,
            vae=self.space.component,
            text=self.text,
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: Any
    ) -> list[dict[str, np.ndarray]]:
        """Of the middle frame of the first clips: background, foreground, what was pasted, made and true."""
        scene, panels = self.scene(batch), []
        for number in range(min(4, len(batch["clean"]))):
            part = Scene(*(value[number : number + 1] for value in vars(scene).values()))
            made = pipeline.make(part, generator=generator)
            middle = made.shape[2] // 2
            shown = {
                "background": part.background[0, :, middle],
                "foreground": part.foreground[0, :, middle],
                "pasted": part.guess[0, :, middle],
                "made": made[0, :, middle],
                "true": (batch["clean"][number, :, middle] + 1) / 2,
            }
            panels.append({name: to_uint8(picture.float() * 2 - 1) for name, picture in shown.items()})
        return panels


def background_branch(network: Any, depth: int) -> nn.Module:
    """The branch: the network's first blocks over [noisy, known, mask], with outputs that begin at zero.

    Known latents are read as noisy ones are, as published, in place of the base's columns for them.
    """
    if not isinstance(network, PretrainedTransformer):
        return SideBranch.from_base(network, depth, 1)
    branch = SideBranch.from_base(_first_stream(network), depth, 1)
    weight = branch.branch.transformer.patch_embed.proj.weight
    channels = network.latent_channels
    if not weight.is_meta:
        weight.data[:, channels : 2 * channels] = weight.data[:, :channels]
    return branch


def _first_stream(network: PretrainedTransformer) -> PretrainedTransformer:
    """The plain CogVideoX inside, which the branch copies: it sees the background only."""
    import torch

    two = network.transformer
    config = {k: v for k, v in two.config.items() if not k.startswith("_") and k != "foreground_channels"}
    with torch.device(two.device):
        plain = CogVideoXTransformer3DModel(**config)
    state = {k: v for k, v in two.state_dict().items() if "fg_proj" not in k}
    if "patch_embed.pos_embedding" in state:
        table, text = state["patch_embed.pos_embedding"], config["max_text_seq_length"]
        state["patch_embed.pos_embedding"] = table[:, : text + (table.shape[1] - text) // 2]
    plain.load_state_dict(state, assign=True)
    return adapt_transformer(plain)
