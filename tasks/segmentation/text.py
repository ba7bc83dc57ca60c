"""The empty text for transformers that read one: DiffDIS tells its backbone nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ...core.backbones.pretrained import PretrainedTransformer
from ...core.conditioning import FixedText

__all__ = ["EmptyText", "empty_text"]

TOKENS = 2
"""Start and end of the empty prompt, as DiffDIS passes them; families with a fixed length have that."""


class EmptyText(FixedText):
    """One text for all samples, and a class label that means none.

    Args:
        texts: see :class:`FixedText`.
        tokens: of the text; 0 for a transformer that reads none.
        width: of the tokens' embeddings.
        pooled_width: of the pooled embedding; None for none.
        masked: whether the transformer takes ``encoder_attention_mask``.
        label: the class label of no class; None for none.
    """

    @register_to_config
    def __init__(
        self,
        texts: dict[str, str] = {"empty": ""},  # noqa: B006 - read only
        tokens: int = TOKENS,
        width: int = 1,
        pooled_width: int | None = None,
        masked: bool = False,
        label: int | None = None,
    ) -> None:
        super().__init__(texts, tokens, width, pooled_width)

    def rows(self, count: int) -> dict[str, Any]:
        """What the transformer reads besides the picture, for ``count`` samples."""
        found: dict[str, Any] = {}
        if self.config.tokens:
            found = dict(self(["empty"] * count))
        if self.config.masked:
            hidden: Tensor = found["encoder_hidden_states"]
            found["encoder_attention_mask"] = torch.ones(hidden.shape[:2], device=hidden.device)
        if self.config.label is not None:
            device = self.encoder_hidden_states.device
            found["class_labels"] = torch.full((count,), self.config.label, device=device)
        return found


def empty_text(network: PretrainedTransformer) -> EmptyText | None:
    """What a diffusers transformer reads where nothing is said.

    Of a Stable Diffusion 3 folder it is what the text encoders make of the empty prompt; of other families it is zeros
    of the right shape, which training gets used to. None for a transformer that reads neither text nor labels.
    """
    reads = network.text_inputs
    if reads is None:
        label = getattr(network, "null_class", None)
        return None if label is None else EmptyText(tokens=0, label=int(label))
    tokens = (reads.length or TOKENS) if reads.exact_length else TOKENS
    folder = str(getattr(network.config, "_name_or_path", "") or "")
    for candidate in (Path(folder), Path(folder).parent):
        if folder and (candidate / "text_encoder").is_dir() and "SD3" in type(network.transformer).__name__:
            made = FixedText.from_pipeline(candidate)
            size = made.encoder_hidden_states.shape[1]
            text = EmptyText({"empty": ""}, size, reads.width, reads.pooled_width, reads.masked)
            with torch.no_grad():
                row = made(["empty"])
                text.encoder_hidden_states.copy_(row["encoder_hidden_states"])
                if text.pooled_projections is not None:
                    text.pooled_projections.copy_(row["pooled_projections"])
            return text
    return EmptyText({"empty": ""}, tokens, reads.width, reads.pooled_width, reads.masked)
